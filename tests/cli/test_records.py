"""The `runs` commands, compared with sums over the recorded episodes."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.records import NoRecordError, app
from shared.adapters.tables.run_record import RunRecord
from shared.agent.trajectory import Trajectory
from shared.errors import DataError
from tests.shared.messages.trajectories import random_trajectory

EPISODES = 70


def played(numbers: range) -> list[Trajectory]:
    return [random_trajectory(n, 10 + n % 3, version=n // 10) for n in numbers]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with two runs; the second has no episode yet."""
    monkeypatch.setenv("MM_HOME", str(tmp_path))
    for name, episodes in (("one", EPISODES), ("two", 0)):
        record = RunRecord(tmp_path / "runs" / name / "record", update_figures=("loss", "special"))
        record.settings({"seed": 3, "dataset": {"source": f"market {name}"}, "learner": {"batch_size": 64}})
        for episode, trajectory in enumerate(played(range(1, episodes + 1)), 1):
            record.episode(episode, trajectory)
            record.update(episode, episode - (episode >= 5), episode, {"loss": episode}, skipped=episode == 5)
        if episodes:
            record.version(4, episodes, episodes - 1, datetime(2024, 3, 8, tzinfo=UTC), {})
        record.close()
    return tmp_path


def answer(*arguments: str) -> Any:
    return json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)


def check(found: dict[str, Any], episodes: list[Trajectory]) -> None:
    """Compare every figure with its definition."""
    pips = [trade.pips for t in episodes for trade in t.trades]
    actions = np.concatenate([t.actions for t in episodes])
    wanted = {
        "reward": np.mean([t.rewards.sum(dtype=np.float64) for t in episodes]),
        "pips": sum(pips) / len(episodes),
        "trades": len(pips) / len(episodes),
        "expectancy_pips": np.mean(pips),
        "win_rate": np.mean([one > 0 for one in pips]),
        "trade_ratio": np.mean(actions != 0),
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def test_list_has_every_run_with_figures_of_its_last_episodes(home: Path) -> None:
    one, two = answer("list")
    assert (one["record"], one["data"]) == (str(home / "runs" / "one" / "record"), "market one")
    assert (one["episodes"], one["updates"], one["version"], one["seed"]) == (EPISODES, EPISODES - 1, 4, 3)
    check(one, played(range(EPISODES - 49, EPISODES + 1)))
    assert (two["data"], two["episodes"], two["version"], two["reward"]) == ("market two", None, None, None)


def test_show_divides_a_run_into_stretches_of_episodes(home: Path) -> None:
    shown = answer("show", str(home / "runs" / "one" / "record"), "--points", "4")
    assert [row["episode"] for row in shown["trading"]] == [18, 36, 54, 70]
    assert [row["played_by"] for row in shown["trading"]] == [1, 3, 5, 7]
    for row, first in zip(shown["trading"], (1, 19, 37, 55), strict=True):
        check(row, played(range(first, row["episode"] + 1)))
    assert [row["loss"] for row in shown["learning"]] == [9.5, 27.5, 45.5, 62.5]
    assert [row["update"] for row in shown["learning"]] == [17, 35, 53, 69]
    assert [row["skipped"] for row in shown["learning"]] == [1, 0, 0, 0]
    assert [row["special"] for row in shown["learning"]] == [None] * 4
    assert [start["settings"]["learner"] for start in shown["starts"]] == [{"batch_size": 64}]


def test_tables_fit_80_columns(home: Path) -> None:
    runner = CliRunner(env={"COLUMNS": "80"})
    listed = runner.invoke(app, ["list"], catch_exceptions=False).stdout
    words = listed.replace("│", " ").split()
    assert {"one", "two", "version", "episodes", "trading", "70"} <= set(words)
    assert max(map(len, listed.splitlines())) <= 80
    for name, text in (("one", "means of the updates"), ("two", "learner.batch_size")):
        shown = runner.invoke(app, ["show", str(home / "runs" / name / "record")], catch_exceptions=False)
        assert text in shown.stdout
        assert max(map(len, shown.stdout.splitlines())) <= 80
        assert "…" not in shown.stdout


def test_errors_name_missing_and_damaged_records(home: Path) -> None:
    def show(*arguments: str) -> None:
        CliRunner().invoke(app, ["show", *arguments], catch_exceptions=False)

    with pytest.raises(NoRecordError, match=rf"{home}/nowhere: no record of a run \(settings\.json: No such"):
        show(str(home / "nowhere"))
    with pytest.raises(NoRecordError, match=rf"no record in {home}/record; name a folder"):
        show()
    folder = home / "runs" / "one" / "record"
    (part,) = folder.glob("updates-*")
    part.write_bytes(b"PAR1" + bytes(40))
    with pytest.raises(DataError, match=r"updates-\*\.parquet: "):
        show(str(folder))
