"""What the validator has judged: one DuckDB file, written by the validator alone.

`validations` has a row per version, data set and split, with the SHA-256 of its report; `standing` the
settings by which the service judges; `trials` the daily profits of everything that was ever tried, by
which later versions are deflated; `skipped` the versions that could not be judged, and why; `untold` the
announcements of judgements that may not have been made yet. The file is open only while it is read or
written, since DuckDB keeps other processes out meanwhile; each waits for the other.
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
from shared.errors import DataError, RecordsAwayError
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
CREATE TABLE IF NOT EXISTS untold (
    version BIGINT, dataset VARCHAR, split VARCHAR, announcement VARCHAR,
    PRIMARY KEY (dataset, split, version)
);
"""

#: The table in which earlier releases kept the daily profits of the last judgement of each version. They
#: wrote down neither instrument nor weights, which stay NULL.
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

#: The row of a version as a trial: of the same weights, or judged by an earlier release on this ground.
_SAME_TRIAL = """split = $split AND (
    weights_sha256 = $weights OR (weights_sha256 IS NULL AND dataset = $dataset AND version = $version)
)"""

#: So many trials are compared day by day, the last judged; those before them are only counted.
MAX_TRIALS = 2_000

#: The database's name in the folder of the reports.
DATABASE = "validations.duckdb"

#: How long a process waits while another has the file open, which takes milliseconds.
LOCK_SECONDS = 10.0


@dataclass(frozen=True)
class Ground:
    """The bars and the split of a judgement; only judgements on the same ground are compared."""

    dataset: str  # fingerprint
    split: str


@dataclass(frozen=True)
class Candidate:
    """The identity of a version that is judged."""

    ground: Ground
    instrument: str
    version: int
    weights_sha256: str


@dataclass(frozen=True)
class ValidationRow:
    """One judged version, as the table has it; None where a number is not defined."""

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
    """What the service wrote down of a judgement, apart from its report."""

    report_sha256: str | None  # None where an earlier release judged
    standards: Mapping[str, object] | None  # by which the service judges now; None where it recorded none


