"""Detect the format of a text bar file and read its rows.

| format | looks like |
|---|---|
| OANDA-like CSV | header `time,open,high,low,close,volume`; ISO 8601 or Unix times |
| Dukascopy | header `timestamp,open,high,low,close[,volume]`; milliseconds since 1970 UTC |
| MetaTrader 5 | header `<DATE> <TIME> <OPEN> … <TICKVOL> <VOL> <SPREAD>`, tab-separated; spread in points |
| MetaTrader 4 | `2023.04.03,00:00,164.382,164.384,164.338,164.338,12`, no header |
| HistData ASCII | `20230403 000000;164.382;164.384;164.338;164.338;0`, no header |
"""

import contextlib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv

from shared.errors import FormatError
from shared.market.rows import PRICES, RawRows, RowFault
from shared.market.spread import SpreadUnit
from shared.numeric import Bool, Float64, Int64

_arrow: Any = pa  # pyarrow has no type hints

#: Called with the amount read so far and the total: bytes of a text file, rows of a Parquet file.
Progress = Callable[[int, int], None]

MAX_LINE_BYTES = 1_000

#: File formats that are not supported: their first bytes, then their name and what the user can do.
_CONTAINERS = {
    b"PK\x03\x04": "a zip archive or an Excel workbook: unpack it, or save it as CSV",
    b"BZh": "bzip2 data: unpack it",
    b"\xfd7zXZ": "xz data: unpack it",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"\x28\xb5\x2f\xfd": "Zstandard data: unpack it",
    b"\x5d\x00\x00": "LZMA data, such as Dukascopy's .bi5 ticks: convert it to one-minute bars as CSV",
    b"ARROW1": "a Feather file: save it as Parquet",
    b"FEA1": "a Feather file: save it as Parquet",
}
_BLOCK_BYTES = 1 << 22  # parsed at a time

#: Names under which each column occurs in headers, in lower case and without < >.
COLUMN_NAMES = {
    "time": ("time", "timestamp", "datetime", "date_time", "gmt time", "__index_level_0__"),
    "date": ("date",),
    **{name: (name,) for name in PRICES},
    "volume": ("volume", "tickvol", "tick_volume"),
    "spread": ("spread",),
    "spread_pips": ("spread_pips",),
}

#: Column names that only MetaTrader 5 writes. Its spreads are in points.
METATRADER_5_COLUMNS = frozenset(("tickvol", "tick_volume", "real_volume", "<spread>"))

#: Supported time formats. `_COMPACT_PARTS` rewrites the compact one as ISO 8601.
_ISO = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(?P<zone>Z|[+-]\d\d:?\d\d)?")
_DOTTED = re.compile(r"\d{4}\.\d\d\.\d\d \d\d:\d\d(:\d\d)?")
_COMPACT = re.compile(r"\d{8} \d{6}")
_UNIX = re.compile(r"\d{1,11}(\.\d{1,9})?")
_MILLISECONDS = re.compile(r"\d{12,14}")
_COMPACT_PARTS = r"^(\d{4})(\d\d)(\d\d) (\d\d)(\d\d)(\d\d)$", r"\1-\2-\3 \4:\5:\6"

_METATRADER_4 = ("date", "time", *PRICES, "volume")
_HISTDATA = ("time", *PRICES, "volume")


@dataclass(frozen=True)
class TextFormat:
    """The layout of one text file."""

    name: str
    delimiter: str
    columns: tuple[str, ...]  # in the order of the file; keys of COLUMN_NAMES, or the names in the file
    header_lines: int
    time_pattern: re.Pattern[str]
    is_utc: bool  # the times have a UTC offset, or are counted from 1970-01-01 UTC
    spread: str | None  # column of the spread; None if there is no such column
    spread_unit: SpreadUnit | None  # None if the layout does not determine it


