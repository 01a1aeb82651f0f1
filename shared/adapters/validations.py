"""What the validator has judged: one DuckDB file, written by the validator alone.

`validations` has a row per version, data set and split, with the SHA-256 of its report; `standing` the
settings by which the service judges; `validation_days` the daily profits from which later versions are
deflated; `skipped` the versions that could not be judged, and why; `untold` the announcements of
judgements that may not have been made yet. The file is open only while it is read or written, since
DuckDB keeps other processes out meanwhile; each waits for the other.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from pydantic import ValidationError

from shared.adapters.databases import begin_database
from shared.errors import DataError
from shared.messages.schemas import ValidationReported
from shared.numeric import Float64, Int64

_SCHEMA = """
CREATE TABLE IF NOT EXISTS validations (
    version BIGINT, dataset VARCHAR, split VARCHAR, created_at VARCHAR, num_sessions BIGINT,
    num_trades BIGINT, net_pips DOUBLE, expectancy_pips DOUBLE, win_rate DOUBLE, profit_factor DOUBLE,
    sqn DOUBLE, sqn100 DOUBLE, sharpe DOUBLE, sortino DOUBLE, max_drawdown_pips DOUBLE,
    max_drawdown DOUBLE, safe_f DOUBLE, car25_percent DOUBLE, deflated_sharpe DOUBLE, overfitting DOUBLE,
    passed_gates VARCHAR, seconds DOUBLE, report_sha256 VARCHAR, PRIMARY KEY (dataset, split, version)
);
ALTER TABLE validations ADD COLUMN IF NOT EXISTS report_sha256 VARCHAR;
CREATE TABLE IF NOT EXISTS standing (
    dataset VARCHAR, split VARCHAR, standards VARCHAR, PRIMARY KEY (dataset, split)
);
CREATE TABLE IF NOT EXISTS validation_days (
    version BIGINT, dataset VARCHAR, split VARCHAR, day BIGINT, pips DOUBLE,
    PRIMARY KEY (dataset, split, version, day)
);
CREATE TABLE IF NOT EXISTS skipped (
    version BIGINT, dataset VARCHAR, split VARCHAR, reason VARCHAR, PRIMARY KEY (dataset, split, version)
);
CREATE TABLE IF NOT EXISTS untold (
    version BIGINT, dataset VARCHAR, split VARCHAR, announcement VARCHAR,
    PRIMARY KEY (dataset, split, version)
);
"""

#: The database's name in the folder of the reports.
DATABASE = "validations.duckdb"

#: How long a process waits while another has the file open, which takes milliseconds.
LOCK_SECONDS = 10.0


@dataclass(frozen=True)
class Ground:
    """On what versions are compared: only judgements on the same bars and split are."""

    dataset: str  # fingerprint
    split: str


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


@dataclass(frozen=True)
class Record:
    """What the service wrote down of a judgement, apart from its report."""

    report_sha256: str | None  # None where an earlier release judged
    standards: Mapping[str, object] | None  # by which the service judges now; None where it never said


class ValidationStore:
    """The file; made when first written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def record(
        self, row: ValidationRow, days: Int64, daily_pips: Float64, announcement: ValidationReported
    ) -> None:
        """Write one judgement, untold; an earlier one of the same version on the same ground is replaced."""
        key = [row.version, row.dataset, row.split]
        columns = ", ".join("?" for _ in fields(row))
        with self._open(write=True) as connection:
            connection.begin()
            connection.execute(f"INSERT OR REPLACE INTO validations VALUES ({columns})", astuple(row))  # noqa: S608 - question marks
            connection.execute(
                "DELETE FROM validation_days WHERE version = ? AND dataset = ? AND split = ?", key
            )
            connection.register("arrays", {"day": days, "pips": daily_pips})
            connection.execute("INSERT INTO validation_days SELECT ?, ?, ?, day, pips FROM arrays", key)
            connection.execute("DELETE FROM skipped WHERE version = ? AND dataset = ? AND split = ?", key)
            connection.execute(
                "INSERT OR REPLACE INTO untold VALUES (?, ?, ?, ?)", [*key, announcement.model_dump_json()]
            )
            connection.commit()

    def stand(self, ground: Ground, standards: Mapping[str, object]) -> None:
        """Write down by which settings the service judges from now on."""
        with self._open(write=True) as connection:
            connection.execute(
                "INSERT OR REPLACE INTO standing VALUES (?, ?, ?)",
                [ground.dataset, ground.split, json.dumps(standards, sort_keys=True, allow_nan=False)],
            )

    def recorded(self, ground: Ground, version: int) -> Record | None:
        """What was written down of a version's judgement on a ground; None where it was not judged.

        Raises:
            DataError: the file cannot be read, or an earlier release wrote it.
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
        """Note that a judgement was announced, and all that follows from it is done."""
        with self._open(write=True) as connection:
            connection.execute(
                "DELETE FROM untold WHERE version = ? AND dataset = ? AND split = ?",
                [version, ground.dataset, ground.split],
            )

    def skip(self, ground: Ground, version: int, reason: str) -> None:
        """Note a version that could not be judged, so that it is not tried for ever."""
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

    def history(self, ground: Ground, days: Int64, *, leave_out: int) -> tuple[tuple[int, ...], Float64]:
        """Daily profits of every other version judged on exactly these days.

        Args:
            ground: bars and split.
            days: `[D]` trading days, ascending.
            leave_out: the version that is being judged.
        Returns:
            V versions, ascending, and `[D, V]` pips.
        """
        rows = self._rows(
            """SELECT version, list(day ORDER BY day), list(pips ORDER BY day) FROM validation_days
               WHERE dataset = ? AND split = ? AND version <> ? GROUP BY version ORDER BY version""",
            ground,
            leave_out,
        )
        same = [(version, pips) for version, on_days, pips in rows if on_days == days.tolist()]
        matrix = np.array([pips for _, pips in same], np.float64).reshape(len(same), len(days)).T
        return tuple(version for version, _ in same), matrix

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
                yield connection
        except (duckdb.Error, OSError) as broken:
            raise DataError(f"{self.path}: {broken}") from broken

    def _connect(self, *, write: bool) -> duckdb.DuckDBPyConnection:
        """Open the file as soon as no other process, or thread, has it open."""
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return duckdb.connect(str(self.path), read_only=not write)
            except (duckdb.IOException, duckdb.ConnectionException) as busy:
                held = "lock" in str(busy) or "different configuration" in str(busy)
                if not held or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)