class ValidationStore:
    """The file; made when first written.

    Every method raises RecordsAwayError while another program has the file open or the disk is full, and
    DataError where the file is damaged or its folder refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def record(
        self, row: ValidationRow, days: Int64, daily_pips: Float64, announcement: ValidationReported
    ) -> None:
        """Write one judgement, untold; an earlier one of the same version on the same ground is replaced.

        As a trial it replaces only one of the same weights on the same ground: a version of another run
        or data set was tried, whatever its number.
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
                "INSERT OR REPLACE INTO untold VALUES (?, ?, ?, ?)", [*key, announcement.model_dump_json()]
            )
            connection.commit()

    def stand(self, ground: Ground, standards: Mapping[str, object]) -> None:
        """Record the settings by which the service judges from now on."""
        with self._open(write=True) as connection:
            connection.execute(
                "INSERT OR REPLACE INTO standing VALUES (?, ?, ?)",
                [ground.dataset, ground.split, json.dumps(standards, sort_keys=True, allow_nan=False)],
            )

    def recorded(self, ground: Ground, version: int) -> Record | None:
        """What was written down of a version's judgement on a ground; None where it was not judged.

        Raises:
            DataError: the file is damaged, or an earlier release wrote it.
        """
        rows = self._rows(
            """SELECT report_sha256, standards FROM validations LEFT JOIN standing USING (dataset, split)
               WHERE dataset = ? AND split = ? AND version = ?""",
            ground,
            version,
        )
        return Record(rows[0][0], json.loads(rows[0][1]) if rows[0][1] else None) if rows else None

    def judged(self, ground: Ground) -> set[int]:
        """Versions that have a judgement on a ground."""
        return {
            version
            for (version,) in self._rows(
                "SELECT version FROM validations WHERE dataset = ? AND split = ?", ground
            )
        }

    def untold(self, ground: Ground) -> list[ValidationReported]:
        """Announcements of judgements on a ground that `told` was not called for, by version.

        Raises:
            DataError: one is of another schema.
        """
        if not self.path.exists():
            return []
        with self._open(write=True) as connection:  # which adds the table to a file that has none
            found = connection.execute(
                "SELECT version, announcement FROM untold WHERE dataset = ? AND split = ? ORDER BY version",
                [ground.dataset, ground.split],
            ).fetchall()
        try:
            return [ValidationReported.model_validate_json(announcement) for _, announcement in found]
        except ValidationError as other:
            versions = ", ".join(str(version) for version, _ in found)
            raise DataError(
                f"{self.path}: the announcement of version {versions} is of another schema; "
                "delete it from the table `untold`"
            ) from other

    def told(self, ground: Ground, version: int) -> None:
        """Record that a judgement was announced and its promotion is done."""
        with self._open(write=True) as connection:
            connection.execute(
                "DELETE FROM untold WHERE version = ? AND dataset = ? AND split = ?",
                [version, ground.dataset, ground.split],
            )

    def skip(self, ground: Ground, version: int, reason: str) -> None:
        """Record a version that cannot be judged, so that it is not tried again."""
        with self._open(write=True) as connection:
            connection.execute(
                "INSERT OR REPLACE INTO skipped VALUES (?, ?, ?, ?)",
                [version, ground.dataset, ground.split, reason],
            )

    def done(self, ground: Ground) -> set[int]:
        """Versions that are judged or were skipped on a ground."""
        return {
            version
            for table in ("validations", "skipped")
            for (version,) in self._rows(
                f"SELECT version FROM {table} WHERE dataset = ? AND split = ?",  # noqa: S608 - our own names
                ground,
            )
        }

    def sqn100(self, ground: Ground, version: int) -> tuple[bool, float | None]:
        """Whether a version passed a gate on a ground, and its SQN capped at 100 trades."""
        rows = self._rows(
            """SELECT sqn100 FROM validations
               WHERE dataset = ? AND split = ? AND version = ? AND passed_gates <> ''""",
            ground,
            version,
        )
        return bool(rows), rows[0][0] if rows else None

    def history(self, candidate: Candidate, days: Int64) -> tuple[Float64, int]:
        """What was tried before on a candidate's instrument and split, on any of these days.

        Whatever the data set, the run and the number of sessions: a version tried on the same market is
        a trial, unless it has the candidate's own weights. Earlier releases did not record the
        instrument: their trials count for every instrument.

        Args:
            candidate: that is judged.
            days: `[D]` trading days, ascending.
        Returns:
            `[D, V]` pips of the last `MAX_TRIALS` trials, in the order of their judgement, NaN on days on
            which one was not judged; and how many trials there were before these.
        """
        if not self.path.exists():
            return np.zeros((len(days), 0)), 0
        with self._open(write=True) as connection:  # which moves what an earlier release kept
            found = connection.execute(
                f"""SELECT days, pips, count(*) OVER () FROM trials
                    WHERE (instrument = $instrument OR instrument IS NULL) AND split = $split
                    AND list_has_any(days, $days) AND NOT coalesce(({_SAME_TRIAL}), false)
                    ORDER BY judged_at DESC, version DESC, dataset, weights_sha256 LIMIT $limit""",  # noqa: S608 - a constant
                {
                    "instrument": candidate.instrument,
                    "split": candidate.ground.split,
                    "dataset": candidate.ground.dataset,
                    "version": candidate.version,
                    "weights": candidate.weights_sha256,
                    "days": days.tolist(),
                    "limit": MAX_TRIALS,
                },
            ).fetchall()
        pips = np.full((len(days), len(found)), np.nan)
        for column, (on_days, of_days, _) in enumerate(reversed(found)):
            _, here, there = np.intersect1d(days, on_days, assume_unique=True, return_indices=True)
            pips[here, column] = np.array(of_days)[there]
        return pips, (found[0][2] if found else 0) - len(found)

    def _rows(self, query: str, ground: Ground, *more: object) -> list[tuple[Any, ...]]:
        if not self.path.exists():
            return []
        with self._open(write=False) as connection:
            return connection.execute(query, [ground.dataset, ground.split, *more]).fetchall()

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
        except (duckdb.Error, OSError) as broken:
            away = _is_held(broken) or os.strerror(errno.ENOSPC) in str(broken)
            raise (RecordsAwayError if away else DataError)(f"{self.path}: {broken}") from broken

    def _connect(self, *, write: bool) -> duckdb.DuckDBPyConnection:
        """Open the file as soon as no other process, or thread, has it open."""
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return duckdb.connect(str(self.path), read_only=not write)
            except (duckdb.IOException, duckdb.ConnectionException) as busy:
                if not _is_held(busy) or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)


def _is_held(failure: Exception) -> bool:
    """Whether another process, or another thread, has the file open."""
    return "Could not set lock" in str(failure) or "different configuration" in str(failure)
