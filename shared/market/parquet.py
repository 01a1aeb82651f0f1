"""Read the rows of a Parquet bar file."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from shared.errors import FormatError
from shared.market.rows import PRICES, RawRows
from shared.market.spread import SpreadUnit
from shared.market.text import COLUMN_NAMES, Progress, spread_column
from shared.numeric import Float64, Int64

_arrow: Any = pa  # pyarrow has no type hints

MAGIC = b"PAR1"
_BATCH_ROWS = 1 << 17
_UNITS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True)
class ParquetRows:
    """The rows of a Parquet file."""

    rows: RawRows
    is_utc: bool  # the times have a time zone, or are integers since 1970 UTC
    spread_unit: SpreadUnit | None  # None: there is no spread, or its unit is not known


def read_parquet(path: str, data: bytes, progress: Progress | None) -> ParquetRows:
    """Read all rows of a Parquet file.

    Raises:
        FormatError: the file is damaged, empty or lacks a column; the error names the column.
    """
    try:
        file = _arrow.parquet.ParquetFile(_arrow.BufferReader(data))
        columns = _columns(path, file.schema_arrow)
        kind = file.schema_arrow.field(columns["time"]).type
        names = [name.lower() for name in file.schema_arrow.names]
        spread, spread_unit = spread_column(columns, names)
        parts: list[RawRows] = []
        done = 0
        for batch in file.iter_batches(columns=list(columns.values()), batch_size=_BATCH_ROWS):
            parts.append(
                _rows(path, {ours: batch.column(name) for ours, name in columns.items()}, spread, done)
            )
            done += len(batch)
            if progress:
                progress(done, file.metadata.num_rows)
    except (_arrow.ArrowException, OSError) as error:
        raise FormatError(path, f"the Parquet data is damaged: {error}") from error
    if done == 0:
        raise FormatError(path, "the file is empty: expected one-minute bars")
    is_utc = bool(_arrow.types.is_integer(kind) or kind.tz is not None)
    return ParquetRows(RawRows.joined(parts), is_utc, spread_unit)


def _columns(path: str, schema: Any) -> dict[str, str]:
    """The file's name for each of our columns.

    Raises:
        FormatError: a column is missing, occurs twice or has the wrong type.
    """
    found: dict[str, str] = {}
    wanted = {
        alias: ours
        for ours in ("time", *PRICES, "volume", "spread", "spread_pips")
        for alias in COLUMN_NAMES[ours]
    }
    for name in schema.names:
        ours = wanted.get(name.lower(), "")
        if ours in found:
            raise FormatError(
                path, f"columns {found[ours]!r} and {name!r} both contain the {ours}: expected one"
            )
        if ours:
            found[ours] = name
    if missing := [name for name in ("time", *PRICES) if name not in found]:
        raise FormatError(
            path, f"no column {', '.join(missing)}: the file has {', '.join(schema.names[:20]) or 'none'}"
        )
    for ours, name in found.items():
        kind = schema.field(name).type
        wanted_kind = "timestamps, or seconds to nanoseconds since 1970" if ours == "time" else "numbers"
        if not (_is_time(kind) if ours == "time" else _is_number(kind)):
            raise FormatError(path, f"column {name!r} is of type {kind}: expected {wanted_kind}")
    return found


def _is_time(kind: Any) -> bool:
    return bool(_arrow.types.is_timestamp(kind) or _arrow.types.is_integer(kind))


def _is_number(kind: Any) -> bool:
    types = _arrow.types
    return bool(types.is_floating(kind) or types.is_integer(kind) or types.is_decimal(kind))


def _rows(path: str, columns: dict[str, Any], spread: str | None, done: int) -> RawRows:
    num_rows = len(columns["time"])

    def numbers(name: str, missing: float) -> Float64:
        if name not in columns:
            return np.full(num_rows, missing)
        values: Float64 = columns[name].cast(_arrow.float64(), safe=False).to_numpy(zero_copy_only=False)
        return values

    if columns["time"].null_count:
        row = done + int(np.argmax(columns["time"].is_null().to_numpy(zero_copy_only=False)))
        raise FormatError(path, f"row {row + 1}: the time is missing")
    return RawRows(
        time_s=_times(columns["time"]),
        open=numbers("open", np.nan),
        high=numbers("high", np.nan),
        low=numbers("low", np.nan),
        close=numbers("close", np.nan),
        volume=np.rint(numbers("volume", 0.0)),
        spread=numbers(spread, np.nan) if spread else np.full(num_rows, np.nan),
        line=np.arange(done + 1, done + num_rows + 1),
    )


def _times(column: Any) -> Int64:
    """Whole seconds. Integers use the first of s, ms, us, ns that gives the largest a plausible year."""
    numbers: Int64 = column.cast(_arrow.int64()).to_numpy(zero_copy_only=False)
    if _arrow.types.is_timestamp(column.type):
        return numbers // _UNITS_PER_SECOND[column.type.unit]
    largest = int(np.abs(numbers).max(initial=0))
    per_second = next((unit for unit in _UNITS_PER_SECOND.values() if largest < 10**11 * unit), 10**9)
    return numbers // per_second
