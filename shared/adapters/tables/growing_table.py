"""A table that grows row by row, in Parquet files that never change.

Every row has a number as its key, and keys rise. Each write makes one more part, named by its first and
last key, `episodes-000000000001-000000000050.parquet`: aside, synced, renamed. A part is not written over,
since DuckDB opens a file twice for one query and would find two different ones. When many small parts have
come together, one part takes their place; a query in that moment, a few milliseconds, may find rows twice
or a file gone. `select distinct` and a second try make up for it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import structlog

from shared.adapters.files import sync, write_whole
from shared.errors import DataError

log = structlog.get_logger()

_arrow: Any = pa  # has no types

#: A part of so many rows is not joined with others any more.
PART_ROWS = 10_000

#: Small parts are joined after so many writes.
JOIN_EVERY_WRITES = 100

#: Rows that wait in memory while the disk refuses; more are counted and let go.
MAX_WAITING_ROWS = 50_000

Value = int | float | str | bool | datetime | None

#: Kinds of columns; all may be null.
COUNT, FIGURE, TEXT, FLAG = _arrow.int64(), _arrow.float64(), _arrow.string(), _arrow.bool_()
MOMENT = _arrow.timestamp("us", "UTC")


@dataclass(frozen=True)
class _Part:
    path: Path
    first: int
    last: int

    @property
    def span(self) -> int:
        """Rows that it has, at most."""
        return self.last - self.first + 1

    @classmethod
    def of(cls, path: Path) -> "_Part":
        first, last = path.stem.split("-")[-2:]
        return cls(path, int(first), int(last))


class GrowingTable:
    """One table, written by one process; its first column is the key."""

    def __init__(self, folder: Path, name: str, columns: Mapping[str, Any], *, last: int) -> None:
        """Go on after a key; what is recorded beyond it is removed.

        Args:
            folder: that exists.
            name: of the table, with which its files begin.
            columns: names and kinds.
            last: key after which the next row comes, whether or not there are rows before.
        Raises:
            DataError: a part is damaged.
            OSError: the disk refuses.
        """
        self._folder, self._name = folder, name
        self._schema = _arrow.schema(list(columns.items()))
        self._key: str = self._schema.names[0]
        self._waiting: list[dict[str, Value]] = []
        self._writes = 0
        self._last_key = last
        self.num_lost = 0
        self._cut(last)
        self._tidy()

    def add(self, row: Mapping[str, Value]) -> None:
        """Take in one row, to be written by the next `write`; a number that is not finite becomes null.

        Raises:
            ValueError: its key does not rise, or its columns are others.
        """
        key = row[self._key]
        if not isinstance(key, int) or key <= self._last_key:
            raise ValueError(f"{self._name}: {self._key} {key} after {self._last_key}, expected to rise")
        if row.keys() != set(self._schema.names):
            raise ValueError(f"{self._name}: columns {sorted(row)}, expected {sorted(self._schema.names)}")
        self._last_key = key
        if len(self._waiting) >= MAX_WAITING_ROWS:
            self.num_lost += 1
            return
        self._waiting.append({column: _storable(value) for column, value in row.items()})

    def write(self) -> None:
        """Put every row on the disk.

        Raises:
            OSError: the disk refuses; the rows wait for the next call.
        """
        if not self._waiting:
            return
        self._save(_arrow.Table.from_pylist(self._waiting, self._schema))
        self._waiting = []
        self._writes += 1
        if self._writes % JOIN_EVERY_WRITES == 0:
            self._tidy()

    def _cut(self, last: int) -> None:
        """Remove the rows beyond a key, and the parts that a kill in the midst of `_join` or this left."""
        whole = self._whole(last)
        if whole and whole[-1].last > last:
            rows = _read(whole[-1].path)
            self._save(rows.filter(_arrow.compute.less_equal(rows[self._key], last)))
            whole[-1].path.unlink()
        sync(self._folder)

    def _whole(self, last: int) -> list[_Part]:
        """Parts that begin up to a key, none within another; the others are removed."""
        whole: list[_Part] = []
        for part in self._parts():
            if part.first > last or (whole and part.last <= whole[-1].last):
                part.path.unlink()
            else:
                whole.append(part)
        return whole

    def _tidy(self) -> None:
        """Join small parts; where the disk refuses they stay, and are joined after later writes."""
        try:
            self._join()
        except OSError as refused:
            log.warning("parts_not_joined", table=self._name, folder=str(self._folder), error=str(refused))

    def _join(self) -> None:
        """Put one part in the place of neighbours that are small."""
        together: list[_Part] = []
        for part in self._whole(self._last_key):
            if part.span >= PART_ROWS or sum(small.span for small in together) >= PART_ROWS:
                self._replace(together)
                together = []
            if part.span < PART_ROWS:
                together.append(part)
        self._replace(together)

    def _replace(self, parts: list[_Part]) -> None:
        if len(parts) > 1:
            tables = [_read(part.path) for part in parts]
            self._save(_arrow.concat_tables(tables, promote_options="default"))
            for part in parts:
                part.path.unlink()

    def _parts(self) -> list[_Part]:
        """Ascending; of two that begin together the longer first."""
        found = map(_Part.of, self._folder.glob(f"{self._name}-*.parquet"))
        return sorted(found, key=lambda part: (part.first, -part.last))

    def _save(self, rows: Any) -> None:
        keys = rows[self._key]
        buffer = _arrow.BufferOutputStream()
        _arrow.parquet.write_table(rows.combine_chunks(), buffer)
        name = f"{self._name}-{keys[0].as_py():012d}-{keys[-1].as_py():012d}.parquet"
        write_whole(self._folder / name, buffer.getvalue().to_pybytes())


def _storable(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> Any:
    try:
        return _arrow.parquet.read_table(_arrow.BufferReader(path.read_bytes()))
    except _arrow.ArrowInvalid as damaged:
        raise DataError(
            f"{path}: not a whole Parquet file ({damaged}); move it away, its rows are lost"
        ) from damaged
