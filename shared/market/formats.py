"""Bar files of all kinds → BarSeries, or an error that names file, line and reason."""

import gzip
import io
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import DataError, FormatError
from shared.market.bar import BarSeries, Instrument
from shared.market.calendar import is_open
from shared.market.clock import Clock
from shared.market.order import natural_order
from shared.market.parquet import MAGIC as PARQUET_MAGIC
from shared.market.parquet import read_parquet
from shared.market.rows import (
    RawRows,
    RowFault,
    distinct,
    faulty,
    first_disorder,
    flat_runs,
    refuse_other_than_minutes,
    repetitions,
    rising,
)
from shared.market.spread import SpreadUnit, in_pips
from shared.market.text import Progress, read_text, sniff
from shared.market.zone import contradicts_utc, find_zone

PARQUET = "Parquet"

#: Largest file, unpacked: 40 years of bars as text.
MAX_BYTES = 1 << 30

#: Largest share of the rows that a repair drops unless the user allows more.
MAX_DROPPED = 0.05

#: Share of bars with a changing price outside the trading week from which the clock must be wrong.
_MAX_MOVING_OUTSIDE = 0.01

#: Shortest run of flat rows that is taken for the filler of closed hours.
_FILLER_ROWS = 60

_GZIP_MAGIC = b"\x1f\x8b"
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class ImportResult:
    """Bars read from a file, and what was found on the way."""

    bars: BarSeries
    format: str
    timezone: str  # which clock the file is on and how that is known, in words
    num_dropped: int  # rows that `repair` left out
    findings: tuple[str, ...] = ()  # what was changed or left out, and why, in words
    num_outside: int = 0  # bars outside the trading week that were left out


@dataclass(frozen=True)
class ImportOptions:
    """What the user says about a file.

    Raises:
        DataError: the share is not one.
    """

    timezone: str | None = None  # clock of the file's times (see `Clock.named`); found from the file if None
    repair: bool = False  # drop faulty rows instead of refusing the file
    max_dropped: float = MAX_DROPPED  # largest share of the rows that a repair may drop
    spread_unit: SpreadUnit | None = None  # of a spread column whose name or layout does not say it

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 <= self.max_dropped <= 1:
            raise DataError(f"--max-dropped {self.max_dropped}: expected a share from 0 to 1")


def read_bars(
    path: Path,
    instrument: Instrument,
    options: ImportOptions | None = None,
    *,
    progress: Progress | None = None,
) -> ImportResult:
    """Read one-minute bars from a file of any known format, packed with gzip or not.

    Rows in the wrong order are sorted where that loses none, and bars outside the trading week are left
    out; `findings` says so.

    Args:
        path: an OANDA-like CSV, HistData, MetaTrader 4 or 5, Dukascopy or Parquet file.
        instrument: what the bars price.
        options: what the user says about the file.
        progress: called with how much of how much is read.
    Raises:
        FormatError: the file cannot be read, or a row breaks a rule; names the first such line.
        DataError: the zone cannot be told, or the one given is not known.
    """
    options = options or ImportOptions()
    name = str(path)
    asked = Clock.named(options.timezone) if options.timezone is not None else None
    data = _load(path)
    if data[8:12] == b"DUCK":
        raise FormatError(name, "this is a data set already: use it with --data")
    if data.startswith(PARQUET_MAGIC):
        parquet = read_parquet(name, data, progress)
        format_name, rows, is_utc, unit = PARQUET, parquet.rows, parquet.is_utc, parquet.spread_unit
    else:
        text = _as_ascii(name, data)
        layout = sniff(name, text)
        format_name, rows = layout.name, read_text(name, text, layout, progress)
        is_utc, unit = layout.is_utc, layout.spread_unit

    drop = _Dropping(name, format_name, len(rows) + len(rows.unreadable), options)
    if len(rows.unreadable) <= len(rows):  # otherwise the steps between the readable rows mean little
        refuse_other_than_minutes(name, rows.time_s)
    rows = drop.faulty(rows)
    rows = in_pips(name, rows, options.spread_unit or unit, instrument)
    clock, finding = _clock_of(name, rows, asked, is_utc)
    rows = replace(rows, time_s=clock.to_utc(rows.time_s))
    rows, ordered = _in_order(rows)
    rows = drop.out_of_order(rows)
    rows, outside = _within_week(name, rows, asked, finding)
    findings = tuple(filter(None, (ordered, *drop.findings, outside.finding)))
    bars = _bars(instrument, rows)
    return ImportResult(bars, format_name, finding, drop.num_dropped, findings, outside.count)


