"""The database of judgements and their pending announcements."""

import contextlib
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest

from shared.adapters.tables import validations
from shared.adapters.tables.validations import Candidate, Record, ValidationScope, ValidationStore
from shared.errors import DataError, RecordsUnavailableError
from shared.messages.schemas import ValidationReported
from tests.shared.adapters.judgements import announcement_of, row_of

SCOPE = ValidationScope("5e" * 32, "validation")
ONE_MORE_BAR = ValidationScope("ab" * 32, "validation")
JUDGED = Candidate(SCOPE, "EUR_USD", 9, "99" * 32)


def record(records: ValidationStore, version: int, scope: ValidationScope = SCOPE) -> ValidationReported:
    """Record a judgement; returns its pending announcement."""
    announcement = announcement_of(version, scope)
    records.record(row_of(scope, version), np.array([1, 2], np.int64), np.array([0.5, 3.5]), announcement)
    return announcement


def tried(
    records: ValidationStore,
    version: int,
    days: list[int],
    pips: list[float],
    *,
    scope: ValidationScope = SCOPE,
    instrument: str = "EUR_USD",
    weights: str | None = None,
    at: str = "2024-03-08T21:58:00+00:00",
) -> None:
    """Record a judgement on some days; the weights are derived from the version unless given."""
    row = replace(
        row_of(scope, version),
        instrument=instrument,
        weights_sha256=weights or f"{version:064x}",
        created_at=at,
    )
    records.record(row, np.array(days, np.int64), np.array(pips), announcement_of(version, scope))


def history(
    records: ValidationStore, days: list[int], candidate: Candidate = JUDGED
) -> tuple[list[list[float | None]], int]:
    """Columns of the history with None for NaN, and the number of older trials."""
    pips, num_older = records.history(candidate, np.array(days, np.int64))
    return [[None if np.isnan(x) else float(x) for x in column] for column in pips.T], num_older


def sql(records: ValidationStore, statement: str) -> None:
    with contextlib.closing(duckdb.connect(str(records.path))) as connection:
        connection.execute(statement)


def test_an_announcement_is_pending_until_it_is_marked_announced(tmp_path: Path) -> None:
    records = ValidationStore(tmp_path / "validations.duckdb")
    elsewhere = ValidationScope("ab" * 32, "validation")
    assert records.pending(SCOPE) == []
    assert not records.path.exists()
    first, second = record(records, 1), record(records, 2)
    record(records, 2, elsewhere)
    assert records.pending(SCOPE) == [first, second]
    records.mark_announced(SCOPE, 1)
    assert records.pending(SCOPE) == [second]
    records.mark_announced(SCOPE, 2)
    assert records.pending(SCOPE) == []
    assert len(records.pending(elsewhere)) == 1
    assert records.done(SCOPE) == {1, 2}


def test_a_database_without_the_table_of_announcements_is_migrated(tmp_path: Path) -> None:
    records = ValidationStore(tmp_path / "validations.duckdb")
    record(records, 1)
    sql(records, "DROP TABLE unannounced")
    assert records.pending(SCOPE) == []
    second = record(records, 2)
    assert records.pending(SCOPE) == [second]
    assert records.done(SCOPE) == {1, 2}


def test_the_error_names_an_announcement_of_another_schema(tmp_path: Path) -> None:
    records = ValidationStore(tmp_path / "validations.duckdb")
    for version in (6, 7):
        record(records, version)
    sql(records, "UPDATE unannounced SET announcement = '{}' WHERE version = 7")
    with pytest.raises(DataError, match=r"validations\.duckdb: the announcement of version 7 has another"):
        records.pending(SCOPE)


def test_a_record_has_the_reports_hash_and_the_present_settings(tmp_path: Path) -> None:
    records = ValidationStore(tmp_path / "validations.duckdb")
    assert records.recorded(SCOPE, 1) is None
    record(records, 1)
    assert records.recorded(SCOPE, 1) == Record("ab" * 32, None)
    for years in (3.0, 2.0):
        records.record_standards(SCOPE, {"gate": {"live_min_years": years}})
    assert records.recorded(SCOPE, 1) == Record("ab" * 32, {"gate": {"live_min_years": 2.0}})
    assert records.recorded(ValidationScope("ab" * 32, "validation"), 1) is None
    assert records.judged(SCOPE) == {1}


def test_a_database_of_an_earlier_release_has_judgements_without_hashes(tmp_path: Path) -> None:
    records = ValidationStore(tmp_path / "validations.duckdb")
    record(records, 1)
    of_earlier_release(records)
    sql(records, "ALTER TABLE validations DROP COLUMN report_sha256")
    sql(records, "DROP TABLE standing")
    with pytest.raises(DataError, match="standing"):
        records.recorded(SCOPE, 1)  # reading must not migrate
    records.record_standards(SCOPE, {})
    assert records.recorded(SCOPE, 1) == Record(None, {})
    record(records, 2)
    assert records.recorded(SCOPE, 2) == Record("ab" * 32, {})


def of_earlier_release(records: ValidationStore) -> None:
    """Convert the file to the schema of a release without instruments and weights."""
    for statement in (
        """CREATE TABLE validation_days (version BIGINT, dataset VARCHAR, split VARCHAR, day BIGINT,
           pips DOUBLE, PRIMARY KEY (dataset, split, version, day))""",
        """INSERT INTO validation_days SELECT version, dataset, split, unnest(days), unnest(pips)
           FROM trials ORDER BY random()""",
        "DROP TABLE trials",
        "ALTER TABLE validations DROP COLUMN instrument",
        "ALTER TABLE validations DROP COLUMN weights_sha256",
    ):
        sql(records, statement)


