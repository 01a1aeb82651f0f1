"""How much of a result is luck: probabilistic and deflated Sharpe ratio, probability of backtest overfitting.

All Sharpe ratios here are per period, never annualised; kurtosis is non-excess (a normal has 3).
"""

import math
from itertools import combinations

import numpy as np
from scipy.special import ndtr, ndtri

from shared.errors import DataError, ShapeError
from shared.metrics.equity import sharpe
from shared.numeric import Float64, Int64, require_shape

#: Blocks into which CSCV cuts time; half of them are in sample: 12 870 splits.
CSCV_BLOCKS = 16

#: Splits that are ranked at a time, to bound memory.
_SPLITS_AT_ONCE = 1024


def probabilistic_sharpe(
    ratio: float, num_periods: int, skewness: float, kurtosis_: float, benchmark: float = 0.0
) -> float | None:
    """Chance that the true Sharpe ratio exceeds a benchmark, given the one measured.

    PSR = Φ((SR - SR*) √(T - 1) / √(1 - γ₃ SR + (γ₄ - 1) / 4 · SR²)).

    Args:
        ratio: SR, per period.
        num_periods: T.
        skewness: γ₃ of the returns.
        kurtosis_: γ₄ of the returns, non-excess.
        benchmark: SR*, per period.
    Returns:
        None for fewer than two periods, or where skewness and ratio leave no variance.
    Source: Bailey and López de Prado 2012, The Sharpe Ratio Efficient Frontier.
    """
    variance = 1.0 - skewness * ratio + (kurtosis_ - 1.0) / 4.0 * ratio**2
    if num_periods < 2 or variance <= 0.0:
        return None
    return float(ndtr((ratio - benchmark) * math.sqrt(num_periods - 1) / math.sqrt(variance)))


def expected_best_sharpe(num_trials: int, variance: float) -> float:
    """The Sharpe ratio that the best of N trials without any edge is expected to show, per period.

    SR* = √V ((1 - γ) Z(1 - 1/N) + γ Z(1 - 1/(N e))), γ the Euler-Mascheroni constant, Z the normal
    quantile; 0 for a single trial, where nothing was selected.

    Args:
        num_trials: N, independent trials, at least 1.
        variance: V, of the trials' Sharpe ratios per period.
    Source: Bailey and López de Prado 2014, The Deflated Sharpe Ratio.
    Raises:
        DataError: fewer than one trial.
    """
    if num_trials < 1:
        raise DataError(f"{num_trials} trials: expected at least 1")
    if num_trials == 1:
        return 0.0
    expected = (1.0 - np.euler_gamma) * ndtri(1.0 - 1.0 / num_trials)
    expected += np.euler_gamma * ndtri(1.0 - 1.0 / (num_trials * math.e))
    return float(math.sqrt(variance) * expected)


def deflated_sharpe(returns: Float64, trial_ratios: Float64) -> float | None:
    """Probabilistic Sharpe ratio against the best that as many trials would have shown by luck.

    Versions of one run are alike, so counting each as an independent trial errs on the strict side.

    Args:
        returns: `[T]` of the trial that is judged.
        trial_ratios: `[N]` Sharpe ratio per period of every trial, the judged one included.
    Returns:
        None where the returns define no Sharpe ratio.
    """
    require_shape("trial_ratios", trial_ratios, None)
    ratio = sharpe(returns, periods_per_year=1)
    if ratio is None:
        return None
    variance = float(trial_ratios.var(ddof=1)) if len(trial_ratios) > 1 else 0.0
    standardised = (returns - returns.mean()) / returns.std()
    return probabilistic_sharpe(
        ratio,
        len(returns),
        float((standardised**3).mean()),
        float((standardised**4).mean()),
        expected_best_sharpe(len(trial_ratios), variance),
    )


def backtest_overfitting(returns: Float64, num_blocks: int = CSCV_BLOCKS) -> float | None:
    """Probability that the trial chosen in sample ranks below the median out of sample (PBO).

    Combinatorially symmetric cross-validation: time is cut into even blocks; for every half of
    them the trial with the best Sharpe ratio is chosen and its relative rank w among the trials is
    taken on the other half; PBO is the share of halves with ln(w / (1 - w)) <= 0. Noise gives about
    a half, one real edge about 0. The oldest periods that do not fill a block are left out.

    Args:
        returns: `[T, N]` a column a trial, on the same periods.
        num_blocks: even.
    Returns:
        None for a single trial, or for fewer than two periods a block.
    Source: Bailey, Borwein, López de Prado and Zhu 2017. Oracle: tests/oracles/overfitting.py.
    Raises:
        ShapeError: not a matrix.
        DataError: an odd number of blocks.
    """
    if returns.ndim != 2:
        raise ShapeError("returns", returns.shape, ("periods", "trials"))
    if num_blocks < 2 or num_blocks % 2:
        raise DataError(f"{num_blocks} blocks: expected an even number of at least 2")
    num_periods, num_trials = returns.shape
    length = num_periods // num_blocks
    if num_trials < 2 or length < 2:
        return None
    blocks = returns[num_periods - length * num_blocks :].reshape(num_blocks, length, num_trials)
    centre = float(returns.mean())
    blocks = blocks - centre  # sums of squares then lose less to rounding
    sums, squares = blocks.sum(axis=1), (blocks**2).sum(axis=1)
    halves = np.array(list(combinations(range(num_blocks), num_blocks // 2)))
    num_below = 0
    for first in range(0, len(halves), _SPLITS_AT_ONCE):
        chosen = halves[first : first + _SPLITS_AT_ONCE]
        inside = np.zeros((len(chosen), num_blocks))
        np.put_along_axis(inside, chosen, 1.0, axis=1)
        num = length * num_blocks // 2
        in_sample = _ratios(inside @ sums, inside @ squares, num, centre)
        out_of_sample = _ratios((1.0 - inside) @ sums, (1.0 - inside) @ squares, num, centre)
        num_below += int((_relative_rank(in_sample.argmax(axis=1), out_of_sample) <= 0.5).sum())
    return num_below / len(halves)


def _ratios(sums: Float64, squares: Float64, num: int, centre: float) -> Float64:
    """Sharpe ratios from sums over `num` periods; 0 for returns that are all equal (never traded)."""
    mean = sums / num
    variance = np.maximum(squares - num * mean**2, 0.0) / (num - 1)
    constant = variance <= 1e-12 * (mean + centre) ** 2
    return np.where(constant, 0.0, (mean + centre) / np.sqrt(np.where(constant, 1.0, variance)))


def _relative_rank(trial: Int64, ratios: Float64) -> Float64:
    """Rank of one trial a row among all, over N + 1, in (0, 1); ties share their mean rank."""
    own = np.take_along_axis(ratios, trial[:, None], axis=1)
    below, equal = (ratios < own).sum(axis=1), (ratios == own).sum(axis=1)
    rank: Float64 = (below + (equal + 1) / 2.0) / (ratios.shape[1] + 1)
    return rank
