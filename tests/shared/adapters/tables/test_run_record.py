"""The record of a run, read with DuckDB and with TensorBoard's own reader."""

import contextlib
import errno
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from shared.adapters.tables.run_record import ResumePoint, RunRecord
from shared.errors import DataError
from tests.shared.messages.trajectories import random_trajectory

_events: Any = event_accumulator  # has no types

MADE_AT = datetime(2024, 3, 8, 21, 58, tzinfo=UTC)


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """Result of a query on the tables `updates`, `episodes`, `versions` and `settings`."""
    with contextlib.closing(duckdb.connect()) as connection:
        for table in ("updates", "episodes", "versions"):
            if list(folder.glob(f"{table}-*")):
                connection.execute(f"create view {table} as from '{folder}/{table}-*.parquet'")
        connection.execute(f"create view settings as from '{folder}/settings.json'")
        return connection.execute(query).fetchall()


def begin(folder: Path, resume_at: ResumePoint | None = None, *, tensorboard: bool = False) -> RunRecord:
    record = RunRecord(
        folder,
        update_figures=("loss", "gradient_norm"),
        version_figures=("win_rate",),
        resume_at=resume_at,
        tensorboard=tensorboard,
    )
    record.settings({"learner": {"learning_rate": 0.002}, "seed": 5})
    return record


def play(record: RunRecord, first: int, last: int, *, sign: float = 1.0) -> None:
    """Two updates per episode; the tenth is skipped, so that updates lag behind attempts."""
    for episode in range(first, last + 1):
        record.episode(episode, random_trajectory(episode))
        for attempt in (2 * episode - 1, 2 * episode):
            skipped = attempt == 10
            update = attempt - (attempt >= 10)
            record.update(attempt, update, episode, {"loss": sign * attempt}, skipped=skipped)


