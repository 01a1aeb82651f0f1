"""The validator's judgements in one DuckDB file, which only the validator writes.

Tables:
- `validations`: a row per version, data set and split, with the SHA-256 of its report.
- `standing`: the settings by which the service judges.
- `trials`: daily profits of every version ever tried, for the deflated Sharpe ratio of later versions.
- `skipped`: versions that could not be judged, with the reason.
- `unannounced`: announcements that may not have been sent yet.

DuckDB locks an open file against other processes, so the file is open only during a read or write, and a
process waits until the other has closed it.
"""

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from pydantic import ValidationError

from shared.adapters.tables.databases import begin_database
from shared.errors import DataError, RecordsUnavailableError
from shared.messages.schemas import ValidationReported
from shared.numeric import Float64, Int64

_SCHEMA = """
CREATE TABLE IF NOT EXISTS validations (
    version BIGINT, dataset VARCHAR, split VARCHAR, created_at VARCHAR, num_sessions BIGINT,
    num_trades BIGINT, net_pips DOUBLE, expectancy_pips DOUBLE, win_rate DOUBLE, profit_factor DOUBLE,
    sqn DOUBLE, sqn100 DOUBLE, sharpe DOUBLE, sortino DOUBLE, max_drawdown_pips DOUBLE,
    max_drawdown DOUBLE, safe_f DOUBLE, car25_percent DOUBLE, deflated_sharpe DOUBLE, overfitting DOUBLE,
    passed_gates VARCHAR, seconds DOUBLE, report_sha256 VARCHAR, instrument VARCHAR, weights_sha256 VARCHAR,
    PRIMARY KEY (dataset, split, version)
);
ALTER TABLE validations ADD COLUMN IF NOT EXISTS report_sha256 VARCHAR;
ALTER TABLE validations ADD COLUMN IF NOT EXISTS instrument VARCHAR;
ALTER TABLE validations ADD COLUMN IF NOT EXISTS weights_sha256 VARCHAR;
CREATE TABLE IF NOT EXISTS standing (
    dataset VARCHAR, split VARCHAR, standards VARCHAR, PRIMARY KEY (dataset, split)
);
CREATE TABLE IF NOT EXISTS trials (
    instrument VARCHAR, split VARCHAR, dataset VARCHAR, version BIGINT, weights_sha256 VARCHAR,
    judged_at VARCHAR, days BIGINT[], pips DOUBLE[]
);
CREATE TABLE IF NOT EXISTS skipped (
    version BIGINT, dataset VARCHAR, split VARCHAR, reason VARCHAR, PRIMARY KEY (dataset, split, version)
);
CREATE TABLE IF NOT EXISTS unannounced (
    version BIGINT, dataset VARCHAR, split VARCHAR, announcement VARCHAR,
    PRIMARY KEY (dataset, split, version)
);
"""

#: Table in which earlier releases kept the daily profits of the last judgement of each version. They recorded
#: neither instrument nor weights, which stay NULL.
_EARLIER_DAYS = "validation_days"

_MOVE_EARLIER_DAYS = """
BEGIN;
INSERT INTO trials
    SELECT NULL, split, dataset, version, NULL, coalesce(any_value(created_at), ''),
           list(day ORDER BY day), list(pips ORDER BY day)
    FROM validation_days LEFT JOIN validations USING (dataset, split, version)
    GROUP BY dataset, split, version;
DROP TABLE validation_days;
COMMIT;
"""

#: Selects the trials of one version: those of the same weights, and those of an earlier release, which
#: recorded no weights, for the same version in this scope.
_SAME_TRIAL = """split = $split AND (
    weights_sha256 = $weights OR (weights_sha256 IS NULL AND dataset = $dataset AND version = $version)
)"""

#: At most this many trials, the newest, are compared day by day; older ones are only counted.
MAX_TRIALS = 2_000

#: Name of the database in the folder of the reports.
DATABASE = "validations.duckdb"

#: How long a process waits for another to close the file, which normally takes milliseconds.
LOCK_SECONDS = 10.0


@dataclass(frozen=True)
class ValidationScope:
    """Data set and split of a judgement. Only judgements of the same scope are compared."""

    dataset: str  # fingerprint
    split: str


@dataclass(frozen=True)
class Candidate:
    """The version that is being judged."""

    scope: ValidationScope
    instrument: str
    version: int
    weights_sha256: str


