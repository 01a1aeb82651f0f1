"""Monte Carlo over resampled trades: a fan of equity curves, drawdowns, probability of ruin.

Resampling single trades keeps their distribution but loses streaks, and so understates drawdowns if
losses cluster; resampling blocks keeps streaks. Both are always reported. The account is that of
`shared.metrics.equity`: one unit, without compounding.
"""

from dataclasses import dataclass
from typing import Annotated

import numba
import numpy as np

from shared.errors import SettingsError
from shared.metrics.bootstrap import (
    MAX_SEED,
    Resampling,
    block_decay,
    next_block,
    optimal_block_length,
    require_values,
    run_state,
)
from shared.numeric import Float64, Int64, parallel_kernel
from shared.setting import (
    Range,
    check_group,
    setting,
)

#: Percentiles of the fan of equity curves.
FAN_PERCENTILES = (5, 25, 50, 75, 95)

#: Percentiles of the reported distribution of maximum drawdowns.
DRAWDOWN_PERCENTILES = (5, 25, 50, 75, 95, 99)

#: More runs do not change the displayed digits, and each run needs memory for its curve.
MAX_RUNS = 100_000

#: Largest number of points of the fan, evenly spaced over the trades.
_FAN_POINTS = 51


@dataclass(frozen=True)
class MonteCarloConfig:
    """The `[monte_carlo]` group: how trades are resampled, and when an account counts as ruined.

    Raises:
        SettingsError: a value is out of range.
    """

    runs: Annotated[int, Range(low=1, high=MAX_RUNS)] = setting(200, "resampled equity curves")
    seed: Annotated[int, Range(low=0, high=MAX_SEED)] = setting(0, "seed of the resampling")
    #: About half of GBP/JPY's price: one unit at leverage 2.
    starting_equity_pips: Annotated[float, Range(low=1.0, high=1e12)] = setting(
        10_000.0, "equity of the account before the first trade"
    )
    ruin_loss: Annotated[float, Range(above=0.0, high=1.0)] = setting(
        0.5, "share of the starting equity whose loss is ruin"
    )
    mean_block_trades: Annotated[float, Range(low=0.0, high=1e9)] = setting(
        0.0, "mean length of a block; 0 estimates it from the trades (Politis and White)"
    )

    def __post_init__(self) -> None:
        """Check every range."""
        check_group("monte_carlo", self)
        if 0.0 < self.mean_block_trades < 1.0:
            raise SettingsError(
                f"monte_carlo.mean_block_trades is {self.mean_block_trades}, "
                "expected 0 (estimated from the trades) or 1 or more"
            )


@dataclass(frozen=True)
class MonteCarlo:
    """Equity curves of resampled trade lists."""

    resampling: Resampling
    num_runs: int
    num_trades: int  # per run; the length of the trade list
    mean_block_trades: float
    fan_trades: Int64  # [G] number of trades at each point of the fan, starting at 0
    fan_pips: Float64  # [5, G] profit at FAN_PERCENTILES
    max_drawdown_pips: Float64  # [6] at DRAWDOWN_PERCENTILES
    probability_of_loss: float  # of a final profit below 0
    probability_of_ruin: float  # of a loss of `ruin_loss` of the starting equity at any time


@parallel_kernel
def _paths(
    pips: Float64,
    decay: float,
    seed: int,
    grid: Int64,
    fan: Float64,
    max_drawdown: Float64,
    lowest: Float64,
) -> None:
    for run in numba.prange(len(lowest)):
        state = run_state(seed, run)
        equity = peak = drawdown = low = 0.0
        index = left = 0
        for point in range(1, len(grid)):
            for _ in range(grid[point] - grid[point - 1]):
                if left == 0:
                    state, index, left = next_block(state, len(pips), decay)
                equity += pips[index]
                index = index + 1 if index + 1 < len(pips) else 0
                left -= 1
                peak = max(peak, equity)
                drawdown = max(drawdown, peak - equity)
                low = min(low, equity)
            fan[point, run] = equity
        max_drawdown[run] = drawdown
        lowest[run] = low


def simulate(pips: Float64, resampling: Resampling, config: MonteCarloConfig) -> MonteCarlo:
    """Resample `config.runs` lists of N trades and follow their equity.

    Args:
        pips: `[N]` out-of-sample profit of each trade in time order, net of all costs.
        resampling: whether single trades or blocks are drawn.
        config: runs, seed, account.
    Returns:
        The same result for the same seed on any number of threads.
    Raises:
        DataError: there are no trades.
    Oracle: tests/oracles/monte_carlo.py.
    """
    require_values(pips)
    mean_block = block_trades(pips, resampling, config)
    grid = np.unique(np.linspace(0, len(pips), min(_FAN_POINTS, len(pips) + 1)).astype(np.int64))
    fan = np.zeros((len(grid), config.runs))
    drawdown, lowest = np.empty(config.runs), np.empty(config.runs)
    _paths(np.ascontiguousarray(pips), block_decay(mean_block), config.seed, grid, fan, drawdown, lowest)
    return MonteCarlo(
        resampling=resampling,
        num_runs=config.runs,
        num_trades=len(pips),
        mean_block_trades=mean_block,
        fan_trades=grid,
        fan_pips=_percentiles(fan, FAN_PERCENTILES).T,
        max_drawdown_pips=_percentiles(drawdown[None], DRAWDOWN_PERCENTILES)[0],
        probability_of_loss=float((fan[-1] < 0.0).mean()),
        probability_of_ruin=float((lowest <= -config.ruin_loss * config.starting_equity_pips).mean()),
    )


def block_trades(pips: Float64, resampling: Resampling, config: MonteCarloConfig) -> float:
    """Mean block length, in trades, of a simulation; 1 for single trades."""
    if resampling is Resampling.IID:
        return 1.0
    return config.mean_block_trades or optimal_block_length(pips)


def _percentiles(samples: Float64, percentiles: tuple[int, ...]) -> Float64:
    """Linearly interpolated percentiles of each row, `[G, P]`, equal to those of numpy.percentile.

    Sorting contiguous rows is several times faster than numpy.percentile.
    """
    rows = np.sort(samples, axis=1)
    positions = np.array(percentiles) / 100.0 * (rows.shape[1] - 1)
    below = np.floor(positions).astype(np.int64)
    above = np.minimum(below + 1, rows.shape[1] - 1)
    result: Float64 = rows[:, below] + (positions - below) * (rows[:, above] - rows[:, below])
    return result