class _Dropping:
    """Refuses a file for its faulty rows, or drops them where the user asked for a repair."""

    def __init__(self, path: str, format_name: str, num_rows: int, options: ImportOptions) -> None:
        self._path, self._is_parquet, self._num_rows = path, format_name == PARQUET, num_rows
        self._options = options
        self._num_lost = 0  # dropped rows that were no repetition
        self.num_dropped = 0
        self.findings: list[str] = []

    def faulty(self, rows: RawRows) -> RawRows:
        """The rows without a fault of their own."""
        where, kinds = faulty(rows)
        count = sum(kind.count for kind in kinds)
        if kinds:
            self._drop(count, count, min((kind.first for kind in kinds), key=lambda fault: fault.line))
            self.findings += [f"{_rows(kind.count)}: {self._text(kind.first)}" for kind in kinds]
        rows = rows.kept(~where)
        if len(rows) == 0:
            reason = "no row is left after the repair" if self._num_rows else "the file is empty"
            raise FormatError(self._path, f"{reason}: expected one-minute bars")
        return rows

    def out_of_order(self, rows: RawRows) -> RawRows:
        """The rows whose times rise; `rows` are in their natural order."""
        disorder = first_disorder(rows.time_s, rows.line)
        if disorder is None:
            return rows
        keep = rising(rows.time_s)
        num_dropped = int((~keep).sum())
        num_repeated = repetitions(rows, keep)
        self._drop(num_dropped, num_dropped - num_repeated, disorder)
        self.findings.append(
            f"{_rows(num_dropped)}, {num_repeated:,} of them repetitions: {self._text(disorder)}"
        )
        return rows.kept(keep)

    def _drop(self, count: int, num_lost: int, first: RowFault) -> None:
        """Count rows as dropped.

        Raises:
            FormatError: the user did not ask for a repair, or it would drop too much.
        """
        self._num_lost += num_lost
        most = self._options.max_dropped
        too_many = self._num_lost > most * self._num_rows
        if self._options.repair and not too_many:
            self.num_dropped += count
            return
        advice = (
            f"--repair drops {'such a row' if count == 1 else 'such rows'} ({count:,} of {self._num_rows:,})"
        )
        if too_many:
            advice = (
                f"{_rows(self._num_lost)} of {self._num_rows:,} would have to be dropped, more than the "
                f"{most:.0%} that --repair drops: correct or sort the file, or raise "
                "`data import --max-dropped`"
            )
        line = None if self._is_parquet else first.line
        raise FormatError(self._path, f"{self._text(first, with_line=self._is_parquet)}; {advice}", line=line)

    def _text(self, fault: RowFault, *, with_line: bool = True) -> str:
        reason = fault.reason.replace(" in line ", " in row ") if self._is_parquet else fault.reason
        return f"{'row' if self._is_parquet else 'line'} {fault.line}: {reason}" if with_line else reason


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count != 1 else ''}"


def _in_order(rows: RawRows) -> tuple[RawRows, str]:
    order = natural_order(rows.time_s)
    if not order.finding:
        return rows, ""
    return rows.kept(order.rows), f"{order.finding}: the rows were sorted, none was dropped for it"


@dataclass(frozen=True)
class _Outside:
    """Bars outside the trading week."""

    count: int
    finding: str


