"""The data set of `up`, and the check that no setting names an instrument other than its own."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from cli.local_data import FileOptions, configured_instruments, prepare_dataset, require_one_instrument
from cli.main import app
from cli.settings import UpSettings
from shared.adapters.tables.dataset import read_dataset, read_instrument, write_dataset
from shared.errors import DataError, SettingsError
from shared.market.bar import Instrument
from shared.market.synthetic import Market, synthesize

EUR_USD = Instrument.named("EUR_USD")


@pytest.fixture(scope="module")
def euro_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bars of EUR_USD with times two hours ahead of UTC; one bar is faulty."""
    bars = synthesize(Market.OU, 7_500, seed=1, instrument=EUR_USD)
    frame = pd.DataFrame({name: getattr(bars, name) for name in ("open", "high", "low", "close", "volume")})
    frame.insert(0, "time", pd.to_datetime(bars.time_s, unit="s") + pd.Timedelta(hours=2))
    frame.loc[77, "high"] = 0.5
    path = tmp_path_factory.mktemp("bars") / "EURUSD_M1.csv"
    frame.to_csv(path, index=False)
    return path


def test_following_the_advice_of_errors_imports_bars_of_another_pair(tmp_path: Path, euro_file: Path) -> None:
    options = FileOptions()
    for advised, then in (
        ("--instrument EUR_USD", replace(options, instrument="EUR_USD")),
        ("--repair", replace(options, instrument="EUR_USD", repair=True)),
    ):
        with pytest.raises(DataError, match=advised):
            prepare_dataset(tmp_path, euro_file, UpSettings(), options)
        options = then
    path = prepare_dataset(tmp_path, euro_file, UpSettings(), options)
    dataset = read_dataset(path)
    assert (len(dataset.bars), dataset.bars.instrument) == (7_499, EUR_USD)
    assert prepare_dataset(tmp_path, euro_file, UpSettings(), options) == path
    other = prepare_dataset(tmp_path, euro_file, UpSettings(), replace(options, timezone="+02:00"))
    assert other != path
    assert prepare_dataset(tmp_path, path, UpSettings()) == path.resolve()
    other_suffix = path.rename(path.with_suffix(".db"))
    assert prepare_dataset(tmp_path, other_suffix, UpSettings()) == other_suffix.resolve()
    path = other_suffix
    with pytest.raises(SettingsError, match="apply to a file of bars"):
        prepare_dataset(tmp_path, path, UpSettings(), options)


def test_up_refuses_settings_that_name_another_instrument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "e.duckdb"
    write_dataset(path, synthesize(Market.OU, 100, seed=1, instrument=EUR_USD), "synthetic")
    assert read_instrument(path) == EUR_USD
    assert require_one_instrument(path, **configured_instruments(None)) == "EUR_USD"
    assert require_one_instrument(path, MM_TRADER__INSTRUMENT="eurusd") == "EUR_USD"
    monkeypatch.setenv("MM_HOME", str(tmp_path / "home"))
    for setting in ("MM_TRADER__INSTRUMENT", "MM_INFERENCE__INSTRUMENT"):
        with monkeypatch.context() as context:
            context.setenv(setting, "GBP_JPY")
            result = CliRunner().invoke(app, ["up", "--data", str(path)])
            assert isinstance(result.exception, SettingsError)
            assert f"{setting} is GBP_JPY, but the bars of e.duckdb are of EUR_USD" in str(result.exception)
    assert not (tmp_path / "home" / "runs").exists()


def test_reading_the_instrument_of_another_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    for name in ("notes", "absent"):
        with pytest.raises(DataError, match=f"{name}: not a data set"):
            read_instrument(tmp_path / name)
