import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.runs import Run
from cli.validate import backtest, validate
from shared.adapters.tables.dataset import write_dataset
from shared.adapters.tables.validations import DATABASE, ValidationScope, ValidationStore
from shared.adapters.versions.manifest import Pointer
from shared.errors import CheckpointError, DataError, SettingsError
from tests.services.validator.cases import small_dataset, store_with

app = typer.Typer()
app.command()(validate)
app.command()(backtest)


@pytest.fixture(autouse=True)
def isolated_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, short sessions and cheap settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MM_ENVIRONMENT__SESSION_BARS", "36")
    monkeypatch.setenv("MM_SEARCH__SIMULATIONS", "2")
    monkeypatch.setenv("MM_SIZING__REPEATS", "1")


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """Options for a store with versions 1 and 2 and for the data set that they were trained on."""
    data = small_dataset()
    write_dataset(tmp_path / "d.duckdb", data.bars, data.source, data.session_config, data.split_config)
    store = store_with(tmp_path, 1, 2)
    store.point(Pointer.LATEST, 2)
    return ["--store", str(store.root), "--data", str(tmp_path / "d.duckdb"), "--runs", "20"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_validate_judges_the_latest_version_on_the_validation_split(given: list[str]) -> None:
    document = json.loads(run("validate", *given, "--sessions", "4", "--json"))
    assert (document["version"], document["split"], document["num_sessions"]) == (2, "validation", 4)
    assert document["activity"]["num_decisions"] == 4 * 36
    assert document["num_versions_tried"] == 1


def test_the_settings_are_those_of_the_run_of_the_version(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "profile.toml").write_text("[search]\ndiscount = 0.9\n")
    monkeypatch.setenv("MM_HOME", str(tmp_path))
    monkeypatch.setenv("MM_CHECKPOINTS", given[1])
    data, profile = str(tmp_path / "d.duckdb"), str(tmp_path / "profile.toml")
    Run(str(tmp_path), data, "", "", 0, "", {}, profile).save(tmp_path)
    document = json.loads(run("validate", "--runs", "20", "--sessions", "1", "--json"))
    assert document["standards"]["search"]["discount"] == 0.9


def test_backtest_judges_the_test_split_and_writes_a_page(given: list[str], tmp_path: Path) -> None:
    text = run("backtest", "--checkpoint", "1", *given, "--out", str(tmp_path / "reports"))
    assert "version 1, test split" in text
    assert "moving-average cross" in text
    assert {path.name for path in (tmp_path / "reports").iterdir()} == {"1.json", "1.html", "1.png"}
    report = json.loads((tmp_path / "reports" / "1.json").read_text())
    assert (report["split"], report["purpose"], report["passed_gates"]) == ("test", "on-demand", [])
    run("validate", "--checkpoint", "1", *given, "--sessions", "2", "--out", str(tmp_path / "reports"))
    assert (
        json.loads((tmp_path / "reports" / "1.json").read_text())["num_sessions"] == 2
    )  # it replaced the report on demand


def test_a_report_on_demand_replaces_only_reports_on_demand(given: list[str], tmp_path: Path) -> None:
    """The check comes before the evaluation."""
    service, foreign = tmp_path / "validations", tmp_path / "foreign"
    service.mkdir()
    ValidationStore(service / DATABASE).record_standards(ValidationScope("ab" * 32, "validation"), {})
    with pytest.raises(SettingsError, match="holds the validator service's own reports"):
        run("validate", "--checkpoint", "1", *given, "--split", "train", "--out", str(service))
    assert [path.name for path in service.iterdir()] == [DATABASE]
    foreign.mkdir()
    for name, text in (
        ("1.json", '{"schema_version": 1, "version": 1, "passed_gates": ["paper"]}'),
        ("1.json", '{"purpose": "service"}'),
        ("1.html", "<p>mine"),
        ("1.png", "mine"),
    ):
        (foreign / name).write_text(text)
        with pytest.raises(SettingsError, match=r"foreign/1\.json, or the page or picture beside it, exists"):
            run("validate", "--checkpoint", "1", *given, "--out", str(foreign))
        assert (foreign / name).read_text() == text
        (foreign / name).unlink()
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="is a file, expected a folder"):
        run("validate", "--checkpoint", "1", *given, "--out", str(tmp_path / "file"))


def test_an_unknown_checkpoint_is_refused(given: list[str]) -> None:
    with pytest.raises(CheckpointError, match=r"no version 'promoted'.*latest \(2\)"):
        run("backtest", *given)
    with pytest.raises(CheckpointError, match="no version 9"):
        run("validate", "--checkpoint", "9", *given)


def test_a_missing_data_set_is_refused(given: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data set"):
        run("validate", *given[:2], "--data", str(tmp_path / "absent.duckdb"))
