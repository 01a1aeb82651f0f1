"""`selfplay --once` and `--render`: files, pictures, figures and refused options, without Redis."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import selfplay
from services.selfplay.played import read_episode
from shared.adapters.tables.dataset import write_dataset
from shared.adapters.versions.manifest import Pointer
from shared.errors import CheckpointError, DataError, SettingsError
from tests.conftest import ROOT
from tests.services.validator.cases import small_dataset, store_with

STEPS = 36


@pytest.fixture(autouse=True)
def isolated_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, short sessions, small networks and cheap settings."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "MM_ENVIRONMENT__SESSION_BARS": str(STEPS),
        "MM_SEARCH__SIMULATIONS": "2",
        "MM_SELFPLAY__LANES": "2",
        "MM_MODEL__TEMPORAL_CHANNELS": "12",
        "MM_MODEL__STATIC_CHANNELS": "4",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    made = small_dataset()
    write_dataset(tmp_path / "d.duckdb", made.bars, made.source, made.session_config, made.split_config)
    return ["--data", str(tmp_path / "d.duckdb")]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(selfplay.app, list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.stdout


def document(*arguments: str) -> dict[str, Any]:
    summary = json.loads(run(*arguments, "--json"))
    assert isinstance(summary, dict)
    return summary


def test_episodes_are_written_and_summarised(data: list[str], tmp_path: Path) -> None:
    summary = document("--once", "--episodes", "3", "--out", "t.parquet", "--seed", "4", *data)
    read = [read_episode(Path("t.parquet"), number).trajectory for number in range(3)]
    assert (summary["episodes"], summary["decisions"], summary["version"]) == (3, 3 * STEPS, 0)
    assert summary["out"] == "t.parquet"
    assert summary["fingerprint"] == read[0].dataset
    assert summary["trades"] == sum(len(one.trades) for one in read)
    pips = sum(trade.pips for one in read for trade in one.trades)
    assert summary["pips_per_episode"] == pytest.approx(pips / 3)
    shares = sum(summary[f"share_{action}"] for action in ("hold", "buy", "sell", "close"))
    assert shares == pytest.approx(1.0)
    assert "picture" not in summary


def test_the_seed_determines_the_episodes(data: list[str]) -> None:
    for name, seed in (("a", "4"), ("b", "4"), ("c", "5")):
        run("--once", "--episodes", "2", "--out", name, "--seed", seed, *data)
    assert Path("a").read_bytes() == Path("b").read_bytes()
    assert Path("a").read_bytes() != Path("c").read_bytes()


def test_a_version_is_chosen_by_number_or_pointer(data: list[str], tmp_path: Path) -> None:
    store = store_with(tmp_path, 1, 2)
    store.point(Pointer.LATEST, 2)
    at = ("--store", str(store.root), *data)
    for checkpoint, version in (("1", 1), ("latest", 2)):
        summary = document("--once", "--out", f"{version}.parquet", "--checkpoint", checkpoint, *at)
        assert summary["version"] == version
        assert read_episode(Path(f"{version}.parquet"), 0).trajectory.checkpoint_version == version
    with pytest.raises(CheckpointError, match=r"no version 'best'.*latest \(2\)"):
        run("--once", "--out", "x", "--checkpoint", "best", *at)
    with pytest.raises(CheckpointError, match="no version 9"):
        run("--once", "--out", "x", "--checkpoint", "9", *at)
    assert not Path("x").exists()


def test_an_episode_is_drawn_when_played_or_later_from_its_file(data: list[str]) -> None:
    summary = document("--once", "--render", "1", "--out", "t.parquet", *data)
    assert (summary["episodes"], summary["picture"]) == (2, "selfplay-1.png")
    run("--render", "1", "--from", "t.parquet", "--picture", "later.png")
    assert Path("later.png").read_bytes() == Path("selfplay-1.png").read_bytes()


def test_without_data_a_synthetic_market_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_MARKET_BARS", "5000")
    summary = document("--once", "--out", "t.parquet")
    assert summary["data"].endswith("synthetic-ou-5000-1.duckdb")
    assert Path(summary["data"]).is_file()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("--once",), SettingsError, "expected --out FILE"),
        (("--out", "x"), SettingsError, "expected --once to play"),
        (("--render", "0"), SettingsError, "--from FILE"),
        (("--once", "--render", "0", "--from", "x"), SettingsError, "without --once"),
        (
            ("--render", "0", "--from", "x", "--episodes", "2"),
            SettingsError,
            "--episodes: expected it with --once",
        ),
        (("--once", "--episodes", "2", "--render", "2"), SettingsError, "numbered 0 to 1"),
        (("--render", "0", "--from", "x"), DataError, "x: no such file"),
        (("--once", "--out", "absent/x"), DataError, "folder that exists"),
        (("--once", "--render", "0", "--picture", "absent/x.png"), DataError, "folder that exists"),
        (("--once", "--out", "x", "--data", "absent.duckdb"), DataError, "no such data set"),
    ],
)
def test_invalid_options_are_refused(arguments: tuple[str, ...], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        run(*arguments)
    assert list(Path().iterdir()) == []


def test_an_existing_file_is_not_overwritten(data: list[str]) -> None:
    Path("mine").write_text("precious")
    with pytest.raises(DataError, match="mine exists"):
        run("--once", "--out", "mine", *data)
    assert Path("mine").read_text() == "precious"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", "selfplay", *arguments],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )


def test_help_describes_the_service_and_the_command_once() -> None:
    service = command("--help")
    assert service.returncode == 0
    assert "selfplay --once --help" in service.stdout
    assert "MM_SELFPLAY__LANES" in service.stdout
    once = command("--once", "--help")
    assert once.returncode == 0
    assert "--render" in once.stdout
    assert "MM_SELFPLAY__LANES" not in once.stdout
    none = command("--once", "--episodes", "0", "--out", "x")
    assert none.returncode == 2
    assert "episodes" in none.stderr
    refused = command("--once")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
