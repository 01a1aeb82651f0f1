"""All statistics of one trade list, which the validator reports and `./run metrics` prints."""

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

NO_TIMES: Final = "the trades have no times, so there are no days"


@dataclass(frozen=True)
class MetricsConfig:
    """Settings of the statistics of a trade list.

    Raises:
        SettingsError: a value is out of range.
    """

    confidence: Fraction = setting(0.95, "confidence level of the bootstrap intervals")
    interval_runs: Count = setting(1000, "resamples per bootstrap interval")
    annual_min_days: Annotated[int, Range(low=2)] = setting(
        60, "minimum number of days for annualised ratios"
    )
    monte_carlo: MonteCarloConfig = field(default_factory=MonteCarloConfig)
    sizing: SizingConfig = field(default_factory=SizingConfig)

    def __post_init__(self) -> None:
        """Check the fields of this group; `monte_carlo` and `sizing` check theirs."""
        check_group("metrics", self)


@dataclass(frozen=True)
class DailyStatistics:
    """Annualised Sharpe and Sortino ratios, None if undefined.

    They are ratios of daily returns at 252 days per year, or of trades if `trades_per_year` is given.
    """

    num_days: int  # 0 if the trades have no times
    sharpe: float | None
    sortino: float | None
    reason: str | None  # why both ratios are None; None if there are enough days

    def undefined(self) -> Mapping[str, str]:
        """The reason for each number that is None."""
        return {
            "sharpe": self.reason or "all daily results are equal",
            "sortino": self.reason or "no losing day",
        }


@dataclass(frozen=True)
class Summary:
    """All statistics of one trade list."""

    trades: TradeStatistics
    intervals: TradeIntervals  # resampled in blocks of trades, so that winning and losing streaks widen them
    daily: DailyStatistics
    honesty: Honesty  # result corrected for choosing the best of many versions
    max_drawdown_pips: float  # on the equity curve, marked to market
    max_drawdown: float  # largest fall as a fraction of the account's highest value before it
    kelly_discrete: float | None  # fraction of the account to risk per trade, full Kelly
    sizing: Sizing
    monte_carlo: tuple[MonteCarlo, ...]  # one per resampling method; empty if there are no trades


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
        pips: `[N]` out-of-sample profit of each trade in time order, net of all costs.
        equity_pips: `[T]` cumulative profit, marked to market.
        daily_pips: `[D]` profit of each trading day, including days without trades; None if the trades have
            no times. Numbers per day are then undefined, and so are those per year without
            `trades_per_year`.
        config: settings.
        risk_pips: `[N]` risk of each trade; None uses the mean absolute loss.
        trades_per_year: number of trades per year, for annualising the ratios of trades without times.
        others: `[D, V]` daily profit of every other version among which this one was chosen, NaN on days on
            which the other was not validated; None if there were no others.
        num_more: number of further versions in that choice whose daily profits are not available.
    Raises:
        DataError: a profit or a risk is not finite, or is too large, or a risk is not positive.
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
    """Convert a dataclass, with nested dataclasses and arrays, to JSON types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: document(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [document(item) for item in value]
    return value
