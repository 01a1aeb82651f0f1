import gzip
import json
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from cli.data import app
from shared.adapters.tables.dataset import read_dataset
from shared.errors import BrokerError, DataError, FormatError, SettingsError
from shared.features.window import FEATURE_NAMES
from shared.market.bar import BarSeries
from shared.market.session import Split
from shared.market.synthetic import Market, synthesize


@pytest.fixture(autouse=True)
def isolated_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the `.env` file and the token of this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OANDA_TOKEN", raising=False)


def run(*arguments: object) -> str:
    """Run a command that succeeds; returns its stdout."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def document(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*arguments, "--json"))
    return found


@pytest.fixture(scope="module")
def bars() -> BarSeries:
    return synthesize(Market.REGIMES, 15_000, seed=1)


@pytest.fixture
def csv(tmp_path: Path, bars: BarSeries) -> Path:
    frame = pd.DataFrame({name: getattr(bars, name) for name in ("open", "high", "low", "close", "volume")})
    frame.insert(0, "time", bars.time_s)
    path = tmp_path / "bars.csv"
    frame.to_csv(path, index=False)
    return path


def test_import(tmp_path: Path, csv: Path, bars: BarSeries) -> None:
    found = document("import", csv, "--out", tmp_path / "new" / "d.duckdb")
    assert found["format"] == "OANDA-like CSV"
    assert found["timezone"] == "UTC, as its times say"
    assert (found["bars"], found["dropped"]) == (15_000, 0)
    assert found["fingerprint"] == bars.fingerprint
    assert read_dataset(tmp_path / "new" / "d.duckdb").source == "bars.csv"
    table = run("import", csv, "--out", tmp_path / "new" / "d.duckdb")
    assert "OANDA-like CSV" in table
    assert "15,000" in table


def test_import_with_repair_and_timezone_and_instrument(tmp_path: Path, csv: Path) -> None:
    lines = csv.read_text().splitlines()
    lines[77] = "oops"
    csv.write_text("\n".join(lines))
    out = tmp_path / "d.duckdb"
    with pytest.raises(FormatError, match=r"bars\.csv:78: 1 column, expected 6; --repair"):
        run("import", csv, "--out", out)
    assert not out.exists()
    found = document("import", csv, "--out", out, "--repair", "--timezone", "UTC", "--instrument", "chfjpy")
    assert (found["bars"], found["dropped"]) == (14_999, 1)
    assert (found["instrument"], found["timezone"][:17]) == ("CHF_JPY", "UTC, as requested")
    assert found["first"] == "2020-01-05 22:00 UTC"


@pytest.mark.parametrize(("name", "pair"), [("EURUSD_M1_2020.csv", "EUR_USD"), ("xau-usd.csv", "XAU_USD")])
def test_a_file_named_after_another_pair_needs_the_option_instrument(
    tmp_path: Path, csv: Path, name: str, pair: str
) -> None:
    other, out = csv.rename(tmp_path / name), tmp_path / "d.duckdb"
    with pytest.raises(DataError, match=rf"the file name {name} contains {pair}.*--instrument {pair}"):
        run("import", other, "--out", out)
    assert not out.exists()
    imported = document("import", other, "--out", out, "--instrument", pair, "--pip", "0.01")
    assert (imported["instrument"], imported["pip"]) == (pair, 0.01)
    result = CliRunner().invoke(app, ["import", str(other), "--out", str(out), "--instrument", "GBP_JPY"])
    assert "is imported as GBP_JPY because of --instrument" in result.stderr


def test_import_summarises_the_bars_and_warns_of_implausible_ones(
    tmp_path: Path, bars: BarSeries, csv: Path
) -> None:
    found = document("import", csv, "--out", tmp_path / "d.duckdb")
    assert found["mean_range_pips"] == pytest.approx(bars.range_pips.mean())
    assert (found["coverage"], found["gaps"], found["mean_spread_pips"]) == (1.0, 0, None)
    assert found["left_out_outside_week"] == 0
    arguments = ["import", str(csv), "--out", str(tmp_path / "e.duckdb"), "--instrument", "EUR_USD"]
    warned = CliRunner().invoke(app, arguments).stderr  # yen prices for a pair whose pip is 0.0001
    assert "the mean range of a bar is 38" in warned
    assert "check instrument and pip" in warned


def test_only_data_sets_and_feature_exports_are_overwritten(tmp_path: Path, csv: Path) -> None:
    import duckdb

    foreign, data = tmp_path / "foreign.duckdb", tmp_path / "d.duckdb"
    with duckdb.connect(str(foreign)) as connection:
        connection.execute("CREATE TABLE precious (x INTEGER)")
    bars_file = tmp_path / "bars.parquet"
    pd.read_csv(csv).to_parquet(bars_file)
    before = foreign.read_bytes(), bars_file.read_bytes()
    run("synth", "--bars", 500, "--out", data)
    for arguments in (
        ["import", csv, "--out", foreign],
        ["synth", "--out", foreign],
        ["features", "--data", data, "--out", bars_file],
        ["features", "--data", data, "--out", foreign],
    ):
        with pytest.raises(DataError, match="exists and is no"):
            run(*arguments)
    with pytest.raises(DataError, match="is an input file"):
        run("features", "--data", data, "--out", data)
    assert (foreign.read_bytes(), bars_file.read_bytes()) == before
    (tmp_path / "link.duckdb").symlink_to("d.duckdb")
    run("synth", "--bars", 600, "--out", tmp_path / "link.duckdb")
    assert (tmp_path / "link.duckdb").is_symlink()
    assert len(read_dataset(data).bars) == 600


def test_file_names_with_brackets_are_printed_unchanged(tmp_path: Path, csv: Path) -> None:
    odd = csv.rename(tmp_path / "[bold]x[")
    table = run("import", odd.name, "--out", "[y].duckdb")
    assert "[bold]x[" in table
    (tmp_path / "b[").mkdir()
    closing = odd.rename(tmp_path / "b[" / "]z")
    assert "b[/]z" in run("import", closing.relative_to(tmp_path), "--out", "[y].duckdb")
    assert "[y].duckdb" in run("describe", "--data", "[y].duckdb")


def test_describe_reports_what_synth_generated(tmp_path: Path) -> None:
    out = tmp_path / "d.duckdb"
    made = document("synth", "--market", "ou", "--bars", 20_000, "--seed", 3, "--out", out)
    assert made["fingerprint"] == synthesize(Market.OU, 20_000, seed=3).fingerprint
    found = document("describe", "--data", out)
    assert found["source"] == "synthetic ou, seed 3"
    assert (found["bars"], found["coverage"], found["gaps"]) == (20_000, 1.0, 0)
    assert found["mean_range_pips"] == pytest.approx(3.87, abs=0.1)
    assert found["mean_spread_pips"] is None
    assert sum(found["outcomes"].values()) == pytest.approx(1)
    index = read_dataset(out).sessions
    for split in Split:
        assert found["sessions"][split.value] == {
            "every": len(index.every(split)),
            "non_overlapping": len(index.non_overlapping(split)),
        }
    for command in ("describe", "sessions"):
        printed = run(command, "--data", out)
        assert max(map(len, printed.splitlines())) <= 80
        assert "…" not in printed
        assert "non-overlapping" in printed
    for words in ("GBP_JPY", "20,000", "non-overlapping", "neutral"):
        assert words in run("describe", "--data", out)
    later = document("synth", "--bars", 10, "--out", out, "--start", "2021-06-07T12:00")
    assert later["first"] == "2021-06-07 12:00 UTC"


def test_synth_warns_of_too_few_bars_for_a_session(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["synth", "--bars", "500", "--out", str(tmp_path / "d.duckdb")])
    assert "the data set has no valid session" in result.stderr
    assert "nan" not in run("describe", "--data", tmp_path / "d.duckdb", "--json")


def test_synth_warns_of_a_split_without_sessions(tmp_path: Path) -> None:
    for bars, warned in (("4000", True), ("20000", False)):
        out = str(tmp_path / f"{bars}.duckdb")
        result = CliRunner().invoke(app, ["synth", "--bars", bars, "--out", out])
        assert (
            "there is no session in the validation and test split" in " ".join(result.stderr.split())
        ) is warned
        assert (sum(document("describe", "--data", out)["sessions"]["validation"].values()) == 0) is warned


def test_sessions(tmp_path: Path) -> None:
    out = tmp_path / "d.duckdb"
    run("synth", "--bars", 20_000, "--out", out)
    index = read_dataset(out).sessions
    found = document("sessions", "--data", out)
    for split in Split:
        assert found[split.value]["every"] == index.every(split).tolist()
        assert found[split.value]["non_overlapping"] == index.non_overlapping(split).tolist()
    assert list(document("sessions", "--data", out, "--split", "test")) == ["test"]
    assert "validation" in run("sessions", "--data", out)
    assert str(index.non_overlapping(Split.TEST)[0]) in run("sessions", "--data", out, "--split", "test")


def test_features(tmp_path: Path) -> None:
    data, out = tmp_path / "d.duckdb", tmp_path / "f.parquet"
    run("synth", "--bars", 2_000, "--out", data)
    assert document("features", "--data", data, "--out", out)["rows"] == 2_000
    frame = pd.read_parquet(out)
    assert list(frame.columns) == ["bar_index", "time", *FEATURE_NAMES, "outcome"]
    assert frame[list(FEATURE_NAMES)].isna().any(axis=1).sum() == 119
    assert set(frame.outcome[:19]) == {-1}
    np.testing.assert_array_equal(frame.outcome, read_dataset(data).outcomes)


def test_sessions_and_splits_follow_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_SPLITS__TRAIN", "0.5")
    monkeypatch.setenv("MM_SESSIONS__MIN_MEAN_RANGE_PIPS", "2.5")
    run("synth", "--bars", 5_000, "--out", tmp_path / "d.duckdb")
    dataset = read_dataset(tmp_path / "d.duckdb")
    assert dataset.split_config.train == 0.5
    assert dataset.session_config.min_mean_range_pips == 2.5
    monkeypatch.setenv("MM_SPLITS__TRAIN", "7")
    with pytest.raises(SettingsError, match=r"(?i)train"):
        run("synth", "--bars", 5_000, "--out", tmp_path / "d.duckdb")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["import", "nowhere.csv", "--out", "d.duckdb"], r"nowhere\.csv: cannot be read: No such file"),
        (["import", ".", "--out", "d.duckdb"], "a folder or a device"),
        (["import", "bars.csv", "--out", "."], "is a folder"),
        (["import", "bars.csv", "--out", "bars.csv"], "is an input file"),
        (
            ["import", "bars.csv", "--out", "d.duckdb", "--instrument", "gold"],
            "'gold': expected a name",
        ),
        (["import", "bars.csv", "--out", "d.duckdb", "--timezone", "Oz"], "time zone 'Oz' is not known"),
        (
            ["import", "bars.csv", "--out", "d.duckdb", "--instrument", "XAU_USD"],
            "size of its pip is not known",
        ),
        (["import", "bars.csv", "--out", "d.duckdb", "--pip", "0.02"], "expected a power of ten"),
        (["import", "bars.csv", "--out", "d.duckdb", "--max-dropped", "5"], "a share from 0 to 1"),
        (["synth", "--bars", "0", "--out", "d.duckdb"], "expected 1 to"),
        (["synth", "--seed", "-1", "--out", "d.duckdb"], "seed -1"),
        (["describe", "--data", "bars.csv"], r"bars\.csv: not a data set"),
        (["describe", "--data", "d.duckdb"], "no such data set"),
        (["sessions", "--data", "d.duckdb"], "no such data set"),
        (["features", "--data", "d.duckdb", "--out", "f.parquet"], "no such data set"),
        (
            ["download", "--from", "2024-01-02", "--to", "2024-01-01", "--out", "d"],
            "is not before --to",
        ),
    ],
)
def test_errors_name_their_cause_and_leave_no_files(
    tmp_path: Path, csv: Path, arguments: list[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OANDA_TOKEN", "token")
    content = csv.read_bytes()
    with pytest.raises(DataError, match=reason) as caught:
        run(*arguments)
    assert caught.value.user_fault
    assert [file.name for file in tmp_path.iterdir()] == ["bars.csv"]
    assert csv.read_bytes() == content


@pytest.mark.parametrize("arguments", [["synth", "--market", "moon", "--out", "d"], ["import"], ["synth"]])
def test_wrong_usage_exits_with_status_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


class FakeOanda(BaseHTTPRequestHandler):
    """Serves the candles of a series in OANDA's format."""

    bars: ClassVar[BarSeries]
    requests: ClassVar[list[str]]
    pip_locations: ClassVar[dict[str, int]] = {"GBP_JPY": -2, "XAU_USD": -1}

    def do_GET(self) -> None:
        self.requests.append(self.path)
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if self.headers["Authorization"] != "Bearer secret-token":
            self.send_response(401)
            self.end_headers()
            return
        if path == "/v3/accounts":
            self.answer({"accounts": [{"id": "101-001-1-001"}]})
            return
        if path == "/v3/accounts/101-001-1-001/instruments":
            name = query["instruments"][0]
            details = {"name": name, "pipLocation": self.pip_locations[name], "displayPrecision": 3}
            self.answer({"instruments": [{**details, "tradeUnitsPrecision": 0, "minimumTradeSize": "1"}]})
            return
        assert path in [f"/v3/instruments/{name}/candles" for name in self.pip_locations]
        start = int(datetime.fromisoformat(query["from"][0]).timestamp())
        first = int(np.searchsorted(self.bars.time_s, start))
        rows = range(first, min(first + int(query["count"][0]), len(self.bars)))
        self.answer({"candles": [self.candle(row) for row in rows]})

    def answer(self, document: dict[str, object]) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def candle(self, row: int) -> dict[str, object]:
        bars = self.bars
        prices = {
            n: getattr(bars, name)[row]
            for n, name in zip("ohlc", ("open", "high", "low", "close"), strict=True)
        }
        sides = {"mid": 0.0, "bid": -0.015, "ask": 0.015}
        return {
            "time": f"{datetime.utcfromtimestamp(int(bars.time_s[row])):%Y-%m-%dT%H:%M:%S}.000000000Z",
            "volume": int(bars.volume[row]),
            "complete": True,
            **{
                side: {n: f"{price + shift:.5f}" for n, price in prices.items()}
                for side, shift in sides.items()
            },
        }

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep quiet."""


@pytest.fixture
def oanda(bars: BarSeries) -> Iterator[str]:
    FakeOanda.bars, FakeOanda.requests = bars[:7_000], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeOanda)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_download(tmp_path: Path, bars: BarSeries, oanda: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "d.duckdb"
    arguments = ["download", "--from", "2020-01-05", "--to", "2020-02-01", "--out", out, "--api-url", oanda]
    with pytest.raises(SettingsError, match="OANDA_TOKEN is not set"):
        run(*arguments)
    monkeypatch.setenv("OANDA_TOKEN", "wrong")
    with pytest.raises(BrokerError, match="401"):
        run(*arguments)
    monkeypatch.setenv("OANDA_TOKEN", "secret-token")
    found = document(*arguments)
    assert (found["bars"], found["source"]) == (7_000, "OANDA candles of GBP_JPY")
    dataset = read_dataset(out)
    for name in ("time_s", "open", "high", "low", "close", "volume"):
        np.testing.assert_array_equal(getattr(dataset.bars, name), getattr(bars[:7_000], name))
    assert (dataset.bars.spread_pips == 3.0).all()
    assert [file.name for file in tmp_path.iterdir()] == ["d.duckdb"]
    gold = document(*arguments, "--instrument", "xauusd")  # the broker defines its pip
    assert (gold["instrument"], gold["pip"]) == ("XAU_USD", 0.1)
    assert (read_dataset(out).bars.spread_pips == 0.3).all()


def test_real_broker_export_through_the_command(tmp_path: Path, real_data: Path) -> None:
    out = tmp_path / "d.duckdb"
    document("import", real_data / "GBPJPY_M1_202304030000_202305151555.mt5.csv.gz", "--out", out)
    found = document("describe", "--data", out)
    assert found["bars"] == 44_048
    shares = found["outcomes"]
    assert shares == pytest.approx({"up": 0.28, "neutral": 0.45, "down": 0.27}, abs=0.01)
    assert all(found["sessions"][split]["non_overlapping"] >= 10 for split in ("train", "validation", "test"))


def test_a_truncated_gzip_file_leaves_the_old_data_set(tmp_path: Path, csv: Path) -> None:
    out, packed = tmp_path / "d.duckdb", tmp_path / "bars.csv.gz"
    run("import", csv, "--out", out)
    before = out.read_bytes()
    packed.write_bytes(gzip.compress(csv.read_bytes())[:-1_000])
    with pytest.raises(FormatError, match=r"bars\.csv\.gz: the gzip data is truncated"):
        run("import", packed, "--out", out)
    assert out.read_bytes() == before
