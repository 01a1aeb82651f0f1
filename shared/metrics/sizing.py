"""Position size from trades: Bandy's safe-f and CAR25, Kelly's fraction, and the smaller of both.

A gain is the profit of one traded unit over a mark-to-market period, divided by the starting equity. A
fraction is the recommended size relative to one unit per starting equity. It is not the size that is
traded.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Final

import numba
import numpy as np

from shared.metrics.bootstrap import MAX_SEED, Resampling, optimal_block_length, resample
from shared.metrics.equity import DAYS_PER_YEAR
from shared.metrics.rounding import mean_over_deviation, settled
from shared.numeric import Float64, parallel_kernel
from shared.setting import (
    Fraction,
    Positive,
    Range,
    check_group,
    setting,
)

#: Largest log growth per year whose rate in percent fits into a float.
_MAX_LOG_GROWTH: Final = 700.0


@dataclass(frozen=True)
class SizingConfig:
    """The `[sizing]` group: the search for safe-f. The defaults are Bandy's: two years and 20 %.

    Raises:
        SettingsError: a value is out of range.
    """

    horizon_days: Annotated[int, Range(low=1, high=25_200)] = setting(504, "trading days of an equity curve")
    drawdown_tolerance: Fraction = setting(0.20, "drawdown that an account may reach")
    tail: Fraction = setting(0.05, "probability with which the tolerance may be exceeded")
    curves: Annotated[int, Range(low=1, high=100_000)] = setting(1000, "equity curves of one estimate")
    repeats: Annotated[int, Range(low=1, high=1_000)] = setting(10, "estimates whose mean is reported")
    seed: Annotated[int, Range(low=0, high=MAX_SEED)] = setting(0, "seed of the equity curves")
    max_fraction: Positive = setting(1.0, "largest fraction that is tried")
    min_periods: Annotated[int, Range(low=2)] = setting(30, "periods below which the fraction is 0")
    kelly_safety: Annotated[float, Range(above=0.0, high=1.0)] = setting(
        0.25, "share of the Kelly fraction that is reported"
    )

    def __post_init__(self) -> None:
        """Check every range."""
        check_group("sizing", self)


@dataclass(frozen=True)
class SafeF:
    """Risk normalisation with one kind of resampling; each number is the mean over the repeats."""

    resampling: Resampling
    mean_block_periods: float
    fraction: float  # safe-f
    fraction_sd: float | None  # None for a single repeat
    dd95: float  # drawdown at safe-f that is exceeded with probability `tail`, a fraction
    car25_percent: float | None  # None if a quarter of the accounts is ruined, or if it overflows
    car25_sd: float | None
    capped: bool  # the tolerance would allow more than `max_fraction`


@dataclass(frozen=True)
class Sizing:
    """The recommended fraction and its origin."""

    safe_f: SafeF | None  # the smaller of iid and block; None for too few periods or no loss
    other: SafeF | None  # the larger one; if the fractions are equal, the one with the greater CAR25
    kelly: float | None  # full Kelly fraction, `kelly_continuous`
    fraction: float  # min(safety · Kelly, safe-f), at least 0
    reason: str  # what limits the fraction, or why it is 0

    @property
    def car25_percent(self) -> float | None:
        """The smaller CAR25 of both kinds of resampling; None unless both are defined."""
        rates = [way.car25_percent if way else None for way in (self.safe_f, self.other)]
        defined = [rate for rate in rates if rate is not None]
        return min(defined) if len(defined) == len(rates) else None


@parallel_kernel
def _grow(gains: Float64, fraction: float, final: Float64, max_drawdown: Float64) -> None:
    """Write for each row of gains: final equity and maximum drawdown, from a starting equity of 1."""
    num_curves, num_steps = gains.shape
    for curve in numba.prange(num_curves):
        equity = 1.0
        from_peak = 1.0  # equity over its running maximum
        lowest = 1.0
        for step in range(num_steps):
            growth = 1.0 + fraction * gains[curve, step]
            growth = max(0.0, growth)  # ruin is permanent
            equity *= growth
            from_peak *= growth
            from_peak = min(1.0, from_peak)
            lowest = min(lowest, from_peak)
        final[curve] = equity
        max_drawdown[curve] = 1.0 - lowest


def grow(gains: Float64, fraction: float) -> tuple[Float64, Float64]:
    """Grow equity from 1 by a factor of 1 + fraction · gain each period; once ruined it stays 0.

    Args:
        gains: `[R, T]` gain of each period, one curve per row.
        fraction: share of the account at stake.
    Returns:
        `[R]` final equity, `[R]` maximum drawdown as a fraction of the running maximum.
    Oracle: the package risk-normalization.
    """
    final, max_drawdown = np.empty(len(gains)), np.empty(len(gains))
    _grow(gains, fraction, final, max_drawdown)
    return final, max_drawdown


def safe_fraction(gains: Float64, config: SizingConfig) -> float:
    """The largest fraction, up to `max_fraction`, whose tail drawdown stays within the tolerance.

    Over the same curves a larger fraction never has a smaller drawdown: the log growth of any part of a
    curve is concave in the fraction and 0 at 0, so once negative it only falls. Bisection is exact.

    Args:
        gains: `[R, T]` resampled curves.
        config: tolerance and largest fraction.
    """
    if _tail_drawdown(gains, config.max_fraction, config) <= config.drawdown_tolerance:
        return config.max_fraction
    within, beyond = 0.0, config.max_fraction
    while beyond - within > 1e-6 * beyond:
        middle = 0.5 * (within + beyond)
        if _tail_drawdown(gains, middle, config) <= config.drawdown_tolerance:
            within = middle
        else:
            beyond = middle
    return within


def _tail_drawdown(gains: Float64, fraction: float, config: SizingConfig) -> float:
    return float(np.quantile(grow(gains, fraction)[1], 1.0 - config.tail))


def risk_normalize(gains: Float64, resampling: Resampling, config: SizingConfig) -> SafeF:
    """Bandy's safe-f, DD95 and CAR25 of a best-estimate set of gains.

    Args:
        gains: `[D]` out-of-sample gain of each period, a fraction of the account.
        resampling: how gains are drawn; for sizing use the smaller result of both kinds.
        config: tolerance, horizon, effort; repeats differ only in their seed.
    Raises:
        DataError: there are no gains.
    Source: Howard Bandy, Quantitative Technical Analysis (2014); his package risk-normalization 1.1.2.
    """
    mean_block = 1.0 if resampling is Resampling.IID else optimal_block_length(gains)
    fractions, tails, rates = [], [], []
    for repeat in range(config.repeats):
        curves = resample(
            gains,
            num_runs=config.curves,
            num_steps=config.horizon_days,
            seed=config.seed + repeat,
            mean_block=mean_block,
        )
        fraction = safe_fraction(curves, config)
        final, drawdowns = grow(curves, fraction)
        with np.errstate(invalid="ignore"):  # accounts that grew beyond the largest float
            wealth = float(np.quantile(final, 0.25))
        fractions.append(fraction)
        tails.append(float(np.quantile(drawdowns, 1.0 - config.tail)))
        rates.append(compound_annual_percent(wealth, config.horizon_days))
    defined = [rate for rate in rates if rate is not None]
    every = len(defined) == len(rates)
    return SafeF(
        resampling=resampling,
        mean_block_periods=mean_block,
        fraction=float(np.mean(fractions)),
        fraction_sd=_sd(fractions),
        dd95=float(np.mean(tails)),
        car25_percent=float(np.mean(defined)) if every else None,
        car25_sd=_sd(defined) if every else None,
        capped=all(fraction == config.max_fraction for fraction in fractions),
    )


def _sd(values: list[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def compound_annual_percent(wealth: float, days: int) -> float | None:
    """Rate per year, in percent, that turns 1 into `wealth` in the given number of trading days.

    Returns:
        None if the account is ruined or the rate overflows.
    """
    if not wealth > 0.0:
        return None
    growth = DAYS_PER_YEAR / days * math.log(wealth)
    return 100.0 * math.expm1(growth) if growth < _MAX_LOG_GROWTH else None


def kelly_discrete(trade_pips: Float64) -> float | None:
    """Kelly's share of the account to risk on each trade, p - (1 - p) / b.

    The amount at risk is the mean loss, b is the mean win over the mean loss, and p is the share of wins
    among the trades that win or lose. The result is negative without an edge, and None without a win or
    without a loss.
    """
    trade_pips = settled(trade_pips)
    wins, losses = trade_pips[trade_pips > 0], trade_pips[trade_pips < 0]
    if not len(wins) or not len(losses):
        return None
    chance = len(wins) / (len(wins) + len(losses))
    return float(chance - (1.0 - chance) * -losses.mean() / wins.mean())


def kelly_continuous(gains: Float64) -> float | None:
    """Kelly's fraction mean / variance of gains per period; None if the gains do not vary."""
    ratio = mean_over_deviation(gains)
    return None if ratio is None else ratio / float(gains.std(ddof=1))


