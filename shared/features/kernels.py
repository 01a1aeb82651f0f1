"""Kernels that compute the nine temporal features from the closes and times of bars.

The features of a bar depend only on its time, its close and the 119 closes before it. A history is computed
in one call for all bars. Live trading makes one call per closed bar and passes the 119 closes before it. Both
run the same operations, so they give identical bits, and no feature can depend on a later bar.

A rolling minimum or maximum over 60 values takes three passes. The first covers windows of 4 values. The
second combines four windows of 4 to a window of 16, and the third four overlapping windows of 16 to one of
60. The compiler turns these passes into vector instructions. A monotonic deque would need only one pass, but
has unpredictable branches. Minimum and maximum never round, so both methods would give identical bits.
"""

import math

import numpy as np

from shared.numeric import Float32, Float64, Int64, kernel

NUM_FEATURES = 9

#: L in docs/algorithm.md: number of bars in every rolling window, including the current bar.
#: `trailing_extrema` is written for this length.
LOOKBACK_BARS = 60
SHORT_MOMENTUM_BARS = 5

#: Index of the first bar with nine defined features. The 60-bar momentum is defined from bar 60 on, and its
#: 60-bar extrema from bar 119 on.
FIRST_VALID_BAR = 2 * LOOKBACK_BARS - 1

#: The price change of one bar is divided by this many pips before tanh.
PRICE_CHANGE_SCALE_PIPS = 10.0

DAYS_PER_WEEK = 5
MINUTES_PER_DAY = 24 * 60

#: Number of bars processed at a time, at least `FIRST_VALID_BAR`. Small enough for the intermediate columns
#: to stay in the processor's cache.
_CHUNK_BARS = 4096


