"""Resampling with replacement: single values, or blocks that keep streaks together.

Each run has its own generator, which depends only on the seed and the number of the run, so results do
not depend on the number of threads.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numba
import numpy as np

from shared.errors import DataError
from shared.metrics.rounding import mean_over_deviation
from shared.metrics.trades import SQN_CAP
from shared.numeric import Float64, kernel, parallel_kernel

#: With fewer values their autocorrelation cannot be estimated.
_MIN_VALUES_FOR_BLOCKS = 10

#: Length of a run of insignificant autocorrelations. Values count as independent from its first lag on
#: (Politis and White's K_N).
_QUIET_LAGS = 5

#: Leaves room in 64 bits for the repeat number that sizing adds to the seed.
MAX_SEED: Final = 2**62

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Resampling(StrEnum):
    """How runs are drawn from the observed values."""

    IID = "iid"  # value by value: keeps the distribution, loses streaks
    BLOCK = "block"  # stationary bootstrap: blocks of geometric length, wrapped around


@dataclass(frozen=True)
class Interval:
    """A percentile bootstrap interval."""

    low: float
    high: float


@dataclass(frozen=True)
class TradeIntervals:
    """Bootstrap intervals of the statistics of a trade list; None if undefined."""

    confidence: float
    expectancy_pips: Interval | None
    win_rate: Interval | None
    profit_factor: Interval | None
    sqn100: Interval | None


@kernel
def _mix(x: np.uint64) -> np.uint64:
    """Finalizer of splitmix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@kernel
def run_state(seed: int, run: int) -> np.uint64:
    """The initial state of the random generator of one run."""
    return _mix(_mix(np.uint64(seed)) + np.uint64(run) * _GOLDEN)


@kernel
def next_block(state: np.uint64, num_values: int, decay: float) -> tuple[np.uint64, int, int]:
    """Draw the first index and the length of the next block.

    Args:
        state: state of the run's random generator.
        num_values: number of values to draw from, below 2^32.
        decay: log probability that a block continues after a value, `block_decay`.
    Returns:
        The state after the draw, the first index and the length in values.
    """
    state = state + _GOLDEN
    bits = _mix(state)
    first = int(np.int64(((bits >> np.uint64(32)) * np.uint64(num_values)) >> np.uint64(32)))
    if decay == -np.inf:
        return state, first, 1
    uniform = (np.float64(bits & np.uint64(0xFFFFFFFF)) + 0.5) * 2.0**-32
    return state, first, 1 + int(math.log(uniform) / decay)


def block_decay(mean_block: float) -> float:
    """Log probability that a block continues, log(1 - 1 / mean); minus infinity draws single values."""
    return math.log1p(-1.0 / mean_block) if mean_block > 1.0 else -math.inf


@parallel_kernel
def _resample(values: Float64, out: Float64, seed: int, decay: float) -> None:
    num_runs, num_steps = out.shape
    for run in numba.prange(num_runs):
        state = run_state(seed, run)
        index = left = 0
        for step in range(num_steps):
            if left == 0:
                state, index, left = next_block(state, len(values), decay)
            out[run, step] = values[index]
            index = index + 1 if index + 1 < len(values) else 0
            left -= 1


def resample(
    values: Float64, *, num_runs: int, num_steps: int, seed: int, mean_block: float = 1.0
) -> Float64:
    """Draw runs from values; a block that reaches the end continues at the beginning.

    Args:
        values: `[N]` values to draw from, N at least 1.
        num_runs: number of runs R.
        num_steps: number of values per run.
        seed: the same seed gives the same runs on any number of threads.
        mean_block: mean length of a block; 1 is the iid bootstrap.
    Returns:
        The runs, `[R, num_steps]`.
    Raises:
        DataError: there are no values.
    Source: Politis and Romano 1994, The Stationary Bootstrap.
    """
    require_values(values)
    out = np.empty((num_runs, num_steps))
    _resample(np.ascontiguousarray(values), out, seed, block_decay(mean_block))
    return out


def require_values(values: Float64) -> None:
    """Check that there are values to draw from.

    Raises:
        DataError: there are no values.
    """
    if len(values) == 0:
        raise DataError("nothing to resample: expected at least one trade or day")