def size(gains: Float64, config: SizingConfig) -> Sizing:
    """The fraction that both the drawdown tolerance and a share of Kelly's fraction allow.

    Args:
        gains: `[D]` out-of-sample gain of each period, a fraction of the account.
        config: tolerance, limits, effort.
    Returns:
        Fraction 0, with its reason, for too few periods, gains without a loss (their risk is not
        known), a negative or undefined CAR25, or no edge.
    """
    kelly = kelly_continuous(gains)
    if len(gains) < config.min_periods:
        return Sizing(None, None, kelly, 0.0, f"{len(gains)} periods, fewer than {config.min_periods}")
    if not (settled(gains) < 0.0).any():
        return Sizing(None, None, kelly, 0.0, "no losing period: the risk is not known")
    smaller, larger = sorted(
        (risk_normalize(gains, resampling, config) for resampling in Resampling),
        key=lambda way: (way.fraction, -math.inf if way.car25_percent is None else way.car25_percent),
    )
    if smaller.car25_percent is None:
        return Sizing(smaller, larger, kelly, 0.0, "CAR25 is not defined")
    if smaller.car25_percent < 0.0:
        return Sizing(smaller, larger, kelly, 0.0, "CAR25 is negative")
    if kelly is None or kelly <= 0.0:
        return Sizing(smaller, larger, kelly, 0.0, "no edge: Kelly is not positive")
    cautious = config.kelly_safety * kelly
    if cautious < smaller.fraction:
        return Sizing(smaller, larger, kelly, cautious, f"{config.kelly_safety:g} of Kelly")
    bound = "largest fraction allowed" if smaller.capped else "safe-f"
    return Sizing(smaller, larger, kelly, smaller.fraction, f"{bound} ({smaller.resampling} resampling)")