def _within_week(path: str, rows: RawRows, asked: Clock | None, told: str) -> tuple[RawRows, _Outside]:
    """The rows of the trading week, and what was left out.

    Raises:
        FormatError: bars that move lie outside it so often that the clock must be wrong, or none is inside.
    """
    inside = is_open(rows.time_s)
    count = int((~inside).sum())
    if count == 0:
        return rows, _Outside(0, "")
    moving = ~inside & ((rows.high != rows.low) | (rows.volume > 0))
    week = "the trading week (Sunday to Friday 17:00 New York)"
    if asked is None and moving.sum() > _MAX_MOVING_OUTSIDE * len(rows):
        raise FormatError(
            path,
            f"{int(moving.sum()):,} of {len(rows):,} bars with a changing price or volume lie outside "
            f"{week}, so the times are probably on another clock than {told}; say which with "
            "--timezone, and bars outside the week are left out",
        )
    if count == len(rows):
        raise FormatError(path, f"no bar lies inside {week}")
    bars = "1 bar" if count == 1 else f"{count:,} bars"
    text = f"left out {bars} outside {week}, {count - int(moving.sum()):,} of them flat"
    return rows.kept(inside), _Outside(count, text)


def _clock_of(path: str, rows: RawRows, asked: Clock | None, is_utc: bool) -> tuple[Clock, str]:
    """The clock that a file's times are on, and how that is known."""
    filler = flat_runs(rows, _FILLER_ROWS)  # of closed hours: they would hide the weekends
    ordered = distinct(rows.time_s[~filler])
    if asked is not None:
        told = " (its times say UTC themselves)" if is_utc and asked.name != "UTC" else ""
        return asked, f"{asked.name}, as asked for{told}"
    if is_utc:
        doubt = contradicts_utc(ordered)
        return Clock.named("UTC"), "UTC, as its times say" + (f"; but {doubt}" if doubt else "")
    try:
        finding = find_zone(ordered)
    except DataError as error:
        raise FormatError(path, str(error)) from error
    return finding.clock, f"{finding.clock.name}, told from its weekends: {finding.text}"


def _bars(instrument: Instrument, rows: RawRows) -> BarSeries:
    return BarSeries(
        instrument,
        rows.time_s,
        rows.open,
        rows.high,
        rows.low,
        rows.close,
        rows.volume.astype(np.int64),
        rows.spread,
    )


def _load(path: Path) -> bytes:
    """A file's content, unpacked.

    Raises:
        FormatError: it is missing, a folder, too large, damaged, or may not be read.
    """
    try:
        if not path.is_file() and path.exists():
            raise FormatError(str(path), "this is a folder or a device: expected a file")
        with path.open("rb") as file:
            packed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            file.seek(0)
            return _read_all(str(path), gzip.GzipFile(fileobj=file) if packed else file)
    except EOFError as error:
        raise FormatError(str(path), "the gzip data ends early: the file is cut off") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise FormatError(str(path), f"the gzip data is damaged: {error}") from error
    except OSError as error:
        raise FormatError(str(path), f"cannot be read: {error.strerror or error}") from error


def _read_all(path: str, file: Any) -> bytes:
    content = io.BytesIO()
    while chunk := file.read(_CHUNK_BYTES):
        content.write(chunk)
        if content.tell() > MAX_BYTES:
            raise FormatError(path, f"more than {MAX_BYTES >> 30} GiB: import it in parts")
    if content.tell() == 0:
        raise FormatError(path, "the file is empty: expected one-minute bars")
    return content.getvalue()


def _as_ascii(path: str, data: bytes) -> bytes:
    """Text without its byte-order mark; MetaTrader writes UTF-16 at times."""
    if data.startswith(_UTF16_MARKS):
        try:
            return data.decode("utf-16").encode()
        except UnicodeDecodeError as error:
            raise FormatError(
                path, f"unknown format: neither UTF-16 text nor anything else ({error})"
            ) from error
    return data.removeprefix(_UTF8_MARK)