def sniff(path: str, data: bytes) -> TextFormat:
    """Detect the format of a text file from its first lines.

    Raises:
        FormatError: the format is unknown, or the file has no rows.
    """
    check_text(path, data)
    lines = enumerate(data[: 20 * MAX_LINE_BYTES].decode("ascii").splitlines(), start=1)
    not_blank = ((number, line) for number, line in lines if line.strip())
    number, head = next(not_blank, (1, ""))
    if not head:
        raise FormatError(path, "the file is empty: expected one-minute bars")
    delimiter = next((mark for mark in ("\t", ";", ",") if mark in head), "")
    cells = tuple(cell.strip().strip("<>").lower() for cell in head.split(delimiter)) if delimiter else ()
    columns, header_lines, row, name = cells, number, "", ""
    if set(PRICES) <= set(cells):
        columns = _known_columns(path, cells)
        number, row = next(not_blank, (number, ""))
        if not row:
            raise FormatError(path, "the file has a header but no rows: expected one-minute bars")
    elif len(cells) == len(_HISTDATA) and _COMPACT.fullmatch(cells[0]):
        columns, header_lines, row, name = _HISTDATA, number - 1, head, "HistData ASCII"
    elif delimiter == "," and len(cells) == len(_METATRADER_4) and _DOTTED.fullmatch(" ".join(cells[:2])):
        columns, header_lines, row, name = _METATRADER_4, number - 1, head, "MetaTrader 4"
    else:
        raise FormatError(
            path,
            f"unknown format: the line {head[:60]!r} is neither a header with open, high, low, close "
            "nor a row of HistData or MetaTrader 4",
            line=number,
        )
    text = _time_text(columns, row.split(delimiter))
    pattern = _time_pattern(path, number, text)
    zone = (match := _ISO.fullmatch(text)) is not None and match["zone"] is not None
    spread, spread_unit = spread_column(columns, [*cells, *head.lower().split(delimiter)])
    return TextFormat(
        name=name or _header_name(cells, pattern),
        delimiter=delimiter,
        columns=columns,
        header_lines=header_lines,
        time_pattern=pattern,
        is_utc=zone or pattern in (_UNIX, _MILLISECONDS),
        spread=spread,
        spread_unit=spread_unit,
    )


def read_text(path: str, data: bytes, layout: TextFormat, progress: Progress | None) -> RawRows:
    """Read all rows; rows that cannot be read are listed in `unreadable`.

    Raises:
        FormatError: no row can be read, or the parser fails.
    """
    wrong: list[RowFault] = []

    def skip(row: Any) -> str:
        columns = f"{row.actual_columns} column{'s' if row.actual_columns != 1 else ''}"
        wrong.append(RowFault(row.number, f"{columns}, expected {row.expected_columns}"))
        return "skip"

    source = _arrow.BufferReader(data)
    names = [f"{number}" for number in range(len(layout.columns))]  # names in the file may occur twice
    batches = _arrow.csv.open_csv(
        source,
        _arrow.csv.ReadOptions(
            use_threads=False,
            block_size=_BLOCK_BYTES,
            skip_rows=layout.header_lines,
            column_names=names,
        ),
        _arrow.csv.ParseOptions(
            delimiter=layout.delimiter, quote_char=False, ignore_empty_lines=False, invalid_row_handler=skip
        ),
        _arrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, _arrow.string()), strings_can_be_null=False
        ),
    )
    parts = []
    line = layout.header_lines + 1
    try:
        for batch in batches:
            rows = len(batch)
            skipped = np.array([fault.line for fault in wrong if fault.line >= line], dtype=np.int64)
            lines = _lines(line, rows, skipped)
            parts.append(_rows(batch, layout, lines))
            line = int(lines[-1]) + 1 if rows else line
            if progress:
                progress(source.tell(), len(data))
    except _arrow.ArrowInvalid as error:
        raise FormatError(path, f"cannot be read as {layout.name}: {error}") from error
    if not parts:
        raise FormatError(path, f"no row can be read as {layout.name}: {wrong[0].reason}", line=wrong[0].line)
    joined = RawRows.joined(parts)
    joined.unreadable.extend(wrong)
    return joined