def optimal_block_length(values: Float64) -> float:
    """Mean block length with which the stationary bootstrap best estimates a mean; at least 1.

    Args:
        values: `[N]` values in time order.
    Source: Politis and White 2004, corrected by Patton, Politis and White 2009. Oracle: the package arch.
    """
    num = len(values)
    if num < _MIN_VALUES_FOR_BLOCKS or mean_over_deviation(values) is None:
        return 1.0
    centred = values - values.mean()
    max_lag = min(math.ceil(math.sqrt(num)) + _QUIET_LAGS, num - 2)
    covariance = np.array([centred[lag:] @ centred[: num - lag] / num for lag in range(max_lag + 1)])
    first_quiet = _first_quiet_lag(centred, covariance * num)
    bandwidth = max_lag if first_quiet is None else min(2 * first_quiet, max_lag)
    lags = np.arange(1, bandwidth + 1)
    weights = np.minimum(1.0, 2.0 * (1.0 - lags / bandwidth))  # flat top
    slope = 2.0 * float((weights * lags * covariance[lags]).sum())
    long_run_variance = float(covariance[0] + 2.0 * (weights * covariance[lags]).sum())
    longest = math.ceil(min(3.0 * math.sqrt(num), num / 3.0))
    if long_run_variance == 0.0:
        return float(longest)
    length = (slope / long_run_variance) ** 2 * num
    return float(min(max(length ** (1.0 / 3.0), 1.0), longest))


def _first_quiet_lag(centred: Float64, products: Float64) -> int | None:
    """The first lag of the first run of `_QUIET_LAGS` insignificant correlations; None without such a run.

    Politis and White use the last lag before such a run. Their own code and the usual packages use the
    first lag of the run, which gives longer blocks and hence a more conservative drawdown.

    Args:
        centred: `[N]` values less their mean.
        products: `[L]` sum of lagged products for each lag, starting at 0.
    """
    num = len(centred)
    squares = np.cumsum(centred**2)
    lags = np.arange(len(products))
    later, earlier = squares[-1] - squares[lags], squares[num - 2 - lags]
    norm = np.sqrt(np.maximum(later * earlier, 0.0))
    quiet = np.abs(products) < 2.0 * math.sqrt(math.log10(num) / num) * norm
    for lag in range(1, len(products) - _QUIET_LAGS):
        if quiet[lag : lag + _QUIET_LAGS].all():
            return lag
    return None


@parallel_kernel
def _moments(values: Float64, out: Float64, seed: int, decay: float) -> None:
    """Write for each run: sum, sum of squares, number of wins, sum of wins, sum of losses."""
    for run in numba.prange(len(out)):
        state = run_state(seed, run)
        total = squares = num_wins = wins = losses = 0.0
        index = left = 0
        for _ in range(len(values)):
            if left == 0:
                state, index, left = next_block(state, len(values), decay)
            value = values[index]
            total += value
            squares += value * value
            if value > 0.0:
                num_wins += 1.0
                wins += value
            elif value < 0.0:
                losses -= value
            index = index + 1 if index + 1 < len(values) else 0
            left -= 1
        out[run, 0] = total
        out[run, 1] = squares
        out[run, 2] = num_wins
        out[run, 3] = wins
        out[run, 4] = losses


def trade_intervals(
    pips: Float64,
    r: Float64 | None,
    *,
    num_runs: int,
    seed: int,
    mean_block: float = 1.0,
    confidence: float = 0.95,
) -> TradeIntervals:
    """Percentile bootstrap intervals of the statistics of a trade list.

    Args:
        pips: `[N]` profit of each trade in time order.
        r: `[N]` R multiple of each trade; None if undefined.
        num_runs: number of resampled lists, each of N trades.
        seed: seed of the resampling.
        mean_block: mean length of a block of trades; 1 resamples trade by trade.
        confidence: share of resampled lists inside the interval.
    """
    if len(pips) < 2:
        return TradeIntervals(confidence, None, None, None, None)
    num = len(pips)
    moments = np.empty((num_runs, 5))
    _moments(np.ascontiguousarray(pips), moments, seed, block_decay(mean_block))
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = moments[:, 3] / moments[:, 4]
    return TradeIntervals(
        confidence,
        expectancy_pips=_interval(moments[:, 0] / num, confidence),
        win_rate=_interval(moments[:, 2] / num, confidence),
        profit_factor=_interval(factor, confidence),
        sqn100=None if r is None else _sqn_interval(r, num_runs, seed, mean_block, confidence),
    )


def _sqn_interval(
    r: Float64, num_runs: int, seed: int, mean_block: float, confidence: float
) -> Interval | None:
    """Interval of SQN capped at 100 trades; centring first avoids cancellation in the variance."""
    num, centre = len(r), r.mean()
    moments = np.empty((num_runs, 5))
    _moments(np.ascontiguousarray(r - centre), moments, seed, block_decay(mean_block))
    mean = moments[:, 0] / num
    variance = (moments[:, 1] - num * mean**2) / (num - 1)
    variance[variance < 1e-12 * r.var()] = 0.0  # all drawn values are equal up to rounding
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (mean + centre) / np.sqrt(variance)
    return _interval(math.sqrt(min(num, SQN_CAP)) * ratio, confidence)


def _interval(samples: Float64, confidence: float) -> Interval | None:
    """Percentile interval; None if any list has an undefined statistic, which leaves the tail unknown."""
    if not np.isfinite(samples).all():
        return None
    low, high = np.quantile(samples, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Interval(float(low), float(high))
