import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest

from shared.adapters.tables.dataset import (
    SCHEMA_VERSION,
    Dataset,
    export_features,
    read_dataset,
    write_dataset,
)
from shared.environment.outcome import label_outcomes
from shared.errors import DataError
from shared.features.window import FEATURE_NAMES, temporal_features
from shared.market.bar import BarSeries
from shared.market.session import SessionConfig, Split, SplitConfig, index_sessions
from shared.market.synthetic import Market, synthesize


@pytest.fixture(scope="module")
def bars() -> BarSeries:
    return synthesize(Market.REGIMES, 15_000, seed=1)


@pytest.fixture
def path(tmp_path: Path, bars: BarSeries) -> Path:
    path = tmp_path / "d.duckdb"
    write_dataset(path, bars, "synthetic regimes")
    return path


def assert_equal(left: Dataset, right: Dataset) -> None:
    assert left.bars.fingerprint == right.bars.fingerprint == left.fingerprint == right.fingerprint
    np.testing.assert_array_equal(left.features, right.features)
    np.testing.assert_array_equal(left.outcomes, right.outcomes)
    for name in ("starts", "split", "walk"):
        np.testing.assert_array_equal(getattr(left.sessions, name), getattr(right.sessions, name))
    for name in ("session_config", "split_config", "source"):
        assert getattr(left, name) == getattr(right, name)


def test_reading_undoes_writing(tmp_path: Path, bars: BarSeries) -> None:
    spreads = np.where(np.arange(len(bars)) % 3 == 0, np.nan, 1.5)
    configs = SessionConfig(min_mean_range_pips=1.5, max_step_minutes=7), SplitConfig(0.6, 0.2, 2)
    written = write_dataset(tmp_path / "d.duckdb", replace(bars, spread_pips=spreads), "a source", *configs)
    read = read_dataset(tmp_path / "d.duckdb")
    assert_equal(read, written)
    assert read.bars.instrument == bars.instrument
    assert (read.session_config, read.split_config, read.source) == (*configs, "a source")
    assert read.features.dtype == np.float32
    assert read.outcomes.dtype == np.int8
    assert read.bars.time_s.dtype == read.bars.volume.dtype == read.sessions.starts.dtype == np.int64


def test_features_outcomes_and_sessions_are_those_of_the_bars(path: Path, bars: BarSeries) -> None:
    read = read_dataset(path)
    np.testing.assert_array_equal(read.features, temporal_features(bars))
    np.testing.assert_array_equal(read.outcomes, label_outcomes(bars.close))
    index = index_sessions(bars)
    for split in Split:
        assert len(index.every(split)) > 0
        assert read.sessions.every(split).tolist() == index.every(split).tolist()
        assert read.sessions.non_overlapping(split).tolist() == index.non_overlapping(split).tolist()


def test_training_ends_with_the_last_bar_of_the_last_training_session(path: Path, bars: BarSeries) -> None:
    """A session is 360 decisions and the bar after them; validation begins later."""
    dataset = read_dataset(path)
    until = dataset.trained_until
    assert until is not None
    (last,) = np.flatnonzero(bars.time_s == int(until.timestamp()))
    played = [range(start, start + 361) for start in dataset.sessions.every(Split.TRAIN)]
    assert last == max(bar for session in played for bar in session)
    assert last < dataset.sessions.every(Split.VALIDATION).min()