def test_a_trial_still_counts_after_bars_or_sessions_are_added(tmp_path: Path) -> None:
    records = ValidationStore(tmp_path / "validations.duckdb")
    assert history(records, [10, 11]) == ([], 0)
    assert not records.path.exists()
    tried(records, 1, [10, 11, 12], [1.0, 2.0, 3.0])
    tried(records, 2, [12, 13], [-4.0, 5.0], scope=ONE_MORE_BAR)
    assert history(records, [10, 11, 12]) == ([[1.0, 2.0, 3.0], [None, None, -4.0]], 0)
    for scope in (SCOPE, ONE_MORE_BAR, ValidationScope("77" * 32, "validation")):
        seen = history(records, [9, 11, 12, 13, 14], replace(JUDGED, scope=scope))
        assert seen == ([[None, 2.0, 3.0, None, None], [None, None, -4.0, 5.0, None]], 0)
    assert history(records, [13]) == ([[5.0]], 0)


def test_other_instruments_splits_days_and_the_candidate_are_not_trials(
    tmp_path: Path,
) -> None:
    records = ValidationStore(tmp_path / "validations.duckdb")
    tried(records, 1, [10, 11], [1.0, 2.0], instrument="GBP_JPY")
    tried(records, 2, [10, 11], [1.0, 2.0], scope=ValidationScope(SCOPE.dataset, "test"))
    tried(records, 3, [8, 12], [1.0, 2.0])
    tried(records, 9, [10, 11], [1.0, 2.0], weights=JUDGED.weights_sha256)
    tried(records, 9, [10, 11], [1.0, 2.0], weights=JUDGED.weights_sha256, scope=ONE_MORE_BAR)
    assert history(records, [10, 11]) == ([], 0)


def test_a_version_of_another_run_with_the_same_number_is_another_trial(tmp_path: Path) -> None:
    """The table of judgements has one version 9 per scope; the trials have both."""
    records = ValidationStore(tmp_path / "validations.duckdb")
    tried(records, 9, [10], [1.0])
    tried(records, 9, [10], [2.0], weights="aa" * 32, at="2024-03-09T00:00:00+00:00")
    assert history(records, [10]) == ([[1.0], [2.0]], 0)
    tried(records, 9, [10, 11], [3.0, 4.0], weights="aa" * 32, at="2024-03-10T00:00:00+00:00")
    assert history(records, [10, 11]) == ([[1.0, None], [3.0, 4.0]], 0)  # judged again: the same trial
    assert records.judged(SCOPE) == {9}


def test_only_the_latest_trials_are_compared_and_older_ones_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = ValidationStore(tmp_path / "validations.duckdb")
    for version in range(5):
        tried(records, version, [10], [float(version)], at=f"2024-03-0{9 - version}T00:00:00+00:00")
    monkeypatch.setattr(validations, "MAX_TRIALS", 2)
    assert history(records, [10]) == ([[1.0], [0.0]], 3)
    assert history(records, [11]) == ([], 0)


def test_trials_of_an_earlier_release_still_count(tmp_path: Path) -> None:
    """Their instrument is unknown, so they count for every one. Judging the version again adds no trial."""
    records = ValidationStore(tmp_path / "validations.duckdb")
    tried(records, 1, [10, 11], [1.0, 2.0])
    tried(records, 2, [11, 12], [3.0, 4.0], scope=ONE_MORE_BAR)
    of_earlier_release(records)
    old = [[1.0, 2.0, None], [None, 3.0, 4.0]]
    assert history(records, [10, 11, 12]) == (old, 0)
    assert history(records, [10, 11, 12]) == (old, 0)  # moved once
    assert history(records, [10, 11], replace(JUDGED, version=1)) == ([[None, 3.0]], 0)
    assert history(records, [10, 11], replace(JUDGED, version=1, scope=ONE_MORE_BAR))[0][0] == [1.0, 2.0]
    tried(records, 1, [10, 11], [5.0, 6.0])
    assert sorted(history(records, [10, 11, 12])[0], key=str) == [[5.0, 6.0, None], [None, 3.0, 4.0]]


HOLDER = """
import sys, duckdb
with duckdb.connect(sys.argv[1]) as held:
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_read_waits_until_another_process_closes_the_file(tmp_path: Path) -> None:
    records = ValidationStore(tmp_path / "validations.duckdb")
    record(records, 1)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(records.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(duckdb.IOException, match="lock"):
            duckdb.connect(str(records.path), read_only=True)
        closing = threading.Timer(0.3, holder.stdin.close)
        closing.start()
        assert records.judged(SCOPE) == {1}
        closing.join()
    record(records, 2)
    assert records.judged(SCOPE) == {1, 2}


def test_a_file_that_stays_locked_is_an_error_after_the_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = ValidationStore(tmp_path / "validations.duckdb")
    record(records, 1)
    monkeypatch.setattr(validations, "LOCK_SECONDS", 0.1)
    with (
        contextlib.closing(duckdb.connect(str(records.path))),
        pytest.raises(RecordsUnavailableError, match=r"validations\.duckdb"),
    ):
        records.judged(SCOPE)