def test_updates_episodes_versions_and_settings_are_recorded(tmp_path: Path) -> None:
    record = begin(tmp_path / "new" / "run")
    play(record, 1, 6)
    record.version(1, 6, 11, MADE_AT, {"win_rate": 0.25, "loss": 3.0})
    record.close()
    folder = tmp_path / "new" / "run"
    updates = rows(
        folder, "select attempt, update, episode, skipped, loss, gradient_norm from updates order by 1"
    )
    assert updates == [(n, n - (n >= 10), (n + 1) // 2, n == 10, float(n), None) for n in range(1, 13)]
    played = [random_trajectory(n) for n in range(1, 7)]
    assert rows(
        folder, "select trajectory_id, worker, version, start_bar, steps from episodes order by episode"
    ) == [(str(t.trajectory_id), t.worker, t.checkpoint_version, t.start_bar, len(t)) for t in played]
    pips = rows(folder, "select sum(pips), sum(trades)::bigint from episodes")
    assert pips == [
        (
            pytest.approx(sum(trade.pips for t in played for trade in t.trades)),
            sum(len(t.trades) for t in played),
        )
    ]
    assert rows(folder, "select version, episode, update, win_rate, epoch(time)::bigint from versions") == [
        (1, 6, 11, 0.25, int(MADE_AT.timestamp()))
    ]
    ((rate, seed, numpy_version, cores),) = rows(
        folder,
        "select settings.learner.learning_rate, settings.seed, libraries.numpy, machine.cores from settings",
    )
    assert (rate, seed, numpy_version) == (0.002, 5, np.__version__)
    assert cores >= 1


def test_resuming_from_a_version_neither_duplicates_nor_loses_rows(tmp_path: Path) -> None:
    record = begin(tmp_path)
    record.version(0, 0, 0, MADE_AT, {})
    play(record, 1, 10)
    record.version(1, 10, 19, MADE_AT, {})
    play(record, 11, 14)
    record.flush()  # then the process is killed
    again = begin(tmp_path, ResumePoint(version=1, episode=10, attempt=20, update=19))
    again.version(1, 10, 19, MADE_AT, {"win_rate": 0.5})
    play(again, 11, 12, sign=-1.0)
    again.close()
    assert rows(tmp_path, "select attempt, loss from updates order by attempt") == [
        (n, float(n) if n <= 20 else -float(n)) for n in range(1, 25)
    ]
    assert rows(tmp_path, "select episode from episodes order by episode") == [(n,) for n in range(1, 13)]
    assert rows(tmp_path, "select version, win_rate from versions order by 1") == [(0, None), (1, 0.5)]
    assert rows(tmp_path, "select version, episode, attempt from settings order by episode") == [
        (0, 0, 0),
        (1, 10, 20),
    ]


def test_a_new_run_in_the_same_folder_replaces_the_old_one(tmp_path: Path) -> None:
    for _ in range(2):
        record = begin(tmp_path)
        record.version(0, 0, 0, MADE_AT, {})
        play(record, 1, 3)
        record.close()
    assert rows(tmp_path, "select count(*), max(episode) from episodes") == [(3, 3)]
    assert rows(tmp_path, "select count(*) from settings") == [(1,)]


def test_settings_of_starts_that_led_to_no_version_are_removed(tmp_path: Path) -> None:
    for episode, attempt in ((0, 0), (0, 0), (10, 20), (30, 70), (10, 20), (10, 25)):
        begin(tmp_path, ResumePoint(episode=episode, attempt=attempt)).close()
    starts = json.loads((tmp_path / "settings.json").read_text())
    assert [(start["episode"], start["attempt"]) for start in starts] == [(0, 0), (10, 20), (10, 25)]


def test_rows_are_on_the_disk_after_a_minute(tmp_path: Path) -> None:
    seconds = 0.0
    record = RunRecord(tmp_path, update_figures=(), clock=lambda: seconds)
    record.settings({})
    for seconds in (30.0, 59.0):
        record.update(int(seconds), 0, 0, {})
        assert list(tmp_path.glob("updates-*")) == []
    seconds = 61.0
    record.update(61, 0, 0, {})
    assert rows(tmp_path, "select attempt from updates order by 1") == [(30,), (59,), (61,)]


def test_the_error_of_a_bad_folder_or_settings_file_names_it(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(DataError, match=r"run: the record of the run cannot be written: .*File exists"):
        begin(tmp_path / "run")
    begin(tmp_path / "other").close()
    (tmp_path / "other" / "settings.json").write_text("[{}]")
    with pytest.raises(DataError, match=r"settings\.json: damaged \(KeyError\('episode'\)\)"):
        begin(tmp_path / "other")
    (tmp_path / "third" / "settings.json").mkdir(parents=True)
    with pytest.raises(DataError, match=r"settings\.json: cannot be read: .*Is a directory"):
        begin(tmp_path / "third")


def test_settings_wait_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    begin(tmp_path).close()
    with monkeypatch.context() as full:
        full.setattr("shared.adapters.tables.run_record.write_atomically", refuse)
        record = begin(tmp_path, ResumePoint(version=1, episode=10, attempt=20))
        with pytest.raises(OSError, match="No space left"):
            record.version(1, 10, 20, MADE_AT, {})
        assert rows(tmp_path, "select episode from settings") == [(0,)]
    record.close()
    assert rows(tmp_path, "select episode from settings order by 1") == [(0,), (10,)]
    assert rows(tmp_path, "select episode from versions") == [(10,)]


def test_a_number_too_large_for_its_column_is_rejected_and_named(tmp_path: Path) -> None:
    record = begin(tmp_path)
    with pytest.raises(DataError, match="episode is 9223372036854775808, the record holds at most"):
        record.version(0, 2**63, 0, MADE_AT, {})
    record.version(0, 2**63 - 1, 0, MADE_AT, {})
    record.close()
    assert rows(tmp_path, "select version, episode from versions") == [(0, 2**63 - 1)]


def curves(folder: Path) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    reader = _events.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    for name in reader.Tags()["scalars"]:
        yield name, [(point.step, point.value) for point in reader.Scalars(name)]


def test_tensorboard_shows_each_step_once_after_a_kill(tmp_path: Path) -> None:
    record = begin(tmp_path, tensorboard=True)
    play(record, 1, 20)
    record.version(1, 20, 39, MADE_AT, {})
    play(record, 21, 30)
    record.flush()  # then the process is killed
    again = begin(tmp_path, ResumePoint(version=1, episode=20, attempt=40, update=39), tensorboard=True)
    play(again, 21, 35, sign=-1.0)
    again.close()
    record.close()
    updates = dict(curves(tmp_path / "tensorboard" / "updates"))
    assert updates == {
        "loss": [(step, (step + 1.0) * (1 if step < 40 else -1)) for step in range(10, 70, 10)]
    }
    episodes = dict(curves(tmp_path / "tensorboard" / "episodes"))
    assert [step for step, _ in episodes["share_hold"]] == list(range(1, 36))
    traded = [n for n in range(1, 36) if random_trajectory(n).trades]
    assert [step for step, _ in episodes["win_rate"]] == traded
