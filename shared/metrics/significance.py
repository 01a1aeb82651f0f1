"""Significance of a result: random sign flips of its days, corrected for every version that was tried."""

import math
from statistics import NormalDist
from typing import Final

import numpy as np

from shared.errors import DataError
from shared.metrics.rounding import settled
from shared.numeric import Float64, require_shape

#: Up to this many days with a result, all sign patterns are counted (at most 65,536). For more days their
#: share is approximated.
_EXACT_DAYS: Final = 16

#: Newton steps to the saddlepoint; about five are needed, more if nearly every day was won.
_MAX_STEPS: Final = 200

#: Approximate number of versions that a run is expected to try. It shapes how the allowed error is
#: distributed over the versions but does not limit their number: the shares of any number of versions add up
#: to at most 1.
EXPECTED_TRIALS: Final = 200

_NORMAL: Final = NormalDist()


def sign_flip_p_value(daily_pips: Float64) -> float | None:
    """Probability that the same days with random signs earn at least as much.

    Entire days are flipped, because the trades of a day share its market. The test assumes that the result
    of a day without an edge is symmetric: a version that wins little on most days and rarely loses much
    has too small a p-value until its losses occur. Unlike the normal approximation behind the
    probabilistic Sharpe ratio, the test is valid for few trades: with results on n days the p-value is
    at least 2^-n.

    Args:
        daily_pips: `[D]` profit of each day, or its excess over that of another version. A day that
            differs from 0 only by rounding has no result.
    Returns:
        The one-sided p-value: exact for up to 16 days with a result. For more days it is a saddlepoint
        approximation, accurate to about a third for fat tails and better with more days. None if no day has
        a result.
    Source: Lugannani and Rice 1980, for the approximation. Oracle: direct counting, in the tests.
    """
    require_shape("daily_pips", daily_pips, None)
    results = settled(daily_pips)
    results = results[results != 0.0]
    if len(results) == 0:
        return None
    results = results / np.abs(results).max()
    sizes, total = np.abs(results), float(results.sum())
    if len(sizes) <= _EXACT_DAYS:
        return _share_of_patterns(sizes, total)
    upper_tail = _upper_tail(sizes, abs(total))
    return upper_tail if total >= 0.0 else 1.0 - upper_tail


def _share_of_patterns(sizes: Float64, total: float) -> float:
    """Share of all sign patterns whose sum is at least the total."""
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate((sums - size, sums + size))
    return float((sums >= total - 1e-9 * sizes.sum()).mean())


def _upper_tail(sizes: Float64, total: float) -> float:
    """Saddlepoint approximation of the probability that the flipped sum is at least `total`, which is >= 0.

    The sum's cumulant generating function is K(t) = Σ log cosh(t a); K'(t) = total defines the saddlepoint.
    """
    variance = float(sizes @ sizes)
    if total <= 1e-6 * math.sqrt(variance):
        return 0.5
    if total >= sizes.sum() * (1.0 - 1e-9):
        return float(0.5 ** len(sizes))  # every day was won: no pattern earns more
    point = total / variance  # below the saddlepoint; K' is concave, so Newton steps never pass it
    for _ in range(_MAX_STEPS):
        tilted = np.tanh(point * sizes)
        gap = total - float((sizes * tilted).sum())
        if gap <= 1e-9 * total:
            break
        point += gap / float((sizes**2 * (1.0 - tilted**2)).sum())
    scaled = point * sizes
    cumulant = float((scaled + np.log1p(np.exp(-2.0 * scaled)) - math.log(2.0)).sum())
    slope = float((sizes**2 / np.cosh(np.minimum(scaled, 300.0)) ** 2).sum())
    w = math.sqrt(max(2.0 * (point * total - cumulant), 0.0))
    u = point * math.sqrt(slope)
    if w < 1e-3:
        return 0.5
    tail = 0.5 * math.erfc(w / math.sqrt(2.0)) + _NORMAL.pdf(w) * (1.0 / u - 1.0 / w)
    return min(max(tail, float(0.5 ** len(sizes))), 0.5)


def share_of_error(trials: float) -> float:
    """Share of the allowed error for the N-th version tried.

    share(N) = E / ((N + E)(N + E - 1)) with E = `EXPECTED_TRIALS`. It adds up to 1 over N = 1, 2, 3, …, so
    a run of any length passes a version without an edge with at most the allowed probability. It falls
    slowly over the first E versions: the first has about twice the share of the hundredth.

    Raises:
        DataError: fewer than one trial.
    """
    if not trials >= 1.0:
        raise DataError(f"{trials} trials: expected at least 1")
    return EXPECTED_TRIALS / ((trials + EXPECTED_TRIALS) * (trials + EXPECTED_TRIALS - 1.0))


def adjusted_p_value(p_value: float, trials: float) -> float:
    """A version's p-value divided by its share of the error, at most 1.

    If versions pass with an adjusted p-value of at most α, the probability that any version of a run
    without an edge passes is at most α. This is a weighted Bonferroni correction in the order of validation.
    """
    return min(1.0, p_value / share_of_error(trials))
