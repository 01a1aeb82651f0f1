"""Read bar files of every supported format into a `BarSeries`; errors name file, line and reason."""

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
    find_faults,
    first_disorder,
    flat_runs,
    refuse_other_than_minutes,
    repetitions,
    rising,
)
from shared.market.spread import SpreadUnit, in_pips
from shared.market.text import Progress, read_text, sniff
from shared.market.zone import evidence_against_utc, find_zone

PARQUET = "Parquet"

#: Largest file, uncompressed: 40 years of bars as text.
MAX_BYTES = 1 << 30

#: Default limit on the share of rows that a repair may drop.
MAX_DROPPED = 0.05

#: Largest share of moving bars outside the trading week; with more, the clock must be wrong.
_MAX_MOVING_OUTSIDE = 0.01

#: Shortest run of flat rows that counts as the filler of closed hours.
_FILLER_ROWS = 60

_GZIP_MAGIC = b"\x1f\x8b"
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class ImportResult:
    """Bars read from a file, and what the import changed or left out."""

    bars: BarSeries
    format: str
    timezone: str  # the clock of the file's times and how it was determined, in words
    num_dropped: int  # rows that the repair dropped
    findings: tuple[str, ...] = ()  # what was changed or left out, and why, in words
    num_outside: int = 0  # bars outside the trading week that were left out


@dataclass(frozen=True)
class ImportOptions:
    """The user's options for an import.

    Raises:
        DataError: `max_dropped` is not a share from 0 to 1.
    """

    timezone: str | None = None  # clock of the file's times, see `Clock.named`; None: inferred from the file
    repair: bool = False  # drop faulty rows instead of refusing the file
    max_dropped: float = MAX_DROPPED  # largest share of the rows that a repair may drop
    spread_unit: SpreadUnit | None = None  # unit of the spread column; None: inferred from the file

    def __post_init__(self) -> None:
        """Check the range of `max_dropped`."""
        if not 0 <= self.max_dropped <= 1:
            raise DataError(f"--max-dropped {self.max_dropped}: expected a share from 0 to 1")


def read_bars(
    path: Path,
    instrument: Instrument,
    options: ImportOptions | None = None,
    *,
    progress: Progress | None = None,
) -> ImportResult:
    """Read one-minute bars from a file of any supported format, gzipped or not.

    Rows out of order are sorted if no row is lost. Bars outside the trading week are left out. `findings`
    reports both.

    Args:
        path: an OANDA-like CSV, HistData, MetaTrader 4 or 5, Dukascopy or Parquet file.
        instrument: instrument of the bars.
        options: the user's options.
        progress: called with the amount read so far and the total.
    Raises:
        FormatError: the file cannot be read, its time zone cannot be inferred, or a row breaks a rule;
            the error names the first such line.
        DataError: the time zone in the options is not known.
    """
    options = options or ImportOptions()
    name = str(path)
    requested = Clock.named(options.timezone) if options.timezone is not None else None
    data = _load(path)
    if data[8:12] == b"DUCK":
        raise FormatError(name, "this is already a data set: use it with --data")
    if data.startswith(PARQUET_MAGIC):
        parquet = read_parquet(name, data, progress)
        format_name, rows, is_utc, unit = PARQUET, parquet.rows, parquet.is_utc, parquet.spread_unit
    else:
        text = _as_utf8(name, data)
        layout = sniff(name, text)
        format_name, rows = layout.name, read_text(name, text, layout, progress)
        is_utc, unit = layout.is_utc, layout.spread_unit

    repair = _Repair(name, format_name, len(rows) + len(rows.unreadable), options)
    if len(rows.unreadable) <= len(rows):  # with fewer readable rows, their steps prove little
        refuse_other_than_minutes(name, rows.time_s)
    rows = repair.without_faults(rows)
    rows = in_pips(name, rows, options.spread_unit or unit, instrument)
    clock, finding = _clock_of(name, rows, requested, is_utc)
    rows = replace(rows, time_s=clock.to_utc(rows.time_s))
    rows, ordered = _in_order(rows)
    rows = repair.in_rising_order(rows)
    rows, outside = _within_week(name, rows, requested, finding)
    findings = tuple(filter(None, (ordered, *repair.findings, outside.finding)))
    bars = _bars(instrument, rows)
    return ImportResult(bars, format_name, finding, repair.num_dropped, findings, outside.count)


