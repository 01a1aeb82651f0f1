"""A table that grows row by row, in immutable Parquet files.

Every row has an integer key, and keys increase. Each write adds a part, named by its first and last key, such
as `episodes-000000000001-000000000050.parquet`; it is written to a temporary file, synced and renamed. Parts
are never overwritten, because DuckDB opens a file twice per query and would see two versions. Compaction
replaces many small parts by one. A query during these few milliseconds may see duplicate rows or a missing
file; use `select distinct` and retry.
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

from shared.adapters.files import sync, write_atomically
from shared.errors import DataError

log = structlog.get_logger()

_arrow: Any = pa  # pyarrow has no type hints

#: Parts with this many rows are not compacted any more.
PART_ROWS = 10_000

#: Writes between two compactions.
COMPACT_EVERY_WRITES = 100

#: Most rows that wait in memory while the disk rejects writes; further rows are counted and dropped.
MAX_WAITING_ROWS = 50_000

Value = int | float | str | bool | datetime | None

#: Column types; all are nullable.
COUNT, FIGURE, TEXT, FLAG = _arrow.int64(), _arrow.float64(), _arrow.string(), _arrow.bool_()
TIMESTAMP = _arrow.timestamp("us", "UTC")


@dataclass(frozen=True)
class _Part:
    path: Path
    first: int
    last: int

    @property
    def span(self) -> int:
        """Upper bound of the number of rows."""
        return self.last - self.first + 1

    @classmethod
    def of(cls, path: Path) -> "_Part":
        first, last = path.stem.split("-")[-2:]
        return cls(path, int(first), int(last))


class GrowingTable:
    """One table with one writing process; the first column is the key."""

    def __init__(self, folder: Path, name: str, columns: Mapping[str, Any], *, last: int) -> None:
        """Open a table to continue after a key; rows with larger keys are removed.

        Args:
            folder: an existing folder.
            name: name of the table, and prefix of its files.
            columns: names and types.
            last: the next row must have a larger key; the table need not contain this one.
        Raises:
            DataError: a part is damaged.
            OSError: a write failed.
        """
        self._folder, self._name = folder, name
        self._schema = _arrow.schema(list(columns.items()))
        self._key: str = self._schema.names[0]
        self._waiting: list[dict[str, Value]] = []
        self._writes = 0
        self._last_key = last
        self.num_lost = 0
        self._cut(last)
        self._try_to_compact()

    def add(self, row: Mapping[str, Value]) -> None:
        """Add a row, which the next `write` stores; a non-finite number becomes null.

        Raises:
            ValueError: the key does not increase, or the columns differ from those of the table.
        """
        key = row[self._key]
        if not isinstance(key, int) or key <= self._last_key:
            raise ValueError(f"{self._name}: {self._key} {key} after {self._last_key}, expected a larger key")
        if row.keys() != set(self._schema.names):
            raise ValueError(f"{self._name}: columns {sorted(row)}, expected {sorted(self._schema.names)}")
        self._last_key = key
        if len(self._waiting) >= MAX_WAITING_ROWS:
            self.num_lost += 1
            return
        self._waiting.append({column: _storable(value) for column, value in row.items()})

    def write(self) -> None:
        """Write all waiting rows to the disk.

        Raises:
            OSError: the write failed; the rows wait for the next call.
        """
        if not self._waiting:
            return
        self._save(_arrow.Table.from_pylist(self._waiting, self._schema))
        self._waiting = []
        self._writes += 1
        if self._writes % COMPACT_EVERY_WRITES == 0:
            self._try_to_compact()

    def _cut(self, last: int) -> None:
        """Remove the rows after a key, and leftovers of an interrupted `_cut` or `_compact`."""
        parts = self._delete_obsolete_parts(last)
        if parts and parts[-1].last > last:
            rows = _read(parts[-1].path)
            self._save(rows.filter(_arrow.compute.less_equal(rows[self._key], last)))
            parts[-1].path.unlink()
        sync(self._folder)

    def _delete_obsolete_parts(self, last: int) -> list[_Part]:
        """Delete parts that begin after a key or are contained in another part; return the others."""
        parts: list[_Part] = []
        for part in self._parts():
            if part.first > last or (parts and part.last <= parts[-1].last):
                part.path.unlink()
            else:
                parts.append(part)
        return parts

    def _try_to_compact(self) -> None:
        """Compact small parts; if a write fails they stay until a later compaction."""
        try:
            self._compact()
        except OSError as refused:
            log.warning("parts_not_compacted", table=self._name, folder=str(self._folder), error=str(refused))

    def _compact(self) -> None:
        """Replace small neighbouring parts by one part."""
        small_parts: list[_Part] = []
        for part in self._delete_obsolete_parts(self._last_key):
            if part.span >= PART_ROWS or sum(small.span for small in small_parts) >= PART_ROWS:
                self._replace(small_parts)
                small_parts = []
            if part.span < PART_ROWS:
                small_parts.append(part)
        self._replace(small_parts)

    def _replace(self, parts: list[_Part]) -> None:
        if len(parts) > 1:
            tables = [_read(part.path) for part in parts]
            self._save(_arrow.concat_tables(tables, promote_options="default"))
            for part in parts:
                part.path.unlink()

    def _parts(self) -> list[_Part]:
        """Parts by first key; of two with the same first key, the longer one first."""
        found = map(_Part.of, self._folder.glob(f"{self._name}-*.parquet"))
        return sorted(found, key=lambda part: (part.first, -part.last))

    def _save(self, rows: Any) -> None:
        keys = rows[self._key]
        buffer = _arrow.BufferOutputStream()
        _arrow.parquet.write_table(rows.combine_chunks(), buffer)
        name = f"{self._name}-{keys[0].as_py():012d}-{keys[-1].as_py():012d}.parquet"
        write_atomically(self._folder / name, buffer.getvalue().to_pybytes())


def _storable(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> Any:
    try:
        return _arrow.parquet.read_table(_arrow.BufferReader(path.read_bytes()))
    except _arrow.ArrowInvalid as damaged:
        raise DataError(
            f"{path}: not a complete Parquet file ({damaged}); move it away; its rows are lost"
        ) from damaged