def check_text(path: str, data: bytes) -> None:
    """Check that a file is ASCII text whose lines have at most `MAX_LINE_BYTES` bytes.

    Raises:
        FormatError: it is not; the error names the first offending line.
    """
    if kind := next((kind for magic, kind in _CONTAINERS.items() if data.startswith(magic)), None):
        raise FormatError(path, f"unknown format: this is {kind}; expected text or Parquet")
    content = np.frombuffer(data, np.uint8)
    not_text = (content >= 0x80) | (content == 0)
    if not_text.any():
        where = int(np.argmax(not_text))
        line = int(np.count_nonzero(content[:where] == ord("\n"))) + 1
        raise FormatError(
            path,
            "unknown format: binary data or a non-ASCII character; expected ASCII text or Parquet",
            line=line,
        )
    ends = np.append(np.flatnonzero(content == ord("\n")), len(content))
    lengths = np.diff(ends, prepend=-1) - 1
    if lengths.max() > MAX_LINE_BYTES:
        line = int(np.argmax(lengths > MAX_LINE_BYTES))
        raise FormatError(
            path,
            f"the line is {lengths[line]:,} bytes long: expected at most {MAX_LINE_BYTES:,}",
            line=line + 1,
        )


def _lines(first: int, num_rows: int, skipped: Int64) -> Int64:
    """Line numbers of the next `num_rows` rows, from line `first` on, without the lines in `skipped`."""
    candidates = np.arange(first, first + num_rows + len(skipped))
    kept: Int64 = candidates[~np.isin(candidates, skipped)][:num_rows]
    return kept


def _rows(batch: Any, layout: TextFormat, line: Int64) -> RawRows:
    """The rows of one block; rows that cannot be read are listed in `unreadable`."""
    columns = {name: batch.column(index) for index, name in enumerate(layout.columns)}
    faults: dict[int, str] = {}
    time_text = columns["time"]
    if "date" in columns:
        time_text = _arrow.compute.binary_join_element_wise(columns["date"], time_text, " ")
    time_s = _times(time_text, layout.time_pattern, faults, aware=layout.is_utc)
    blank = np.zeros(len(batch), np.bool_)
    if faults:  # an empty line is parsed as a row of empty cells; it is not a fault
        joined = _arrow.compute.binary_join_element_wise(*batch.columns, "")
        blank = _arrow.compute.equal(joined, "").to_numpy(zero_copy_only=False)
    values = {name: _numbers(name, columns[name], faults) for name in PRICES}
    volume = _numbers("volume", columns["volume"], faults) if "volume" in columns else np.zeros(len(batch))
    spread = (
        _numbers(layout.spread, columns[layout.spread], faults)
        if layout.spread
        else np.full(len(batch), np.nan)
    )
    keep: Bool = np.ones(len(batch), np.bool_)
    keep[list(faults)] = False
    unreadable = [RowFault(int(line[row]), reason) for row, reason in faults.items() if not blank[row]]
    rows = RawRows(
        time_s=time_s,
        **values,
        volume=np.rint(volume),
        spread=spread,
        line=line,
        unreadable=unreadable,
    )
    return rows.kept(keep) if faults else rows


def _times(text: Any, pattern: re.Pattern[str], faults: dict[int, str], *, aware: bool) -> Int64:
    """Seconds since 1970-01-01 in the time zone of the file, `[T]`. Adds a fault for each unreadable row.

    `aware` times have a UTC offset, as the first time of the file decides.
    """
    if pattern is _UNIX or pattern is _MILLISECONDS:
        numbers = _numbers("time", text, faults) / (1_000 if pattern is _MILLISECONDS else 1)
        invalid = ~(np.abs(numbers) < 1e12)
        faults |= {row: _unreadable_time(text[row].as_py()) for row in np.flatnonzero(invalid).tolist()}
        return np.floor(np.where(invalid, 0, numbers)).astype(np.int64)
    iso = text
    if pattern is _DOTTED:
        iso = _arrow.compute.replace_substring(text, ".", "-")
    elif pattern is _COMPACT:
        iso = _arrow.compute.replace_substring_regex(text, *_COMPACT_PARTS)
    try:
        moments = iso.cast(_arrow.timestamp("ns", "UTC" if aware else None))
    except _arrow.ArrowInvalid:
        return _times_one_by_one(iso, text, aware, faults)
    nanoseconds: Int64 = moments.cast(_arrow.int64()).to_numpy(zero_copy_only=False)
    return nanoseconds // 1_000_000_000