class _Repair:
    """Drops faulty rows if the user asked for a repair; otherwise refuses the file."""

    def __init__(self, path: str, format_name: str, num_rows: int, options: ImportOptions) -> None:
        self._path, self._is_parquet, self._num_rows = path, format_name == PARQUET, num_rows
        self._options = options
        self._num_lost = 0  # dropped rows that repeated no kept row
        self.num_dropped = 0
        self.findings: list[str] = []

    def without_faults(self, rows: RawRows) -> RawRows:
        """The rows that are valid in themselves, whatever their order."""
        faulty, kinds = find_faults(rows)
        count = sum(kind.count for kind in kinds)
        if kinds:
            self._drop(count, count, min((kind.first for kind in kinds), key=lambda fault: fault.line))
            self.findings += [f"{_rows(kind.count)}: {self._text(kind.first)}" for kind in kinds]
        rows = rows.kept(~faulty)
        if len(rows) == 0:
            reason = "no row is left after the repair" if self._num_rows else "the file is empty"
            raise FormatError(self._path, f"{reason}: expected one-minute bars")
        return rows

    def in_rising_order(self, rows: RawRows) -> RawRows:
        """The rows whose times rise; apply `natural_order` first."""
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
            FormatError: the user did not ask for a repair, or it would drop too many rows.
        """
        self._num_lost += num_lost
        limit = self._options.max_dropped
        too_many = self._num_lost > limit * self._num_rows
        if self._options.repair and not too_many:
            self.num_dropped += count
            return
        num_rows = self._num_lost if too_many else count
        advice = f"--repair would drop {_rows(num_rows)} of {self._num_rows:,}"
        if too_many:
            advice += (
                f", more than the limit of {limit:.0%}: correct or sort the file, or raise the limit with "
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
    return rows.kept(order.rows), f"{order.finding}: the rows were sorted without loss"


@dataclass(frozen=True)
class _Outside:
    """Bars outside the trading week."""

    count: int
    finding: str


def _within_week(path: str, rows: RawRows, requested: Clock | None, clock: str) -> tuple[RawRows, _Outside]:
    """The rows of the trading week, and what was left out.

    Raises:
        FormatError: so many moving bars lie outside it that the clock must be wrong, or no bar lies inside.
    """
    inside = is_open(rows.time_s)
    count = int((~inside).sum())
    if count == 0:
        return rows, _Outside(0, "")
    moving = ~inside & ((rows.high != rows.low) | (rows.volume > 0))
    week = "the trading week (Sunday to Friday 17:00 New York)"
    if requested is None and moving.sum() > _MAX_MOVING_OUTSIDE * len(rows):
        raise FormatError(
            path,
            f"{int(moving.sum()):,} of {len(rows):,} bars lie outside {week} although their price or volume "
            f"changes, so the clock is probably not the assumed one ({clock}): name the right one with "
            "--timezone; bars outside the week are then left out",
        )
    if count == len(rows):
        raise FormatError(path, f"no bar lies inside {week}: check the clock with --timezone")
    bars = "1 bar" if count == 1 else f"{count:,} bars"
    text = f"left out {bars} outside {week}, {count - int(moving.sum()):,} of them flat"
    return rows.kept(inside), _Outside(count, text)


def _clock_of(path: str, rows: RawRows, requested: Clock | None, is_utc: bool) -> tuple[Clock, str]:
    """The clock of a file's times, and how it was determined.

    Raises:
        FormatError: it cannot be inferred from the weekends.
    """
    filler = flat_runs(rows, _FILLER_ROWS)  # the filler of closed hours hides the weekends
    ordered = distinct(rows.time_s[~filler])
    if requested is not None:
        contradiction = " (although its times say UTC)" if is_utc and requested.name != "UTC" else ""
        return requested, f"{requested.name}, as requested{contradiction}"
    if is_utc:
        doubt = evidence_against_utc(ordered)
        return Clock.named("UTC"), "UTC, as its times say" + (f"; but {doubt}" if doubt else "")
    try:
        finding = find_zone(ordered)
    except DataError as error:
        raise FormatError(path, str(error)) from error
    return finding.clock, f"{finding.clock.name}, inferred from its weekends: {finding.text}"


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
    """A file's content, uncompressed.

    Raises:
        FormatError: the file is missing, a folder, too large, damaged or unreadable.
    """
    try:
        if not path.is_file() and path.exists():
            raise FormatError(str(path), "this is a folder or a device: expected a file")
        with path.open("rb") as file:
            packed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            file.seek(0)
            return _read_all(str(path), gzip.GzipFile(fileobj=file) if packed else file)
    except EOFError as error:
        raise FormatError(str(path), "the gzip data is truncated: expected a complete file") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise FormatError(str(path), f"the gzip data is damaged: {error}") from error
    except OSError as error:
        raise FormatError(str(path), f"cannot be read: {error.strerror or error}") from error


def _read_all(path: str, file: Any) -> bytes:
    content = io.BytesIO()
    while chunk := file.read(_CHUNK_BYTES):
        content.write(chunk)
        if content.tell() > MAX_BYTES:
            raise FormatError(
                path, f"the file is larger than {MAX_BYTES >> 30} GiB uncompressed: import it in parts"
            )
    if content.tell() == 0:
        raise FormatError(path, "the file is empty: expected one-minute bars")
    return content.getvalue()


def _as_utf8(path: str, data: bytes) -> bytes:
    """The text as UTF-8 without a byte-order mark; MetaTrader sometimes writes UTF-16."""
    if data.startswith(_UTF16_MARKS):
        try:
            return data.decode("utf-16").encode()
        except UnicodeDecodeError as error:
            raise FormatError(
                path, f"the file begins like UTF-16 text but is not ({error}): expected text or Parquet"
            ) from error
    return data.removeprefix(_UTF8_MARK)
