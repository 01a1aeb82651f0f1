"""How much of a result is luck: the deflated Sharpe ratio, and the number of trials behind it.

All Sharpe ratios here are per period, never annualised; kurtosis is non-excess (a normal has 3).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

from shared.errors import DataError
from shared.metrics.equity import DAYS_PER_YEAR, sharpe
from shared.metrics.significance import adjusted_p_value, sign_flip_p_value
from shared.numeric import Bool, Float64, require_shape

#: A trial with a result on fewer days could not have been chosen: its p-value is at least 1/512.
MIN_ACTIVE_DAYS: Final = 10

#: A version clearly loses below this t-statistic: the Sharpe ratio's 95 % interval is then negative.
_BELOW_ZERO: Final = -1.96

#: Confidence of the minimum track record; the live gate requires the same.
TRACK_RECORD_CONFIDENCE: Final = 0.95

#: A minimum track record above a century is undefined, because the ratio is then 0 or almost 0.
_MAX_TRACK_RECORD_DAYS: Final = 100 * DAYS_PER_YEAR

#: Why daily numbers are undefined if the trades have no times.
NO_DAYS: Final = "no days: the trades have no times"

_NORMAL: Final = NormalDist()


@dataclass(frozen=True)
class Trials:
    """The number of versions from which one was chosen."""

    num_tried: int  # versions validated on any of these days, this one included
    num_counted: int  # those that could have been chosen: they traded and did not clearly lose
    effective: float  # equivalent number of independent trials, from the mean correlation of daily results


@dataclass(frozen=True)
class Honesty:
    """A result corrected for the search that found it; ratios are per day, None if undefined."""

    trials: Trials
    probabilistic_sharpe: float | None  # probability that the true ratio is above 0
    null_variance: float | None  # V, variance of a ratio measured without an edge
    expected_best_sharpe: float | None  # SR*, expected ratio of the best trial by luck alone
    deflated_sharpe: float | None  # probability that the true ratio is above SR*
    min_track_record_days: int | None  # days at this ratio until `deflated_sharpe` reaches 0.95
    p_value: float | None  # of the sign-flip test on the daily results
    adjusted_p_value: float | None  # the same, corrected for the trials
    reason: str | None  # why the ratios are undefined

    def undefined(self) -> Mapping[str, str]:
        """The reason for each number that is None."""
        no_result = NO_DAYS if self.reason == NO_DAYS else "no day has a result"
        return {
            "p_value": no_result,
            "adjusted_p_value": no_result,
            "min_track_record_days": self.reason
            or "the Sharpe ratio is not above 0, or a century is too short",
        }


def sharpe_variance(ratio: float, num_periods: int, skewness: float, kurtosis: float) -> float:
    """Variance of a measured Sharpe ratio: (1 - γ₃ SR + (γ₄ - 1) / 4 · SR²) / (T - 1).

    Args:
        ratio: SR, per period.
        num_periods: T, at least 2.
        skewness: γ₃ of the returns.
        kurtosis: γ₄ of the returns, non-excess.
    Source: Mertens 2002; Bailey and López de Prado 2012, The Sharpe Ratio Efficient Frontier.
    """
    return (1.0 - skewness * ratio + (kurtosis - 1.0) / 4.0 * ratio**2) / (num_periods - 1)


def probabilistic_sharpe(ratio: float, variance: float, benchmark: float = 0.0) -> float:
    """Probability that the true Sharpe ratio exceeds a benchmark: Φ((SR - SR*) / σ(SR)).

    Args:
        ratio: SR, the measured ratio per period.
        variance: σ²(SR), positive; `sharpe_variance`.
        benchmark: SR*, per period.
    Source: Bailey and López de Prado 2012, The Sharpe Ratio Efficient Frontier.
    """
    return _NORMAL.cdf((ratio - benchmark) / math.sqrt(variance))


def expected_best_sharpe(num_trials: float, variance: float) -> float:
    """The expected Sharpe ratio, per period, of the best of N trials without an edge.

    SR* = √V ((1 - γ) Z(1 - 1/N) + γ Z(1 - 1/(N e))), with γ the Euler-Mascheroni constant and Z the normal
    quantile. It is 0 for a single trial, where nothing was selected, and never negative.

    Args:
        num_trials: N, number of independent trials, at least 1; an effective number may be fractional.
        variance: V, variance of the trials' Sharpe ratios per period.
    Source: Bailey and López de Prado 2014, The Deflated Sharpe Ratio.
    Raises:
        DataError: fewer than one trial.
    """
    if not num_trials >= 1:
        raise DataError(f"{num_trials} trials: expected at least 1")
    if num_trials <= 1.0 + 1e-9:
        return 0.0
    expected = (1.0 - np.euler_gamma) * _NORMAL.inv_cdf(1.0 - 1.0 / num_trials)
    expected += np.euler_gamma * _NORMAL.inv_cdf(1.0 - 1.0 / (num_trials * math.e))
    return max(0.0, float(math.sqrt(variance) * expected))


def could_be_chosen(daily_pips: Float64) -> Bool:
    """Select the trials that count: they have results on enough days and are not clearly below zero.

    A version that hardly trades, or that clearly loses, could not have been the best by luck. The second
    rule leaves out one in forty of the versions without an edge, too few to matter.

    Args:
        daily_pips: `[D, V]` daily profit, one column per version; NaN on days without validation.
    Returns:
        Whether each version counts, `[V]`.
    """
    judged = ~np.isnan(daily_pips)
    results = np.where(judged, daily_pips, 0.0)
    active = (results != 0.0).sum(axis=0)
    num = np.maximum(judged.sum(axis=0), 1)
    mean = results.sum(axis=0) / num
    spread = np.sqrt((np.where(judged, results - mean, 0.0) ** 2).sum(axis=0) / np.maximum(num - 1, 1))
    not_losing = mean * np.sqrt(num) >= _BELOW_ZERO * spread
    counted: Bool = (active >= MIN_ACTIVE_DAYS) & not_losing
    return counted


def count_trials(daily_pips: Float64, others: Float64, num_more: int = 0) -> Trials:
    """The trials from which a version was chosen; the version itself always counts.

    The effective number is 1 + (1 - ρ)(M - 1), with ρ the mean correlation of the daily results of the M
    counted versions, or 0 if that is negative. It is at most M: similar versions deflate less, never more.

    Args:
        daily_pips: `[D]` daily profit of the version.
        others: `[D, V]` daily profit of every other version on these days; NaN if it was not validated.
        num_more: number of further versions whose results are not available. Each counts as a
            trial with the mean correlation of the others.
    Source: Bailey and López de Prado 2014, appendix 3.
    """
    require_shape("daily_pips", daily_pips, None)
    require_shape("others", others, len(daily_pips), None)
    judged_here = others[:, ~np.isnan(others).all(axis=0)]
    columns = np.column_stack([daily_pips, judged_here[:, could_be_chosen(judged_here)]])
    num = columns.shape[1]
    num_tried = judged_here.shape[1] + 1 + num_more
    if num == 1:
        return Trials(num_tried, 1 + num_more, 1.0 + num_more)
    judged = ~np.isnan(columns)
    centred = np.where(judged, columns - np.nanmean(columns, axis=0), 0.0)
    norms = np.sqrt((centred**2).sum(axis=0))
    unit = centred / np.where(norms > 0.0, norms, 1.0)
    together = float((unit.sum(axis=1) ** 2).sum()) - num
    correlation = min(max(together / (num * (num - 1)), 0.0), 1.0)
    counted = num + num_more
    return Trials(num_tried, counted, 1.0 + (1.0 - correlation) * (counted - 1))


def honesty(daily_pips: Float64, others: Float64 | None = None, num_more: int = 0) -> Honesty:
    """Correct a result for the luck of the search that found it.

    V is the variance of a ratio measured without an edge: the sampling variance over the version's own
    days, but at least 1 / (T - 1), its value at a ratio of 0. The minimum keeps a few lucky trades with
    large skewness from passing. The variance of the ratios among the versions is not used: in a run that
    learns, it measures progress, and a single ruinous version would put the gate out of reach.

    Args:
        daily_pips: `[D]` daily profit of the version, days without a trade included.
        others: `[D, V]` daily profit of every other version on these days, NaN if it was not validated;
            None: there are no others.
        num_more: number of further versions whose results are not available.
    Source: Bailey and López de Prado 2014, The Deflated Sharpe Ratio.
    """
    num = len(daily_pips)
    trials = count_trials(daily_pips, np.zeros((num, 0)) if others is None else others, num_more)
    p_value = sign_flip_p_value(daily_pips)
    adjusted = None if p_value is None else adjusted_p_value(p_value, trials.effective)
    ratio = sharpe(daily_pips, periods_per_year=1)
    if ratio is None:
        reason = NO_DAYS if num == 0 else "1 day: fewer than 2" if num == 1 else "all daily results are equal"
        return Honesty(trials, None, None, None, None, None, p_value, adjusted, reason)
    standardised = (daily_pips - daily_pips.mean()) / daily_pips.std()
    skewness, kurtosis = float((standardised**3).mean()), float((standardised**4).mean())
    variance = max(sharpe_variance(ratio, num, skewness, kurtosis), 1.0 / (num - 1))
    best = expected_best_sharpe(trials.effective, variance)
    return Honesty(
        trials=trials,
        probabilistic_sharpe=probabilistic_sharpe(ratio, variance),
        null_variance=variance,
        expected_best_sharpe=best,
        deflated_sharpe=probabilistic_sharpe(ratio, variance, best),
        min_track_record_days=_min_track_record(ratio, variance * (num - 1), trials.effective),
        p_value=p_value,
        adjusted_p_value=adjusted,
        reason=None,
    )


def _min_track_record(ratio: float, variance_of_one: float, trials: float) -> int | None:
    """Days until the deflated ratio reaches `TRACK_RECORD_CONFIDENCE` if the ratio stays the same.

    Args:
        ratio: SR, per day.
        variance_of_one: (T - 1) times the variance of the ratio.
        trials: effective number of trials.
    Returns:
        None if the ratio is not above 0, or so small that this takes more than a century.
    Source: Bailey and López de Prado 2012, for the probabilistic ratio.
    """
    errors = expected_best_sharpe(trials, 1.0) + _NORMAL.inv_cdf(TRACK_RECORD_CONFIDENCE)
    spread = math.sqrt(variance_of_one) * errors
    if not spread < ratio * math.sqrt(_MAX_TRACK_RECORD_DAYS):
        return None
    return math.ceil(1.0 + (spread / ratio) ** 2)
