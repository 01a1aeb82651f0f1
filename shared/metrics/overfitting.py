"""Probability of backtest overfitting: is the best version of one half of the days good in the other half?"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from shared.errors import DataError, ShapeError
from shared.numeric import Float64, Int64

#: Number of blocks into which CSCV divides the days. Half of the blocks are in sample, which gives 12,870
#: splits, or 70 with `FEW_BLOCKS`.
CSCV_BLOCKS: Final = 16
FEW_BLOCKS: Final = 8

#: Fewer days than this are divided into `FEW_BLOCKS`.
_MANY_DAYS: Final = 64

#: With fewer trials the ranks are too coarse for a meaningful probability.
MIN_TRIALS: Final = 10

#: Splits ranked at a time, to limit memory.
_SPLITS_AT_ONCE = 1024


@dataclass(frozen=True)
class Overfitting:
    """Out-of-sample performance of choosing the best trial; None if undefined, with the reason."""

    probability: float | None  # PBO: share of splits whose choice ranks at or below the median out of sample
    degradation_slope: float | None  # of the choice's out-of-sample ratio against its in-sample ratio
    probability_of_loss: float | None  # share of splits whose choice loses out of sample
    num_trials: int  # N
    num_days: int  # T, without the oldest days that do not fill a block
    num_blocks: int  # S
    reason: str | None  # why the numbers are undefined

    def undefined(self) -> Mapping[str, str]:
        """Why the slope is not defined; `reason` applies to the other numbers."""
        return {"degradation_slope": self.reason or "the choice has the same ratio in every split"}


def backtest_overfitting(returns: Float64, num_blocks: int | None = None) -> Overfitting:
    """Cross-validate the choice of the best trial over every half of the days (CSCV).

    The days are divided into equal blocks. For each half of the blocks, the trial with the best Sharpe
    ratio is chosen and ranked among the trials on the other half; w is its relative rank. PBO is the share of
    halves with ln(w / (1 - w)) <= 0: about 0.5 for noise, about 0 if one trial has a real edge. Pass serious
    candidates only: if half of the trials are ruinous, any choice among the others ranks well. The oldest
    days that do not fill a block are left out.

    Args:
        returns: `[T, N]` one column per trial, on the same days.
        num_blocks: S, an even number; None uses 16, or 8 for fewer than 64 days.
    Returns:
        The result; its numbers are None for fewer than 10 trials or fewer than two days per block.
    Source: Bailey, Borwein, López de Prado and Zhu 2017. Oracle: tests/oracles/overfitting.py.
    Raises:
        ShapeError: the returns are not a matrix.
        DataError: the number of blocks is not even, or below 2.
    """
    if returns.ndim != 2:
        raise ShapeError("returns", returns.shape, ("days", "trials"))
    num_days, num_trials = returns.shape
    if num_blocks is None:
        num_blocks = CSCV_BLOCKS if num_days >= _MANY_DAYS else FEW_BLOCKS
    if num_blocks < 2 or num_blocks % 2:
        raise DataError(f"{num_blocks} blocks: expected an even number of at least 2")
    length = num_days // num_blocks
    if num_trials < MIN_TRIALS:
        return _undefined(returns, num_blocks, f"{num_trials} candidates: fewer than {MIN_TRIALS}")
    if length < 2:
        return _undefined(returns, num_blocks, f"{num_days} days: fewer than {2 * num_blocks}")
    in_sample, out_of_sample, ranks = _choices(returns, num_blocks, length)
    spread = float(np.ptp(in_sample))
    return Overfitting(
        probability=float((ranks <= 0.5).mean()),
        degradation_slope=float(np.polyfit(in_sample, out_of_sample, 1)[0]) if spread > 1e-12 else None,
        probability_of_loss=float((out_of_sample < 0.0).mean()),
        num_trials=num_trials,
        num_days=length * num_blocks,
        num_blocks=num_blocks,
        reason=None,
    )


def _undefined(returns: Float64, num_blocks: int, reason: str) -> Overfitting:
    num_days, num_trials = returns.shape
    return Overfitting(None, None, None, num_trials, num_days, num_blocks, reason)


def _choices(returns: Float64, num_blocks: int, length: int) -> tuple[Float64, Float64, Float64]:
    """The in-sample ratio, out-of-sample ratio and out-of-sample relative rank of each split's choice."""
    num_days, num_trials = returns.shape
    blocks = returns[num_days - length * num_blocks :].reshape(num_blocks, length, num_trials)
    centre = float(returns.mean())
    blocks = blocks - centre  # reduces the rounding errors of the sums of squares
    sums, squares = blocks.sum(axis=1), (blocks**2).sum(axis=1)
    halves = np.array(list(combinations(range(num_blocks), num_blocks // 2)))
    parts: list[tuple[Float64, Float64, Float64]] = []
    for first in range(0, len(halves), _SPLITS_AT_ONCE):
        chosen = halves[first : first + _SPLITS_AT_ONCE]
        inside = np.zeros((len(chosen), num_blocks))
        np.put_along_axis(inside, chosen, 1.0, axis=1)
        num = length * num_blocks // 2
        within = _ratios(inside @ sums, inside @ squares, num, centre)
        outside = _ratios((1.0 - inside) @ sums, (1.0 - inside) @ squares, num, centre)
        best = within.argmax(axis=1)
        row = np.arange(len(best))
        parts.append((within[row, best], outside[row, best], _relative_rank(best, outside)))
    in_sample, out_of_sample, ranks = (np.concatenate(column) for column in zip(*parts, strict=True))
    return in_sample, out_of_sample, ranks


def _ratios(sums: Float64, squares: Float64, num: int, centre: float) -> Float64:
    """Sharpe ratios from sums over `num` periods; 0 if all returns are equal, for example without trades."""
    mean = sums / num
    variance = np.maximum(squares - num * mean**2, 0.0) / (num - 1)
    constant = variance <= 1e-12 * (mean + centre) ** 2
    return np.where(constant, 0.0, (mean + centre) / np.sqrt(np.where(constant, 1.0, variance)))


def _relative_rank(trial: Int64, ratios: Float64) -> Float64:
    """Rank of one trial per row among all N, divided by N + 1, in (0, 1); ties share their mean rank."""
    own = np.take_along_axis(ratios, trial[:, None], axis=1)
    below, equal = (ratios < own).sum(axis=1), (ratios == own).sum(axis=1)
    rank: Float64 = (below + (equal + 1) / 2.0) / (ratios.shape[1] + 1)
    return rank
