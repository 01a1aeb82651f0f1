"""Monte Carlo over trade lists, compared with a straightforward NumPy loop over runs.

Kernel and yardstick draw the same number of trades and runs. Both compute the fan at the same points, the
drawdowns and the probability of ruin.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.measure import Measurement, quickest
from shared.metrics.bootstrap import Resampling
from shared.metrics.monte_carlo import (
    DRAWDOWN_PERCENTILES,
    FAN_PERCENTILES,
    MonteCarlo,
    MonteCarloConfig,
    block_trades,
    simulate,
)
from shared.numeric import Float64, Int64

#: Goals for 1,000 runs of 5,000 trades.
GOAL_DRAWS = 5_000_000
GOAL_SECONDS = 0.3
GOAL_RATIO = 20.0


@dataclass(frozen=True)
class MonteCarloNumbers:
    """The results of the yardstick, as in `MonteCarlo`."""

    fan_pips: Float64
    max_drawdown_pips: Float64
    probability_of_ruin: float


def bench_montecarlo(
    *, runs: int = 1000, trades: int = 5000, repeats: int = 5, seed: int = 0
) -> list[Measurement]:
    """Measure every kind of resampling.

    Args:
        runs: number of equity curves.
        trades: trades in the list and in every curve.
        repeats: number of measurements of kernel and yardstick each.
        seed: seed of the trades, which win and lose in streaks.
    """
    pips = streaky_trades(trades, seed)
    config = MonteCarloConfig(runs=runs, seed=seed)
    return [_measure(pips, resampling, config, repeats) for resampling in Resampling]


def streaky_trades(num_trades: int, seed: int) -> Float64:
    """Pips of autocorrelated trades."""
    noise = np.random.default_rng(seed).normal(1.0, 20.0, num_trades)
    pips = noise.copy()
    for trade in range(1, num_trades):
        pips[trade] += 0.5 * pips[trade - 1]
    return pips


def numpy_loop(
    pips: Float64, mean_block: float, config: MonteCarloConfig, points: Int64
) -> MonteCarloNumbers:
    """The yardstick: a Python loop over runs, with NumPy calls for each run."""
    rng = np.random.default_rng(config.seed)
    fan = np.empty((config.runs, len(points)))
    drawdown, lowest = np.empty(config.runs), np.empty(config.runs)
    for run in range(config.runs):
        curve = np.concatenate(([0.0], np.cumsum(pips[_draw(rng, len(pips), mean_block)])))
        drawdown[run] = (np.maximum.accumulate(curve) - curve).max()
        lowest[run] = curve.min()
        fan[run] = curve[points]
    return MonteCarloNumbers(
        np.percentile(fan, FAN_PERCENTILES, axis=0),
        np.percentile(drawdown, DRAWDOWN_PERCENTILES),
        float((lowest <= -config.ruin_loss * config.starting_equity_pips).mean()),
    )


def _draw(rng: np.random.Generator, num_trades: int, mean_block: float) -> Int64:
    """Trade indices of one run: single trades, or blocks of geometric length that wrap around."""
    drawn = rng.integers(0, num_trades, num_trades)
    if mean_block <= 1.0:
        return drawn
    steps = np.arange(num_trades)
    begins = rng.random(num_trades) < 1.0 / mean_block
    begins[0] = True
    begin = np.maximum.accumulate(np.where(begins, steps, 0))
    indices: Int64 = (drawn[begin] + steps - begin) % num_trades
    return indices


def _measure(pips: Float64, resampling: Resampling, config: MonteCarloConfig, repeats: int) -> Measurement:
    result: MonteCarlo = simulate(pips, resampling, config)
    kernel = partial(simulate, pips, resampling, config)
    mean_block = block_trades(pips, resampling, config)
    yardstick = partial(numpy_loop, pips, mean_block, config, result.fan_trades)
    seconds, numpy_seconds = quickest((kernel, yardstick), repeats=repeats)
    return Measurement(
        name=f"Monte Carlo, {config.runs:,} runs x {len(pips):,} trades, {resampling}",
        value=seconds,
        unit="s",
        yardstick="a loop over runs in NumPy",
        yardstick_value=numpy_seconds,
        goal_value=GOAL_SECONDS * config.runs * len(pips) / GOAL_DRAWS,
        goal_ratio=GOAL_RATIO,
    )
