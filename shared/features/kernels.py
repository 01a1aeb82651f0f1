"""The nine temporal columns: one kernel per column concept, over a state that carries the trailing windows.

A kernel takes the next bars, one or a million, and goes on from where the last call left its state.
History is one call with every bar, live trading is one call per closed bar: the same operations in
the same order, so the two agree bit for bit, and no value can depend on a later bar.
"""

import math
from typing import NamedTuple

import numpy as np

from shared.numeric import Float32, Float64, Int64, kernel

NUM_FEATURES = 9

#: L of SPEC section 4: bars in every rolling window, the current one included.
LOOKBACK_BARS = 60
SHORT_MOMENTUM_BARS = 5

#: Index of the first bar whose nine values are all defined: momentum starts at 60, its scale 59 later.
FIRST_VALID_BAR = 2 * LOOKBACK_BARS - 1

#: A move of one bar is squashed by tanh after division by this many pips.
PRICE_CHANGE_SCALE_PIPS = 10.0

DAYS_PER_WEEK = 5
MINUTES_PER_DAY = 24 * 60

#: Bars that are worked on at a time, so that what lies between the columns stays in the processor's cache.
_CHUNK_BARS = 2048


def _circle(positions: int) -> Float32:
    """Cosine and sine of `positions` equal steps around a circle, `[positions, 2]`."""
    angle = 2.0 * np.pi * np.arange(positions) / positions
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


_DAY_CIRCLE = _circle(DAYS_PER_WEEK)
_MINUTE_CIRCLE = _circle(DAYS_PER_WEEK * MINUTES_PER_DAY)


class Trailing(NamedTuple):
    """The last 60 values of a series, kept so that their extrema cost O(1) per value.

    Values fill blocks of 60. A window is the tail of the last full block and the head of the block
    being filled: the tail's extrema are suffix extrema computed once when a block is full, the head's
    are running ones (van Herk 1992; Gil and Werman 1993). It does the work of a pair of monotonic
    deques without their unpredictable branches; minimum and maximum never round, so both give the same bits.
    """

    low: Float64  # [61] values of the head, then suffix minima of the tail, then +inf
    high: Float64  # [61] values of the head, then suffix maxima of the tail, then -inf
    head: Float64  # [2] lowest and highest value of the head
    filled: Int64  # [1] number of values in the head

    @classmethod
    def empty(cls) -> "Trailing":
        """No value seen yet."""
        return cls(
            np.full(LOOKBACK_BARS + 1, np.inf),
            np.full(LOOKBACK_BARS + 1, -np.inf),
            np.array([np.inf, -np.inf]),
            np.zeros(1, np.int64),
        )


class FeatureState(NamedTuple):
    """All that the features of the next bar need to know of the bars before it; `advance` writes to it."""

    closes: Float64  # [60] the last closes, oldest first; zero where there was none yet
    seen: Int64  # [2] number of bars; opening time of the last, in seconds
    price: Trailing
    momentum_60: Trailing
    momentum_5: Trailing
    rolling_range: Trailing

    @classmethod
    def empty(cls) -> "FeatureState":
        """No bar seen yet."""
        windows = (Trailing.empty() for _ in range(4))
        return cls(np.zeros(LOOKBACK_BARS), np.array([0, np.iinfo(np.int64).min]), *windows)


@kernel
def num_acceptable(last_time_s: int, time_s: Int64, close: Float64) -> int:
    """How many of the bars `[T]` may be taken: up to the first that is not later than the one before
    it, or whose close is no positive finite number."""
    for bar in range(len(time_s)):
        if time_s[bar] <= last_time_s or not 0.0 < close[bar] < np.inf:
            return bar
        last_time_s = time_s[bar]
    return len(time_s)


@kernel
def trailing_extrema(values: Float64, trailing: Trailing, lowest: Float64, highest: Float64) -> None:
    """Lowest and highest of the last 60 values, each value included, in one pass.

    Args:
        values: `[N]`, the next values of the series.
        trailing: of the values before; changed.
        lowest: `[N]`, written to.
        highest: `[N]`, written to.
    """
    low, high = trailing.low, trailing.high
    head_low, head_high = trailing.head
    position = trailing.filled[0]
    for index in range(len(values)):
        value = values[index]
        head_low = min(head_low, value)
        head_high = max(head_high, value)
        lowest[index] = min(head_low, low[position + 1])
        highest[index] = max(head_high, high[position + 1])
        low[position] = value
        high[position] = value
        position += 1
        if position == LOOKBACK_BARS:
            for earlier in range(LOOKBACK_BARS - 2, -1, -1):
                low[earlier] = min(low[earlier], low[earlier + 1])
                high[earlier] = max(high[earlier], high[earlier + 1])
            head_low, head_high, position = np.inf, -np.inf, 0
    trailing.head[0], trailing.head[1] = head_low, head_high
    trailing.filled[0] = position


@kernel
def write_scaled(values: Float64, lowest: Float64, highest: Float64, rows: Float32, column: int) -> None:
    """Write where each value lies between its bounds, 0 to 1, and 0.5 where the bounds coincide.

    Args:
        values: `[N]`.
        lowest: `[N]`.
        highest: `[N]`.
        rows: `[N, 9]`, written to.
        column: the one to write.
    """
    for index in range(len(values)):
        span = highest[index] - lowest[index]
        rows[index, column] = (values[index] - lowest[index]) / span if span > 0.0 else 0.5