def test_the_tables_have_the_specified_columns(path: Path, bars: BarSeries) -> None:
    with duckdb.connect(str(path), read_only=True) as connection:

        def rows(query: str) -> list[tuple[Any, ...]]:
            return connection.execute(query).fetchall()

        assert [(name, kind) for name, kind, *_ in rows("DESCRIBE bars")] == [
            ("bar_index", "BIGINT"),
            ("time", "TIMESTAMP"),
            *((name, "DOUBLE") for name in ("open", "high", "low", "close")),
            ("volume", "BIGINT"),
            ("spread_pips", "DOUBLE"),
        ]
        assert [name for name, *_ in rows("DESCRIBE features_micro")] == [
            "bar_index",
            *FEATURE_NAMES,
            "outcome",
        ]
        assert [name for name, *_ in rows("DESCRIBE sessions")] == ["start_index", "split"]
        assert rows("SELECT count(*), count(spread_pips) FROM bars") == [(15_000, 0)]
        assert rows("SELECT epoch_us(time) FROM bars WHERE bar_index = 77") == [
            (int(bars.time_s[77]) * 10**6,)
        ]
        keys = dict(rows("SELECT * FROM dataset"))
        assert keys["instrument"] == "GBP_JPY"
        assert keys["pip_location"] == "-2"
        assert keys["fingerprint"] == bars.fingerprint
        assert keys["schema_version"] == str(SCHEMA_VERSION)
        splits = dict(rows("SELECT split, count(*) FROM sessions GROUP BY split"))
        assert set(splits) == {"train", "validation", "test", None}  # None: in no split


