"""Temporal features of a history and of live bars, and the windows that the encoder reads."""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from shared.errors import DataError
from shared.features.kernels import (
    FIRST_VALID_BAR,
    NUM_FEATURES,
    num_acceptable,
    write_features,
)
from shared.market.bar import BarSeries, Instrument
from shared.market.calendar import week_open_s, week_opens
from shared.numeric import Float32, Float64, Int64, require_shape

#: Bars in one temporal window, oldest first.
WINDOW_BARS = 32

#: Index of the first bar whose window has no undefined value.
FIRST_WINDOW_BAR = FIRST_VALID_BAR + WINDOW_BARS - 1

FEATURE_NAMES: tuple[str, ...] = (
    "position_in_range_60",
    "min_max_scaled_momentum_60",
    "min_max_scaled_rolling_range",
    "min_max_scaled_momentum_5",
    "price_change_pips",
    "dow_cos_final",
    "dow_sin_final",
    "hour_cos_final",
    "hour_sin_final",
)


#: Least number of bars for which another thread is worth its cost.
LEAST_PART_BARS = 50_000

#: Stands for the time of a previous bar where there is none.
_BEFORE_ALL_S = int(np.iinfo(np.int64).min)


def temporal_features(bars: BarSeries) -> Float32:
    """The nine temporal features of every bar.

    Returns:
        `[T, 9]`, columns as in `FEATURE_NAMES`; rows before `FIRST_VALID_BAR` are NaN.
    Raises:
        DataError: a time is not later than the one before it or lies outside 1970-2099, or a close is
            not a positive number.
    Source: docs/algorithm.md, Features. Oracle: tests/oracles/features.py.
    """
    rows = np.empty((len(bars), NUM_FEATURES), np.float32)
    if len(bars) == 0:
        return rows
    time_s, close = np.ascontiguousarray(bars.time_s), np.ascontiguousarray(bars.close)
    bar = num_acceptable(_BEFORE_ALL_S, time_s, close)
    if bar < len(bars):
        last_s = int(time_s[bar - 1]) if bar else None
        raise _refusal(bar, int(time_s[bar]), float(close[bar]), last_s)
    week_open_s(time_s[[0, -1]])  # raises for times outside the calendar
    _write_in_parts(time_s, close, bars.instrument.pip, rows)
    return rows


def _write_in_parts(time_s: Int64, close: Float64, pip: float, rows: Float32) -> None:
    """Write the features of a history on all cores; no bar needs the features of another."""
    openings_s = week_opens()

    def write(begin: int, end: int) -> None:
        history = close[begin - FIRST_VALID_BAR : begin] if begin else _no_history()
        write_features(history, time_s[begin:end], close[begin:end], openings_s, pip, rows[begin:end])

    num_parts = max(1, min(os.cpu_count() or 1, len(close) // LEAST_PART_BARS))
    edges = np.linspace(0, len(close), num_parts + 1).astype(np.int64).tolist()
    with ThreadPoolExecutor(num_parts) as pool:
        for future in [pool.submit(write, *part) for part in pairwise(edges)]:
            future.result()


class FeatureStream:
    """Temporal features of live bars, one closed bar at a time.

    For the bars of a history the features equal those of `temporal_features` bit for bit, because both
    run the same kernels.
    """

    def __init__(self, instrument: Instrument) -> None:
        self._pip = instrument.pip
        self._num_bars = 0
        self._last_s = _BEFORE_ALL_S
        self._closes = _no_history()
        self._window = np.full((WINDOW_BARS, NUM_FEATURES), np.nan, np.float32)

    def __len__(self) -> int:
        return self._num_bars

    def push(self, time_s: int, close: float) -> Float32 | None:
        """Process the next closed bar.

        Args:
            time_s: the bar's opening time.
            close: the bar's close.
        Returns:
            The bar's features, `[9]`, or None until all nine are defined.
        Raises:
            DataError: the time is not later than the last bar's or lies outside 1970-2099, or the close
                is not a positive number; the stream is unchanged.
        """
        times, closes = np.array([time_s], np.int64), np.array([close], np.float64)
        if not num_acceptable(self._last_s, times, closes):
            raise _refusal(len(self), time_s, close, self._last_s if len(self) else None)
        week_open_s(times)  # raises for times outside the calendar
        row = np.empty((1, NUM_FEATURES), np.float32)
        write_features(self._closes, times, closes, week_opens(), self._pip, row)
        self._num_bars += 1
        self._last_s = time_s
        self._closes = np.append(self._closes[1:], close)
        self._window = np.concatenate([self._window[1:], row])
        return row[0] if len(self) > FIRST_VALID_BAR else None

    def window(self) -> Float32 | None:
        """The features of the last 32 bars, `[32, 9]`, oldest first; None while one of them is undefined."""
        return self._window.copy() if len(self) > FIRST_WINDOW_BAR else None


def window(features: Float32, bar: int) -> Float32:
    """The temporal window that ends with a bar.

    Args:
        features: `[T, 9]` features of a series.
        bar: index of the bar, at least `FIRST_WINDOW_BAR`.
    Returns:
        The window, `[32, 9]`, oldest bar first.
    Raises:
        DataError: the bar lies outside the series or too early for a full window.
    """
    result: Float32 = windows(features, np.array([bar]))[0]
    return result


def windows(features: Float32, bars: Int64) -> Float32:
    """The temporal windows that end with the given bars.

    Args:
        features: `[T, 9]` features of a series.
        bars: `[N]` indices of the bars, each at least `FIRST_WINDOW_BAR`.
    Returns:
        The windows, `[N, 32, 9]`, oldest bar first.
    Raises:
        DataError: a bar lies outside the series or too early for a full window.
    """
    require_shape("features", features, None, NUM_FEATURES)
    require_shape("bars", bars, None)
    outside = (bars < FIRST_WINDOW_BAR) | (bars >= len(features))
    if outside.any():
        raise DataError(
            f"bar {bars[outside][0]} has no temporal window: "
            f"expected an index from {FIRST_WINDOW_BAR} to {len(features) - 1}"
        )
    offsets = np.arange(1 - WINDOW_BARS, 1)
    rows: Float32 = features[bars[:, None] + offsets]
    return rows


def _no_history() -> Float64:
    """The closes before the first bar: all NaN, because none exist."""
    return np.full(FIRST_VALID_BAR, np.nan)


def _refusal(bar: int, time_s: int, close: float, last_time_s: int | None) -> DataError:
    """The error for a bar that `num_acceptable` rejects."""
    if not (math.isfinite(close) and close > 0.0):
        return DataError(f"bar {bar} at {_utc(time_s)}: close {close}, expected a positive number")
    previous = "" if last_time_s is None else f", {_utc(last_time_s)}"
    return DataError(f"bar {bar} at {_utc(time_s)}: expected a time after the previous bar{previous}")


def _utc(time_s: int) -> str:
    return f"{np.datetime64(time_s, 's')}Z"
