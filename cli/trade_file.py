"""Lists of trades for `metrics`: CSV files with a header."""

import csv
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from shared.errors import FormatError
from shared.market.calendar import is_open
from shared.market.clock import FIRST_TIME_S, LAST_TIME_S
from shared.metrics.trades import MAX_TRADE_PIPS
from shared.numeric import Float64, Int64

#: Names of the known columns; only `pips` is required.
PIPS, RISK, TIME = "pips", "risk", "time"

#: Stricter than `float`, which reads 1_0 as 10.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class TradeFile:
    """Trades in the order of their exits."""

    pips: Float64  # [N]
    risk_pips: Float64 | None  # [N]
    time_s: Int64 | None  # [N] time of exit, UTC seconds
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Row:
    """The cells of the known columns of one line."""

    line: int
    cells: dict[str, str]


def read_trades(path: Path) -> TradeFile:
    """Read a list of trades, sorted by time if the file has times.

    Raises:
        FormatError: the file is invalid; the text names the line and the expected value.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            known, rows = _rows(path, file.read().splitlines())
    except OSError as failure:
        raise FormatError(str(path), failure.strerror or "cannot be read") from failure
    except (UnicodeDecodeError, csv.Error) as invalid:
        raise FormatError(str(path), f"not a CSV file in UTF-8: {invalid}") from invalid
    if not rows:
        raise FormatError(str(path), "no trade, expected at least one line below the header")
    pips = np.array([_number(path, row, PIPS) for row in rows])
    risk = np.array([_positive(path, row) for row in rows]) if RISK in known else None
    if TIME not in known:
        return TradeFile(pips, risk, None)
    times = np.array([_moment(path, row) for row in rows], np.int64)
    order = np.argsort(times, kind="stable")
    return TradeFile(
        pips[order], None if risk is None else risk[order], times[order], _outside_the_week(rows, times)
    )


def _rows(path: Path, lines: list[str]) -> tuple[set[str], list[_Row]]:
    """The known columns of the file, and their cells line by line."""
    reader = csv.reader(lines)
    header = [name.strip().lower() for name in next(reader, [])]
    positions = _columns(path, header)
    rows = []
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(header):
            reason = f"{len(cells)} cells, the header has {len(header)} columns"
            raise FormatError(str(path), reason, line=reader.line_num)
        rows.append(_Row(reader.line_num, {name: cells[at] for name, at in positions.items()}))
    return set(positions), rows


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    """Position of each known column."""
    if duplicates := [name for name in (PIPS, RISK, TIME) if header.count(name) > 1]:
        raise FormatError(str(path), f"column {duplicates[0]!r} appears more than once", line=1)
    positions = {name: header.index(name) for name in (PIPS, RISK, TIME) if name in header}
    if PIPS not in positions:
        found = ", ".join(header) or "nothing"
        reason = f"no column {PIPS!r} in the header ({found})"
        if separator := next((mark for mark in (";", "\t") if mark in found), ""):
            reason += f"; columns are separated by {separator!r}, expected commas"
        raise FormatError(str(path), reason, line=1)
    return positions


def _number(path: Path, row: _Row, name: str) -> float:
    written = row.cells[name].strip()
    if not _NUMBER.fullmatch(written):
        hint = " with a decimal point" if "," in written else ""
        raise FormatError(str(path), f"{name} is {written!r}, expected a number{hint}", line=row.line)
    value = round(float(written), 9)  # prices have fewer digits; anything smaller is a rounding error
    if abs(value) > MAX_TRADE_PIPS:
        limit = f"{MAX_TRADE_PIPS:,.0f}"
        reason = f"{name} is {written}, expected a number between -{limit} and {limit}"
        raise FormatError(str(path), reason, line=row.line)
    return value


def _positive(path: Path, row: _Row) -> float:
    value = _number(path, row, RISK)
    if value <= 0.0:
        reason = f"{RISK} is {row.cells[RISK]!r}, expected a positive number of pips"
        raise FormatError(str(path), reason, line=row.line)
    return value


def _moment(path: Path, row: _Row) -> int:
    """Parse ISO 8601 (UTC if no zone is given) or seconds since 1970."""
    written = row.cells[TIME].strip()
    try:
        if written.isascii() and written.isdecimal():
            time_s = int(written)
        else:
            moment = datetime.fromisoformat(written)
            time_s = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError) as invalid:
        reason = f"{TIME} is {written!r}, expected ISO 8601 (2024-03-08T21:58:00Z) or seconds since 1970"
        raise FormatError(str(path), reason, line=row.line) from invalid
    if not FIRST_TIME_S <= time_s < LAST_TIME_S:
        hint = "; it looks like milliseconds" if FIRST_TIME_S <= time_s // 1000 < LAST_TIME_S else ""
        reason = f"{TIME} is {written[:40]!r}, expected seconds of the years 1970 to 2099{hint}"
        raise FormatError(str(path), reason, line=row.line)
    return time_s


def _outside_the_week(rows: list[_Row], times: Int64) -> tuple[str, ...]:
    """Warn of exits while the market is closed; they would count as extra trading days."""
    closed = ~(is_open(times) | is_open(times - 1))
    if not closed.any():
        return ()
    first = rows[int(np.argmax(closed))]
    return (
        f"{int(closed.sum())} of {len(times)} trades were closed outside market hours, the first in line "
        f"{first.line} ({first.cells[TIME].strip()}); are the times in UTC?",
    )