@kernel
def write_scaled_momentum(
    closes: Float64, first: int, lag: int, trailing: Trailing, rows: Float32, column: int
) -> None:
    """Columns 1 and 3: the change over `lag` bars, between its extrema over 60 bars.

    Args:
        closes: `[60 + N]`, the 60 closes before and the next ones.
        first: index among the next bars of the first that has a close `lag` bars before it.
        lag: in bars, at most 60.
        trailing: of the momentum before; changed.
        rows: `[N, 9]`, written to.
        column: the one to write.
    """
    start = LOOKBACK_BARS + first
    momentum = closes[start:] - closes[start - lag : len(closes) - lag]
    lowest, highest = np.empty_like(momentum), np.empty_like(momentum)
    trailing_extrema(momentum, trailing, lowest, highest)
    write_scaled(momentum, lowest, highest, rows[first:], column)


@kernel
def write_ranges(
    closes: Float64, first: int, price: Trailing, rolling_range: Trailing, rows: Float32
) -> None:
    """Columns 0 and 2: the close within its range over 60 bars, and that range within its own extrema.

    Args:
        closes: `[60 + N]`, the 60 closes before and the next ones.
        first: index among the next bars of the first that ends a full window.
        price: of the closes before; changed.
        rolling_range: of the ranges before; changed.
        rows: `[N, 9]`, written to.
    """
    values = closes[LOOKBACK_BARS:]
    lowest, highest = np.empty_like(values), np.empty_like(values)
    trailing_extrema(values, price, lowest, highest)
    write_scaled(values, lowest, highest, rows, 0)
    spans = highest[first:] - lowest[first:]
    trailing_extrema(spans, rolling_range, lowest[first:], highest[first:])
    write_scaled(spans, lowest[first:], highest[first:], rows[first:], 2)


@kernel
def write_price_change(closes: Float64, pip: float, rows: Float32) -> None:
    """Column 4: the change over one bar in pips, squashed.

    Args:
        closes: `[60 + N]`, the 60 closes before and the next ones.
        pip: in units of price.
        rows: `[N, 9]`, written to.
    """
    for index in range(len(rows)):
        here = LOOKBACK_BARS + index
        change_pips = (closes[here] - closes[here - 1]) / pip
        rows[index, 4] = math.tanh(change_pips / PRICE_CHANGE_SCALE_PIPS)


@kernel
def write_clock(time_s: Int64, openings_s: Int64, rows: Float32) -> None:
    """Columns 5 to 8: day and minute of the trading week on their circles.

    A bar after Friday's close counts as the week's last minute.

    Args:
        time_s: `[N]`, ascending.
        openings_s: `[W]`, ascending: openings of the trading weeks, those of all bars among them.
        rows: `[N, 9]`, written to.
    """
    week = np.searchsorted(openings_s, time_s[0], side="right") - 1
    for index in range(len(time_s)):
        while week + 1 < len(openings_s) and openings_s[week + 1] <= time_s[index]:
            week += 1
        minute = min((time_s[index] - openings_s[week]) // 60, DAYS_PER_WEEK * MINUTES_PER_DAY - 1)
        day = minute // MINUTES_PER_DAY
        rows[index, 5] = _DAY_CIRCLE[day, 0]
        rows[index, 6] = _DAY_CIRCLE[day, 1]
        rows[index, 7] = _MINUTE_CIRCLE[minute, 0]
        rows[index, 8] = _MINUTE_CIRCLE[minute, 1]


@kernel
def advance(
    state: FeatureState, time_s: Int64, close: Float64, openings_s: Int64, pip: float, rows: Float32
) -> None:
    """Take the next bars and write their nine features, NaN while they are not all defined.

    Args:
        state: of the bars before; changed.
        time_s: `[N]` opening times that `num_acceptable` accepts, as it does the closes.
        close: `[N]`.
        openings_s: `[W]`, ascending: openings of the trading weeks, those of all bars among them.
        pip: in units of price.
        rows: `[N, 9]`, written to.
    """
    buffer = np.empty(LOOKBACK_BARS + min(len(close), _CHUNK_BARS))
    buffer[:LOOKBACK_BARS] = state.closes
    for start in range(0, len(close), _CHUNK_BARS):
        stop = min(start + _CHUNK_BARS, len(close))
        seen = state.seen[0] + start
        closes = buffer[: LOOKBACK_BARS + stop - start]
        closes[LOOKBACK_BARS:] = close[start:stop]
        chunk = rows[start:stop]
        first = min(stop - start, max(0, LOOKBACK_BARS - 1 - seen))
        write_ranges(closes, first, state.price, state.rolling_range, chunk)
        first = min(stop - start, max(0, LOOKBACK_BARS - seen))
        write_scaled_momentum(closes, first, LOOKBACK_BARS, state.momentum_60, chunk, 1)
        first = min(stop - start, max(0, SHORT_MOMENTUM_BARS - seen))
        write_scaled_momentum(closes, first, SHORT_MOMENTUM_BARS, state.momentum_5, chunk, 3)
        write_price_change(closes, pip, chunk)
        write_clock(time_s[start:stop], openings_s, chunk)
        for row in range(min(stop - start, FIRST_VALID_BAR - seen)):
            chunk[row] = np.nan
        buffer[:LOOKBACK_BARS] = closes[stop - start :]
    state.closes[:] = buffer[:LOOKBACK_BARS]
    if len(time_s):
        state.seen[0] += len(time_s)
        state.seen[1] = time_s[-1]