def _times_one_by_one(iso: Any, text: Any, aware: bool, faults: dict[int, str]) -> Int64:
    times = np.zeros(len(iso), np.int64)
    for row, written in enumerate(iso.to_pylist()):
        match = _ISO.fullmatch(written)
        moment = None
        if match is not None and (match["zone"] is not None) == aware:
            with contextlib.suppress(ValueError):  # for example the 31st of February
                moment = datetime.fromisoformat(written)
        if moment is None:
            faults[row] = _unreadable_time(text[row].as_py())
        else:
            times[row] = int((moment if aware else moment.replace(tzinfo=UTC)).timestamp())
    return times


def _unreadable_time(written: str) -> str:
    return f"time {written[:40]!r} cannot be read: expected the time format of the preceding rows"


def _numbers(name: str, text: Any, faults: dict[int, str]) -> Float64:
    """Numbers of a column, `[T]`. Adds a fault for each unreadable row."""
    try:
        values: Float64 = text.cast(_arrow.float64()).to_numpy(zero_copy_only=False)
    except _arrow.ArrowInvalid:
        values = np.full(len(text), np.nan)
        for row, written in enumerate(text.to_pylist()):
            try:
                values[row] = float(written.replace("_", "?"))  # float() would accept 1_65
            except ValueError:
                faults.setdefault(row, f"{name} is {written[:40]!r}: expected a number")
    return values


def _known_columns(path: str, cells: tuple[str, ...]) -> tuple[str, ...]:
    """The header's columns, renamed to the keys of `COLUMN_NAMES` where possible.

    Raises:
        FormatError: a known column occurs twice, or there is no time column.
    """
    ours = {alias: name for name, aliases in COLUMN_NAMES.items() for alias in aliases}
    if not set(COLUMN_NAMES["volume"]) & set(cells):
        ours["vol"] = "volume"  # MetaTrader's traded volume, used if there is no tick volume
    columns = tuple(ours.get(cell, cell) for cell in cells)
    for name in COLUMN_NAMES:
        if columns.count(name) > 1:
            raise FormatError(
                path, f"the header has {columns.count(name)} columns for {name}: expected one", line=1
            )
    if "time" not in columns and "date" in columns:
        columns = tuple("time" if name == "date" else name for name in columns)
    if "time" not in columns:
        raise FormatError(
            path, "the header has no time column: expected `time`, `timestamp` or `date`", line=1
        )
    return columns


def spread_column(columns: Collection[str], names: Collection[str]) -> tuple[str | None, SpreadUnit | None]:
    """The column of the spread, or None, and its unit if the column name or the layout determines it.

    Args:
        columns: column names, renamed to the keys of `COLUMN_NAMES`.
        names: column names as in the file, in lower case.
    """
    if "spread_pips" in columns:
        return "spread_pips", SpreadUnit.PIPS
    if "spread" not in columns:
        return None, None
    return "spread", SpreadUnit.POINTS if METATRADER_5_COLUMNS & set(names) else None


def _time_text(columns: tuple[str, ...], cells: list[str]) -> str:
    parts = [
        cells[columns.index(name)].strip()
        for name in ("date", "time")
        if name in columns and columns.index(name) < len(cells)
    ]
    return " ".join(parts)


def _time_pattern(path: str, line: int, text: str) -> re.Pattern[str]:
    for pattern in (_ISO, _DOTTED, _COMPACT, _UNIX, _MILLISECONDS):
        if pattern.fullmatch(text):
            return pattern
    raise FormatError(
        path,
        f"time {text[:40]!r} has an unknown format: expected ISO 8601, 2023.04.03 00:00, "
        "20230403 000000, or seconds or milliseconds since 1970",
        line=line,
    )


def _header_name(cells: tuple[str, ...], pattern: re.Pattern[str]) -> str:
    if "date" in cells:
        return "MetaTrader 5"
    return "Dukascopy" if pattern is _MILLISECONDS else "OANDA-like CSV"
