"""All statistics of one trade list, as reported by the validator and printed by `metrics`."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final

import numpy as np

from shared.metrics.bootstrap import Resampling, TradeIntervals, trade_intervals
from shared.metrics.equity import (
    DAYS_PER_YEAR,
    max_drawdown,
    max_drawdown_pips,
    sharpe,
    sortino,
    why_not_annualised,
)
from shared.metrics.honesty import Honesty, honesty
from shared.metrics.monte_carlo import MonteCarlo, MonteCarloConfig, block_trades, simulate
from shared.metrics.rounding import settled
from shared.metrics.sizing import Sizing, SizingConfig, kelly_discrete, size
from shared.metrics.trades import TradeStatistics, r_multiples, trade_statistics
from shared.numeric import Float64
from shared.setting import (
    Count,
    Fraction,
    Range,
    check_group,
    setting,
)

NO_TIMES: Final = "no times given, so there are no days"


@dataclass(frozen=True)
class MetricsConfig:
    """How the statistics of a trade list are computed.

    Raises:
        SettingsError: a value is out of range.
    """

    confidence: Fraction = setting(0.95, "confidence of the bootstrap intervals")
    interval_runs: Count = setting(1000, "resamples of each bootstrap interval")
    annual_min_days: Annotated[int, Range(low=2)] = setting(60, "days below which ratios are not annualised")
    monte_carlo: MonteCarloConfig = field(default_factory=MonteCarloConfig)
    sizing: SizingConfig = field(default_factory=SizingConfig)

    def __post_init__(self) -> None:
        """Check the fields of this group; `monte_carlo` and `sizing` check their own."""
        check_group("metrics", self)


@dataclass(frozen=True)
class DailyStatistics:
    """Ratios of daily returns, annualised by 252 days; None if undefined."""

    num_days: int  # 0 if the trades have no times
    sharpe: float | None
    sortino: float | None
    reason: str | None  # why neither ratio is given; None if there are enough days

    def undefined(self) -> Mapping[str, str]:
        """Why each number that is None is not defined."""
        return {
            "sharpe": self.reason or "all days are equal",
            "sortino": self.reason or "no losing day",
        }


@dataclass(frozen=True)
class Summary:
    """All statistics of one trade list."""

    trades: TradeStatistics
    intervals: TradeIntervals  # from blocks of trades, so that streaks widen them
    daily: DailyStatistics
    honesty: Honesty  # the result corrected for the search that found it
    max_drawdown_pips: float  # marked to market at each point of the equity curve
    max_drawdown: float  # fraction of the account's peak
    kelly_discrete: float | None  # share of the account to risk per trade, full Kelly
    sizing: Sizing
    monte_carlo: tuple[MonteCarlo, ...]  # one per kind of resampling; empty without a trade


def summarise(
    pips: Float64,
    equity_pips: Float64,
    daily_pips: Float64 | None,
    config: MetricsConfig,
    *,
    risk_pips: Float64 | None = None,
    trades_per_year: float | None = None,
    others: Float64 | None = None,
    num_more: int = 0,
) -> Summary:
    """Compute all statistics of a trade list.

    Args:
        pips: `[N]` trades in time order, out of sample, net of all costs.
        equity_pips: `[T]` profit so far, marked to market.
        daily_pips: `[D]` profit of each trading day, days without a trade included; None if the trades
            have no times: then no number per day or year is defined.
        config: runs, seeds, account, tolerances.
        risk_pips: `[N]` risk of each trade; None: the mean absolute loss.
        trades_per_year: annualises the ratios of trades without times.
        others: `[D, V]` daily profit of every other version from which this one was chosen, NaN on days
            on which it was not validated; None if there was no choice.
        num_more: number of further versions in that choice whose results are not available.
    Raises:
        DataError: a trade or a risk is not a usable number.
    """
    account = config.monte_carlo.starting_equity_pips
    statistics = trade_statistics(pips, risk_pips)
    pips = settled(pips)
    returns = np.zeros(0) if daily_pips is None else daily_pips / account
    per_year = DAYS_PER_YEAR if trades_per_year is None else trades_per_year
    periods = returns if trades_per_year is None else pips / account
    reason = why_not_annualised(len(periods) * DAYS_PER_YEAR / per_year, config.annual_min_days)
    if daily_pips is None and trades_per_year is None:
        reason = NO_TIMES
    return Summary(
        trades=statistics,
        intervals=trade_intervals(
            pips,
            r_multiples(pips, risk_pips),
            num_runs=config.interval_runs,
            seed=config.monte_carlo.seed,
            mean_block=block_trades(pips, Resampling.BLOCK, config.monte_carlo),
            confidence=config.confidence,
        ),
        daily=DailyStatistics(
            num_days=len(returns),
            sharpe=None if reason else sharpe(periods, per_year),
            sortino=None if reason else sortino(periods, per_year),
            reason=reason,
        ),
        honesty=honesty(np.zeros(0) if daily_pips is None else daily_pips, others, num_more),
        max_drawdown_pips=max_drawdown_pips(equity_pips),
        max_drawdown=max_drawdown(equity_pips, account),
        kelly_discrete=kelly_discrete(pips),
        sizing=Sizing(None, None, None, 0.0, NO_TIMES)
        if daily_pips is None
        else size(returns, config.sizing),
        monte_carlo=tuple(simulate(pips, way, config.monte_carlo) for way in Resampling) if len(pips) else (),
    )


def document(value: object) -> object:
    """Convert a dataclass of numbers, arrays and dataclasses to the types of JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: document(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [document(item) for item in value]
    return value