@dataclass(frozen=True)
class ValidationRow:
    """Row of one judged version. Undefined numbers are None."""

    version: int
    dataset: str
    split: str
    created_at: str
    num_sessions: int
    num_trades: int
    net_pips: float
    expectancy_pips: float | None
    win_rate: float | None
    profit_factor: float | None
    sqn: float | None
    sqn100: float | None
    sharpe: float | None
    sortino: float | None
    max_drawdown_pips: float
    max_drawdown: float
    safe_f: float | None
    car25_percent: float | None
    deflated_sharpe: float | None
    overfitting: float | None
    passed_gates: str  # separated by commas
    seconds: float
    report_sha256: str
    instrument: str
    weights_sha256: str


@dataclass(frozen=True)
class Record:
    """The recorded hash and settings of a judgement."""

    report_sha256: str | None  # None if an earlier release wrote the row
    standards: Mapping[str, object] | None  # the service's present settings; None if it recorded none


class ValidationStore:
    """The database, which is created by the first write.

    Every method raises RecordsUnavailableError while another program has the file open or the disk is full,
    and DataError if the file is damaged or its folder cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def record(
        self, row: ValidationRow, days: Int64, daily_pips: Float64, announcement: ValidationReported
    ) -> None:
        """Write a judgement and its pending announcement; replace any of the same version and scope.

        The trial replaces only a trial of the same weights and scope. A version of another run or data set
        is a trial of its own, even if it has the same number.
        """
        key = [row.version, row.dataset, row.split]
        columns = ", ".join(item.name for item in fields(row))
        values = ", ".join("?" for _ in fields(row))
        trial = {
            "split": row.split,
            "dataset": row.dataset,
            "version": row.version,
            "weights": row.weights_sha256,
        }
        with self._open(write=True) as connection:
            connection.begin()
            connection.execute(
                f"INSERT OR REPLACE INTO validations ({columns}) VALUES ({values})",  # noqa: S608 - our own names
                astuple(row),
            )
            connection.execute(f"DELETE FROM trials WHERE {_SAME_TRIAL} AND dataset = $dataset", trial)  # noqa: S608 - a constant
            connection.execute(
                """INSERT INTO trials
                   VALUES ($instrument, $split, $dataset, $version, $weights, $at, $days, $pips)""",
                {
                    **trial,
                    "instrument": row.instrument,
                    "at": row.created_at,
                    "days": days.tolist(),
                    "pips": daily_pips.tolist(),
                },
            )
            connection.execute("DELETE FROM skipped WHERE version = ? AND dataset = ? AND split = ?", key)
            connection.execute(
                "INSERT OR REPLACE INTO unannounced VALUES (?, ?, ?, ?)",
                [*key, announcement.model_dump_json()],
            )
            connection.commit()

    def record_standards(self, scope: ValidationScope, standards: Mapping[str, object]) -> None:
        """Record the settings by which the service judges from now on."""
        with self._open(write=True) as connection:
            connection.execute(
                "INSERT OR REPLACE INTO standing VALUES (?, ?, ?)",
                [scope.dataset, scope.split, json.dumps(standards, sort_keys=True, allow_nan=False)],
            )

    def recorded(self, scope: ValidationScope, version: int) -> Record | None:
        """The record of a version's judgement; None if it was not judged in this scope.

        Raises:
            DataError: the file is damaged, or an earlier release wrote it.
        """
        rows = self._rows(
            """SELECT report_sha256, standards FROM validations LEFT JOIN standing USING (dataset, split)
               WHERE dataset = ? AND split = ? AND version = ?""",
            scope,
            version,
        )
        return Record(rows[0][0], json.loads(rows[0][1]) if rows[0][1] else None) if rows else None

    def judged(self, scope: ValidationScope) -> set[int]:
        """Versions with a judgement in this scope."""
        return {
            version
            for (version,) in self._rows(
                "SELECT version FROM validations WHERE dataset = ? AND split = ?", scope
            )
        }

    def pending(self, scope: ValidationScope) -> list[ValidationReported]:
        """Announcements that are not yet marked as announced, ordered by version.

        Raises:
            DataError: an announcement has another schema.
        """
        if not self.path.exists():
            return []
        with self._open(write=True) as connection:  # adds the table to files of earlier releases
            found = connection.execute(
                "SELECT version, announcement FROM unannounced "
                "WHERE dataset = ? AND split = ? ORDER BY version",
                [scope.dataset, scope.split],
            ).fetchall()
        return [self._announcement(version, announcement) for version, announcement in found]

    def _announcement(self, version: int, written: str) -> ValidationReported:
        try:
            return ValidationReported.model_validate_json(written)
        except ValidationError as invalid:
            raise DataError(
                f"{self.path}: the announcement of version {version} has another schema; "
                "delete it from the table `unannounced`"
            ) from invalid

    def mark_announced(self, scope: ValidationScope, version: int) -> None:
        """Record that a judgement was announced and its promotion is complete."""
        with self._open(write=True) as connection:
            connection.execute(
                "DELETE FROM unannounced WHERE version = ? AND dataset = ? AND split = ?",
                [version, scope.dataset, scope.split],
            )

    def skip(self, scope: ValidationScope, version: int, reason: str) -> None:
        """Record a version that cannot be judged, so that it is not tried again."""
        with self._open(write=True) as connection:
            connection.execute(
                "INSERT OR REPLACE INTO skipped VALUES (?, ?, ?, ?)",
                [version, scope.dataset, scope.split, reason],
            )

    def done(self, scope: ValidationScope) -> set[int]:
        """Versions that were judged or skipped in this scope."""
        return {
            version
            for table in ("validations", "skipped")
            for (version,) in self._rows(
                f"SELECT version FROM {table} WHERE dataset = ? AND split = ?",  # noqa: S608 - our own names
                scope,
            )
        }

    def sqn100(self, scope: ValidationScope, version: int) -> tuple[bool, float | None]:
        """Whether a version passed a gate in this scope, and its SQN capped at 100 trades."""
        rows = self._rows(
            """SELECT sqn100 FROM validations
               WHERE dataset = ? AND split = ? AND version = ? AND passed_gates <> ''""",
            scope,
            version,
        )
        return bool(rows), rows[0][0] if rows else None

    def history(self, candidate: Candidate, days: Int64) -> tuple[Float64, int]:
        """Earlier trials on a candidate's instrument and split that cover any of these days.

        Every version tried on the same market counts, from any data set, run and number of sessions, unless
        it has the candidate's own weights. Earlier releases did not record the instrument, so their trials
        count for every instrument.

        Args:
            candidate: the version that is being judged.
            days: `[D]` trading days, ascending.
        Returns:
            `[D, V]` pips of the last `MAX_TRIALS` trials in the order of their judgement, NaN on days that a
            trial does not cover; and the number of trials before these.
        """
        if not self.path.exists():
            return np.zeros((len(days), 0)), 0
        with self._open(write=True) as connection:  # migrates the table of earlier releases
            found = connection.execute(
                f"""SELECT days, pips, count(*) OVER () FROM trials
                    WHERE (instrument = $instrument OR instrument IS NULL) AND split = $split
                    AND list_has_any(days, $days) AND NOT coalesce(({_SAME_TRIAL}), false)
                    ORDER BY judged_at DESC, version DESC, dataset, weights_sha256 LIMIT $limit""",  # noqa: S608 - a constant
                {
                    "instrument": candidate.instrument,
                    "split": candidate.scope.split,
                    "dataset": candidate.scope.dataset,
                    "version": candidate.version,
                    "weights": candidate.weights_sha256,
                    "days": days.tolist(),
                    "limit": MAX_TRIALS,
                },
            ).fetchall()
        pips = np.full((len(days), len(found)), np.nan)
        for column, (trial_days, trial_pips, _) in enumerate(reversed(found)):
            _, here, there = np.intersect1d(days, trial_days, assume_unique=True, return_indices=True)
            pips[here, column] = np.array(trial_pips)[there]
        return pips, (found[0][2] if found else 0) - len(found)

    def _rows(self, query: str, scope: ValidationScope, *more: object) -> list[tuple[Any, ...]]:
        if not self.path.exists():
            return []
        with self._open(write=False) as connection:
            return connection.execute(query, [scope.dataset, scope.split, *more]).fetchall()

    @contextlib.contextmanager
    def _open(self, *, write: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            if write:
                begin_database(self.path, _SCHEMA)
            with self._connect(write=write) as connection:
                if write:
                    connection.execute(_SCHEMA)
                    if connection.execute(
                        "SELECT 1 FROM duckdb_tables() WHERE table_name = ?", [_EARLIER_DAYS]
                    ).fetchall():
                        connection.execute(_MOVE_EARLIER_DAYS)
                yield connection
        except (duckdb.Error, OSError) as failure:
            transient = _is_locked(failure) or os.strerror(errno.ENOSPC) in str(failure)
            raise (RecordsUnavailableError if transient else DataError)(
                f"{self.path}: {failure}"
            ) from failure

    def _connect(self, *, write: bool) -> duckdb.DuckDBPyConnection:
        """Open the file as soon as no other process, or thread, has it open."""
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return duckdb.connect(str(self.path), read_only=not write)
            except (duckdb.IOException, duckdb.ConnectionException) as busy:
                if not _is_locked(busy) or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)


def _is_locked(failure: Exception) -> bool:
    """Whether another process, or another thread, has the file open."""
    return "Could not set lock" in str(failure) or "different configuration" in str(failure)