def test_a_second_import_replaces_the_first(path: Path) -> None:
    newer = synthesize(Market.OU, 3_000, seed=2)
    write_dataset(path, newer, "newer")
    assert read_dataset(path).source == "newer"
    assert [file.name for file in path.parent.iterdir()] == ["d.duckdb"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_import_leaves_the_old_data_set(
    path: Path, failure: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def interrupt(done: int, total: int) -> None:
        if done == total - 1:
            raise failure

    with pytest.raises(failure):
        write_dataset(path, synthesize(Market.OU, 3_000, seed=2), "newer", progress=interrupt)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["d.duckdb"]


INTERRUPT = """
import os, signal, sys, threading
from pathlib import Path
from shared.adapters.tables.dataset import write_dataset
from shared.market.synthetic import Market, synthesize

def interrupt(done, total):
    kill = lambda: os.kill(os.getpid(), signal.SIGINT)
    if done == int(sys.argv[2]):
        threading.Timer(0.01, kill).start() if done < total else kill()

try:
    write_dataset(Path(sys.argv[1]), synthesize(Market.OU, 200_000, 2), "newer", progress=interrupt)
    print("written")
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("table", [0, 1, 4])
def test_ctrl_c_at_any_moment_leaves_the_old_or_the_new_data_set(path: Path, table: int) -> None:
    # With tables 0 and 1 the signal arrives inside DuckDB's code, or after the import has finished.
    command = [sys.executable, "-c", INTERRUPT, str(path), str(table)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout in ("written\n", "interrupted\n"), done.stderr
    assert read_dataset(path).source == (
        "newer" if table == 4 or "written" in done.stdout else "synthetic regimes"
    )
    assert [file.name for file in path.parent.iterdir()] == ["d.duckdb"]


def test_readers_in_other_processes_do_not_exclude_each_other(path: Path) -> None:
    code = f"from shared.adapters.tables.dataset import read_dataset as r; print(len(r({str(path)!r}).bars))"
    with duckdb.connect(str(path), read_only=True):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("15000\n", 0), done.stderr


def test_a_file_of_another_kind_is_never_replaced(tmp_path: Path, bars: BarSeries) -> None:
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    with pytest.raises(DataError, match=r"thesis\.txt exists and is no data set"):
        write_dataset(thesis, bars, "x")
    assert thesis.read_text() == "years of work"
    with pytest.raises(DataError, match="is a folder"):
        write_dataset(tmp_path, bars, "x")
    with pytest.raises(DataError, match=r"below.*cannot be written: Not a directory"):
        write_dataset(thesis / "below" / "d.duckdb", bars, "x")


def test_a_data_set_needs_bars(tmp_path: Path, bars: BarSeries) -> None:
    with pytest.raises(DataError, match="no bars"):
        write_dataset(tmp_path / "d.duckdb", bars[:0], "an empty file")
    assert list(tmp_path.iterdir()) == []


def test_a_single_bar_makes_a_data_set(tmp_path: Path, bars: BarSeries) -> None:
    assert_equal(write_dataset(tmp_path / "d.duckdb", bars[:1], "one"), read_dataset(tmp_path / "d.duckdb"))


def test_the_error_names_a_missing_or_foreign_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.duckdb: no such data set"):
        read_dataset(tmp_path / "nowhere.duckdb")
    with pytest.raises(DataError, match="no such data set"):
        read_dataset(tmp_path)
    for name, content in {"empty": b"", "text": b"time,open\n", "noise": bytes(range(256)) * 99}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: not a data set"):
            read_dataset(tmp_path / name)
    with duckdb.connect(str(tmp_path / "other.duckdb")) as connection:
        connection.execute("CREATE TABLE cats (name VARCHAR)")
    with pytest.raises(DataError, match=r"other\.duckdb.*dataset"):
        read_dataset(tmp_path / "other.duckdb")


def test_a_damaged_file_is_refused(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:5_000])
    with pytest.raises(DataError, match=r"d\.duckdb"):
        read_dataset(path)
    path.write_bytes(content[:12] + bytes(4_000) + content[4_012:])
    with pytest.raises(DataError, match=r"d\.duckdb"):
        read_dataset(path)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ("UPDATE dataset SET value = '99' WHERE key = 'schema_version'", "schema version 99, expected 1"),
        ("DELETE FROM dataset WHERE key = 'schema_version'", "schema version None"),
        ("DELETE FROM dataset WHERE key = 'pip_location'", "pip_location"),
        ("UPDATE dataset SET value = 'many' WHERE key = 'splits.embargo_days'", "many"),
        ("UPDATE bars SET close = close + 0.001 WHERE bar_index = 9", "fingerprint"),
        ("DELETE FROM bars WHERE bar_index = 9", "fingerprint"),
        ("UPDATE dataset SET value = 'EUR_JPY' WHERE key = 'instrument'", "fingerprint"),
        ("UPDATE features_micro SET hour_cos_final = 0 WHERE bar_index = 900", "features"),
        ("UPDATE features_micro SET outcome = 0 WHERE outcome = 2", "features or outcomes"),
        ("DROP TABLE sessions", "sessions"),
    ],
)
def test_an_edited_data_set_is_refused(path: Path, edit: str, reason: str) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute(edit)
    with pytest.raises(DataError, match=reason) as caught:
        read_dataset(path)
    assert "d.duckdb" in str(caught.value)


def test_progress_ends_at_the_total(tmp_path: Path, bars: BarSeries) -> None:
    reported: list[tuple[int, int]] = []
    report: Callable[[int, int], None] = lambda done, total: reported.append((done, total))  # noqa: E731
    write_dataset(tmp_path / "d.duckdb", bars, "x", progress=report)
    assert reported[-1] == (len(reported) - 1, len(reported) - 1)


def test_exported_features_are_those_of_the_data_set(path: Path, bars: BarSeries, tmp_path: Path) -> None:
    dataset, out = read_dataset(path), tmp_path / "f.parquet"
    for _ in range(2):  # an older export is replaced
        export_features(dataset, out)
    frame = pd.read_parquet(out)
    assert list(frame.columns) == ["bar_index", "time", *FEATURE_NAMES, "outcome"]
    assert frame.bar_index.tolist() == list(range(len(bars)))
    assert (frame.time.astype("datetime64[s, UTC]").astype("int64") == bars.time_s).all()
    np.testing.assert_array_equal(frame[list(FEATURE_NAMES)].to_numpy(np.float32), dataset.features)
    assert frame.outcome.dtype == np.int8
    np.testing.assert_array_equal(frame.outcome, dataset.outcomes)
    with duckdb.connect() as connection:
        query = f"SELECT count(*), count(hour_cos_final) FROM '{out}'"
        assert connection.execute(query).fetchall() == [(15_000, 15_000 - 119)]
    (tmp_path / "notes.txt").write_text("mine")
    for taken, why in ((tmp_path, "is a folder"), (tmp_path / "notes.txt", "exists and is no")):
        with pytest.raises(DataError, match=why):
            export_features(dataset, taken)
    assert (tmp_path / "notes.txt").read_text() == "mine"