def _clock() -> Float32:
    """Columns 5 to 8 for every minute of the trading week, `[7200, 4]`."""
    minute = np.arange(DAYS_PER_WEEK * MINUTES_PER_DAY)
    day_angle = 2.0 * np.pi * (minute // MINUTES_PER_DAY) / DAYS_PER_WEEK
    hour_angle = 2.0 * np.pi * (minute / 60.0) / (24 * DAYS_PER_WEEK)
    columns = [np.cos(day_angle), np.sin(day_angle), np.cos(hour_angle), np.sin(hour_angle)]
    return np.stack(columns, axis=1).astype(np.float32)


_CLOCK = _clock()


@kernel
def num_acceptable(last_time_s: int, time_s: Int64, close: Float64) -> int:
    """Number of leading bars that are acceptable.

    A bar is acceptable if it is later than the preceding bar and its close is positive and finite.

    Args:
        last_time_s: time of the bar that precedes the first one.
        time_s: `[N]` opening times of the bars.
        close: `[N]` closes of the bars.
    """
    later, acceptable = time_s[1:], True
    for bar in range(len(later)):  # no early exit, so that it compiles to vector instructions
        acceptable &= later[bar] > time_s[bar]
    for bar in range(len(close)):
        acceptable &= (close[bar] > 0.0) & (close[bar] < np.inf)
    if acceptable and len(time_s) and time_s[0] > last_time_s:
        return len(time_s)
    for bar in range(len(time_s)):
        if time_s[bar] <= last_time_s or not 0.0 < close[bar] < np.inf:
            return bar
        last_time_s = time_s[bar]
    return len(time_s)


@kernel
def _join(low: Float64, high: Float64, second: int, third: int, fourth: int) -> tuple[Float64, Float64]:
    """Combine each window with the three that start `second`, `third` and `fourth` values later."""
    low_2, low_3, low_4 = low[second:], low[third:], low[fourth:]
    high_2, high_3, high_4 = high[second:], high[third:], high[fourth:]
    lowest, highest = np.empty(len(low_4)), np.empty(len(high_4))
    for index in range(len(lowest)):
        lowest[index] = min(low[index], low_2[index], low_3[index], low_4[index])
    for index in range(len(highest)):
        highest[index] = max(high[index], high_2[index], high_3[index], high_4[index])
    return lowest, highest


@kernel
def trailing_extrema(values: Float64) -> tuple[Float64, Float64]:
    """Minimum and maximum of every 60 consecutive values.

    Args:
        values: `[N + 59]` values in order.
    Returns:
        Two arrays `[N]`, the minima and the maxima; their first elements cover values 0 to 59.
    """
    low, high = _join(values, values, 1, 2, 3)  # of 4 values
    low, high = _join(low, high, 4, 8, 12)  # of 16
    return _join(low, high, 16, 32, 44)  # of 60


@kernel
def scaled(values: Float64, lowest: Float64, highest: Float64) -> Float32:
    """Position of each value between its bounds, 0 to 1; 0.5 if the bounds coincide. All `[N]`."""
    shares = np.empty(len(values), np.float32)
    for index in range(len(values)):
        span = highest[index] - lowest[index]
        shares[index] = (values[index] - lowest[index]) / span if span > 0.0 else 0.5
    return shares


@kernel
def range_columns(closes: Float64) -> tuple[Float32, Float32]:
    """Columns 0 and 2: the close within its 60-bar range, and that range within its 60-bar extrema.

    Args:
        closes: `[119 + N]`, the 119 closes before the bars, then the closes of the bars.
    Returns:
        Two columns `[N]`.
    """
    lowest, highest = trailing_extrema(closes[1:])
    earlier = LOOKBACK_BARS - 1
    position = scaled(closes[FIRST_VALID_BAR:], lowest[earlier:], highest[earlier:])
    rolling_range = highest - lowest
    lowest, highest = trailing_extrema(rolling_range)
    return position, scaled(rolling_range[earlier:], lowest, highest)


@kernel
def momentum_column(closes: Float64, lag: int) -> Float32:
    """Columns 1 and 3: the change over `lag` bars, within its 60-bar extrema.

    Args:
        closes: `[119 + N]`, the 119 closes before the bars, then the closes of the bars.
        lag: number of bars, at most 60.
    Returns:
        `[N]`.
    """
    momentum = closes[LOOKBACK_BARS:] - closes[LOOKBACK_BARS - lag : len(closes) - lag]
    lowest, highest = trailing_extrema(momentum)
    return scaled(momentum[LOOKBACK_BARS - 1 :], lowest, highest)


@kernel
def price_change_column(closes: Float64, pip: float) -> Float32:
    """Column 4: the change over one bar in pips, squashed by tanh.

    tanh a = 1 - 2/(e^(2a) + 1) for a >= 0, where e^x is computed as the 64th power of the Taylor series of
    e^(x/64). The result is exact to 11 digits, more than float32 has. Unlike a call of the library's tanh,
    this compiles to vector instructions, which makes it five times as fast.

    Args:
        closes: `[119 + N]`, the 119 closes before the bars, then the closes of the bars.
        pip: size of a pip in units of price.
    Returns:
        `[N]`.
    """
    close, last_close = closes[FIRST_VALID_BAR:], closes[FIRST_VALID_BAR - 1 :]
    scale = 2.0 / (PRICE_CHANGE_SCALE_PIPS * pip) / 64.0
    squashed = np.empty(len(close), np.float32)
    for index in range(len(close)):
        change = close[index] - last_close[index]
        x = min(abs(change) * scale, 20.0 / 64.0)  # tanh 10 is 1 in float32
        power = 1.0 + x * (1 / 9) * (1.0 + x * (1 / 10))
        for k in (1 / 8, 1 / 7, 1 / 6, 1 / 5, 1 / 4, 1 / 3, 1 / 2, 1.0):
            power = 1.0 + x * k * power
        for _ in range(6):
            power *= power
        denominator = power + 1.0
        size = 1.0 - 2.0 / denominator if denominator > 0.0 else 0.0
        squashed[index] = math.copysign(size, change)
    return squashed


@kernel
def minute_of_week(time_s: Int64, openings_s: Int64) -> Int64:
    """Full minutes since the opening of the trading week; 7199 after Friday's close.

    Args:
        time_s: `[N]` opening times of the bars, ascending.
        openings_s: `[W]` openings of the trading weeks, ascending; the first is at or before the first bar,
            the last after the last bar.
    Returns:
        `[N]`, 0 to 7199.
    """
    minutes = np.empty_like(time_s)
    opening_s = next_opening_s = time_s[0]
    for index in range(len(time_s)):
        if time_s[index] >= next_opening_s:
            week = np.searchsorted(openings_s, time_s[index], side="right")
            opening_s, next_opening_s = openings_s[week - 1], openings_s[week]
        minutes[index] = min((time_s[index] - opening_s) // 60, len(_CLOCK) - 1)
    return minutes


@kernel
def write_features(
    history: Float64, time_s: Int64, close: Float64, openings_s: Int64, pip: float, rows: Float32
) -> None:
    """Write the nine features of consecutive bars to `rows`.

    Args:
        history: `[119]` the closes before the bars, oldest first. Missing ones are NaN; if a bar needs one of
            them, all its features are NaN.
        time_s: `[N]` opening times of the bars, ascending.
        close: `[N]` closes of the bars.
        openings_s: `[W]` openings of the trading weeks, ascending; the first is at or before the first bar,
            the last after the last bar.
        pip: size of a pip in units of price.
        rows: `[N, 9]`, the output.
    """
    closes = np.append(history, close[:_CHUNK_BARS])
    for start in range(0, len(close), _CHUNK_BARS):
        stop = min(start + _CHUNK_BARS, len(close))
        if start > 0:
            closes = close[start - FIRST_VALID_BAR : stop]
        position, rolling_range = range_columns(closes)
        momentum_60 = momentum_column(closes, LOOKBACK_BARS)
        momentum_5 = momentum_column(closes, SHORT_MOMENTUM_BARS)
        price_change = price_change_column(closes, pip)
        minutes = minute_of_week(time_s[start:stop], openings_s)
        chunk = rows[start:stop]
        for index in range(len(chunk)):
            chunk[index, 0] = position[index]
            chunk[index, 1] = momentum_60[index]
            chunk[index, 2] = rolling_range[index]
            chunk[index, 3] = momentum_5[index]
            chunk[index, 4] = price_change[index]
            for column in range(4):
                chunk[index, 5 + column] = _CLOCK[minutes[index], column]
        for index in range(len(chunk)):
            if np.isnan(closes[index]):
                chunk[index] = np.nan
