"""The rows of a bar file as read, and their checks."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace

import numpy as np
import numpy.typing as npt

from shared.errors import FormatError
from shared.market.bar import BarSeries
from shared.market.clock import FIRST_TIME_S, LAST_TIME_S, utc_text
from shared.numeric import Bool, Float64, Int64, kernel

#: Times must keep this distance from both ends of the calendar, so that their UTC time lies inside it.
_MARGIN_S = 14 * 86_400

PRICES = ("open", "high", "low", "close")

_MIN_STEPS = 3  # with fewer, the length of the bars cannot be inferred

_BAR_NAMES = {120: "two-minute", 300: "five-minute", 900: "fifteen-minute", 1800: "thirty-minute"} | {
    3600: "one-hour",
    14400: "four-hour",
    86400: "one-day",
}


@dataclass(frozen=True)
class RowFault:
    """A fault in one row."""

    line: int  # 1-based line of a text file, 1-based row of a Parquet file
    reason: str


@dataclass(frozen=True)
class RawRows:
    """The readable rows of a file, column by column, `[T]`, and the faults of the unreadable ones."""

    time_s: Int64  # whole seconds on the file's clock
    open: Float64
    high: Float64
    low: Float64
    close: Float64
    volume: Float64
    spread: Float64  # in the file's unit until `spread.in_pips` converts it; NaN if there is none
    line: Int64
    unreadable: list[RowFault] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.time_s)

    def kept(self, keep: Bool | Int64) -> "RawRows":
        """The rows that `keep` selects: a mask, `[T]`, or row indices in the wanted order."""
        columns = {name: getattr(self, name)[keep] for name in _COLUMNS}
        return replace(self, **columns)

    @classmethod
    def joined(cls, parts: list["RawRows"]) -> "RawRows":
        """All rows of consecutive parts."""
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
        return cls(**columns, unreadable=[fault for part in parts for fault in part.unreadable])


_COLUMNS = tuple(column.name for column in fields(RawRows) if column.name != "unreadable")


def distinct(time_s: Int64) -> Int64:
    """The distinct times in rising order; fast if they rise already."""
    ordered = np.sort(time_s, kind="stable")
    rises: Int64 = ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered
    return rises


def refuse_other_than_minutes(path: str, time_s: Int64) -> None:
    """Check that the most frequent step between bars is one minute.

    Raises:
        FormatError: it is longer or shorter.
    """
    steps = np.diff(distinct(time_s[time_s % 60 == 0]))
    if len(steps) < _MIN_STEPS:
        return
    lengths, counts = np.unique(steps, return_counts=True)
    usual = int(lengths[np.argmax(counts)])
    if usual != 60:
        name = _BAR_NAMES.get(usual, f"{usual}-second")
        raise FormatError(
            path, f"these are {name} bars (the usual step is {usual} s): expected one-minute bars"
        )


def row_faults(rows: RawRows) -> Iterator[tuple[Bool, str]]:
    """For each kind of fault within a row, yield a mask of its rows, `[T]`, and a reason template."""
    with np.errstate(invalid="ignore"):
        yield (
            (rows.time_s < FIRST_TIME_S + _MARGIN_S) | (rows.time_s >= LAST_TIME_S - _MARGIN_S),
            "time {time} lies outside the years 1970 to 2099",
        )
        yield (
            rows.time_s % 60 != 0,
            "time {time} is not a whole minute: expected the minute at which the bar opens",
        )
        for name in PRICES:
            price = getattr(rows, name)
            yield ~np.isfinite(price), name + " is {" + name + "}: expected a number"
            yield price <= 0, name + " is {" + name + "}: expected a positive price"
        yield rows.high < rows.low, "high {high} is below low {low}"
        for name in ("open", "close"):
            price = getattr(rows, name)
            yield (
                (price > rows.high) | (price < rows.low),
                name + " {" + name + "} lies outside low {low} to high {high}",
            )
        yield (
            ~(rows.volume >= 0) | (rows.volume >= 2**62),
            "volume is {volume}: expected 0 or more, below 2^62",
        )
        yield rows.spread < 0, "spread is {spread}: expected 0 or more"


@dataclass(frozen=True)
class FaultKind:
    """The rows with one kind of fault; a row with several faults counts only for the first."""

    count: int
    first: RowFault


def find_faults(rows: RawRows) -> tuple[Bool, list[FaultKind]]:
    """A mask of the rows with a fault, `[T]`, and all faults by kind, including those of unreadable rows."""
    kinds = []
    if rows.unreadable:
        kinds.append(FaultKind(len(rows.unreadable), min(rows.unreadable, key=lambda fault: fault.line)))
    faulty = np.zeros(len(rows), np.bool_)
    for where, template in row_faults(rows):
        new = where & ~faulty
        if new.any():
            row = int(np.argmax(new))
            fault = RowFault(int(rows.line[row]), template.format(**_values(rows, row)))
            kinds.append(FaultKind(int(new.sum()), fault))
        faulty |= where
    return faulty, kinds


def first_fault(rows: RawRows) -> RowFault | None:
    """The fault with the lowest line number, including those of unreadable rows."""
    _, kinds = find_faults(rows)
    return min((kind.first for kind in kinds), key=lambda fault: fault.line, default=None)


def flat_runs(rows: RawRows | BarSeries, min_rows: int) -> Bool:
    """A mask, `[T]`, of rows in long runs at one price without volume, the filler of closed hours.

    A row continues a run if it repeats the price of the row before it, one minute later, without volume.
    """
    flat = (rows.volume == 0) & (rows.high == rows.low) & (rows.open == rows.close)
    flat[1:] &= (rows.close[1:] == rows.close[:-1]) & (np.diff(rows.time_s) == 60)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]]).astype(np.int8)))
    starts, stops = edges[::2], edges[1::2]
    in_run = np.zeros(len(rows), np.bool_)
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        if stop - start >= min_rows:
            in_run[start:stop] = True
    return in_run


def first_disorder(time_s: Int64, line: Int64) -> RowFault | None:
    """The first row whose UTC time is not later than that of the row before it; None if all times rise."""
    falls = np.flatnonzero(np.diff(time_s) <= 0)
    if len(falls) == 0:
        return None
    before, row = int(falls[0]), int(falls[0]) + 1
    now, then = utc_text(int(time_s[row])), utc_text(int(time_s[before]))
    if now == then:
        return RowFault(int(line[row]), f"time {now} occurs twice, first in line {line[before]}")
    return RowFault(
        int(line[row]), f"time {now} is earlier than {then} in line {line[before]}: expected rising times"
    )


def rising(time_s: Int64) -> Bool:
    """A mask of the rows to keep, `[T]`, so that times rise strictly and the fewest rows are dropped.

    Of neighbouring rows with the same time the first is kept.
    """
    keep = np.append(True, time_s[1:] != time_s[:-1]) if len(time_s) else np.zeros(0, np.bool_)
    if (np.diff(time_s[keep]) > 0).all():
        return keep
    keep[np.flatnonzero(keep)[~_longest_rising(time_s[keep])]] = False
    return keep


def repetitions(rows: RawRows, keep: Bool) -> int:
    """The number of dropped rows that repeat the time and prices of a kept one."""
    kept_s = rows.time_s[keep]  # rising
    index = np.minimum(np.searchsorted(kept_s, rows.time_s[~keep]), len(kept_s) - 1)
    same = kept_s[index] == rows.time_s[~keep]
    for name in PRICES:
        price = getattr(rows, name)
        same &= price[keep][index] == price[~keep]
    return int(same.sum())


@kernel
def _longest_rising(values: Int64) -> Bool:
    """A mask, `[T]`, of one longest strictly rising subsequence, by patience sorting in O(n log n)."""
    last = np.empty(len(values), np.int64)  # last row of the best run of each length
    before = np.empty(len(values), np.int64)  # the row before each row in its run
    length = 0
    for row in range(len(values)):
        low, high = 0, length
        while low < high:
            middle = (low + high) // 2
            if values[last[middle]] < values[row]:
                low = middle + 1
            else:
                high = middle
        before[row] = last[low - 1] if low > 0 else -1
        last[low] = row
        length = max(length, low + 1)
    keep = np.zeros(len(values), np.bool_)
    row = last[length - 1] if length > 0 else -1
    while row >= 0:
        keep[row] = True
        row = before[row]
    return keep


def _values(rows: RawRows, row: int) -> dict[str, npt.ArrayLike]:
    values: dict[str, npt.ArrayLike] = {name: getattr(rows, name)[row] for name in _COLUMNS}
    time_s = int(rows.time_s[row])
    in_range = FIRST_TIME_S <= time_s < LAST_TIME_S
    return values | {"time": str(np.datetime64(time_s, "s")) if in_range else str(time_s)}
