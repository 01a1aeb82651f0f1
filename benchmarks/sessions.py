"""Time of the session index, compared with the same rule in NumPy over sliding windows."""

from functools import partial

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from benchmarks.measure import Measurement, quickest
from shared.market.bar import BarSeries
from shared.market.calendar import is_open, open_minute, week_open_s
from shared.market.session import SESSION_BARS, WARMUP_BARS, SessionConfig, index_sessions
from shared.market.synthetic import Market, synthesize
from shared.numeric import Bool, Int64

#: Goal for 1.33 million bars.
GOAL_SECONDS = 0.1
GOAL_BARS = 1_330_000

_CHUNK_BARS = 100_000


def bench_sessions(num_bars: int = GOAL_BARS, *, repeats: int = 3, seed: int = 1) -> Measurement:
    """Measure the index on synthetic bars with gaps; the yardstick must find the same sessions.

    Args:
        num_bars: length of the market; one bar in a hundred is then removed.
        repeats: number of measurements of each, after a warm-up.
        seed: seed of market and gaps.
    Raises:
        AssertionError: the results differ.
    """
    all_bars = synthesize(Market.REGIMES, num_bars, seed)
    bars = all_bars[np.random.default_rng(seed).random(num_bars) > 0.01]
    ours, theirs = partial(index_sessions, bars), partial(windowed_starts, bars, SessionConfig())
    starts = ours().starts
    if not np.array_equal(theirs(), starts):
        raise AssertionError("the session index and its yardstick give different sessions")
    seconds, numpy_seconds = quickest((ours, theirs), repeats=repeats)
    return Measurement(
        name=f"session index, {len(starts):,} sessions in {len(bars):,} bars",
        value=seconds,
        unit="s",
        yardstick="NumPy over sliding windows",
        yardstick_value=numpy_seconds,
        goal_value=GOAL_SECONDS * num_bars / GOAL_BARS,
    )


def windowed_starts(bars: BarSeries, config: SessionConfig) -> Int64:
    """Every valid start bar, by checking each window of 360 bars."""
    size = WARMUP_BARS + SESSION_BARS
    starts = [
        begin + WARMUP_BARS + np.flatnonzero(_valid_windows(bars[begin : begin + _CHUNK_BARS + size], config))
        for begin in range(0, len(bars) - size, _CHUNK_BARS)
    ]
    return np.concatenate(starts) if starts else np.zeros(0, np.int64)


def _valid_windows(bars: BarSeries, config: SessionConfig) -> Bool:
    """Whether a session can start at each bar with a complete warm-up before it and 360 bars after it."""
    tradable = is_open(bars.time_s)
    minute = open_minute(bars.time_s)
    week = week_open_s(bars.time_s)
    session = slice(WARMUP_BARS, None)
    steps = sliding_window_view(np.diff(bars.time_s[session]), SESSION_BARS)
    open_bars = sliding_window_view(tradable[session], SESSION_BARS + 1)
    ranges = sliding_window_view(bars.range_pips[session][:-1], SESSION_BARS)
    present = sliding_window_view(tradable, WARMUP_BARS).sum(axis=1)[: len(steps)]
    missing = minute[WARMUP_BARS:-SESSION_BARS] - minute[: -WARMUP_BARS - SESSION_BARS] - present
    same_week = week[WARMUP_BARS:-SESSION_BARS] == week[WARMUP_BARS + SESSION_BARS :]
    valid: Bool = (
        (steps.max(axis=1) <= 60 * config.max_step_minutes)
        & open_bars.all(axis=1)
        & same_week
        & (ranges.mean(axis=1) >= config.min_mean_range_pips - 1e-9)
        & (missing <= config.max_warmup_missing_minutes)
    )
    return valid
