"""Bar files of all kinds → BarSeries, or an error that names file, line and reason."""

import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import DataError, FormatError
from shared.market.bar import BarSeries, Instrument
from shared.market.clock import Clock
from shared.market.parquet import MAGIC as PARQUET_MAGIC
from shared.market.parquet import read_parquet
from shared.market.rows import (
    RawRows,
    distinct,
    faulty,
    first_disorder,
    first_fault,
    refuse_other_than_minutes,
    rising,
)
from shared.market.text import Progress, read_text, sniff
from shared.market.zone import contradicts_utc, find_zone
from shared.numeric import Int64

PARQUET = "Parquet"

#: Largest file, unpacked: 40 years of bars as text.
MAX_BYTES = 1 << 30

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


def read_bars(
    path: Path,
    instrument: Instrument,
    timezone: str | None = None,
    *,
    repair: bool = False,
    progress: Progress | None = None,
) -> ImportResult:
    """Read one-minute bars from a file of any known format, packed with gzip or not.

    Args:
        path: an OANDA-like CSV, HistData, MetaTrader 4 or 5, Dukascopy or Parquet file.
        instrument: what the bars price.
        timezone: clock that the file's times are on (see `Clock.named`); told from the file itself,
            or else from its weekend gaps, if not given.
        repair: drop faulty rows instead of refusing the file.
        progress: told how much of how much is read.
    Raises:
        FormatError: the file cannot be read, or a row breaks a rule; names the first such line.
        DataError: the zone cannot be told, or `timezone` is not known.
    """
    name = str(path)
    clock = Clock.named(timezone) if timezone is not None else None
    data = _load(path)
    if data[8:12] == b"DUCK":
        raise FormatError(name, "this is a data set already: use it with --data")
    if data.startswith(PARQUET_MAGIC):
        parquet = read_parquet(name, data, progress)
        format_name, rows, is_utc = PARQUET, parquet.rows, parquet.is_utc
    else:
        text = _as_ascii(name, data)
        layout = sniff(name, text, instrument)
        format_name, rows, is_utc = layout.name, read_text(name, text, layout, progress), layout.is_utc

    num_rows = len(rows) + len(rows.unreadable)
    refuse_other_than_minutes(name, rows.time_s)
    if (fault := first_fault(rows)) and not repair:
        raise _refusal(name, format_name, fault.line, fault.reason)
    rows = rows.kept(~faulty(rows))
    if len(rows) == 0:
        reason = "no row is left after the repair" if num_rows else "the file is empty"
        raise FormatError(name, f"{reason}: expected one-minute bars")

    clock, finding = _clock_of(name, rows.time_s, clock, is_utc)
    time_s = clock.to_utc(rows.time_s)
    if (disorder := first_disorder(time_s, rows.line)) and not repair:
        raise _refusal(name, format_name, disorder.line, disorder.reason)
    keep = rising(time_s)
    bars = _bars(instrument, time_s, rows)[keep]
    return ImportResult(bars, format_name, finding, num_rows - len(bars))


def _refusal(path: str, format_name: str, line: int, reason: str) -> FormatError:
    advice = "--repair drops such rows"
    if format_name == PARQUET:
        return FormatError(path, f"row {line}: {reason.replace(' in line ', ' in row ')}; {advice}")
    return FormatError(path, f"{reason}; {advice}", line=line)


def _clock_of(path: str, wall_s: Int64, asked: Clock | None, is_utc: bool) -> tuple[Clock, str]:
    """The clock that a file's times are on, and how that is known."""
    ordered = distinct(wall_s)
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


def _bars(instrument: Instrument, time_s: Int64, rows: RawRows) -> BarSeries:
    return BarSeries(
        instrument,
        time_s,
        rows.open,
        rows.high,
        rows.low,
        rows.close,
        rows.volume.astype(np.int64),
        rows.spread_pips,
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
