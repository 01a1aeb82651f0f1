"""The equity curve of a one-unit account, marked to market; its drawdown, daily ratios and months.

The account has a given starting equity, in pips of one unit, and always trades one unit: profits add up
and are not compounded. The return of a period is its pips over the starting equity. Sharpe and Sortino
therefore do not depend on that equity, while drawdown as a fraction does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.environment.position import unrealised_pips
from shared.environment.trade import TradeColumns, TradeLog
from shared.errors import DataError
from shared.metrics.rounding import mean_over_deviation, settled
from shared.metrics.trades import NO_TRADE, expectancy, win_rate
from shared.numeric import Float64, Int64, kernel, require_shape

#: Trading days per year, for annualising daily ratios.
DAYS_PER_YEAR = 252


@kernel
def _mark_open(equity: Float64, first_bar: int, closes: Float64, trades: TradeColumns, pip: float) -> None:
    """Add each trade's unrealised profit to the curve at every close while the trade is open."""
    for trade in range(len(trades.pips)):
        side, entry_price = trades.side[trade], trades.entry_price[trade]
        net, exit_price = trades.pips[trade], trades.exit_price[trade]
        costs = unrealised_pips(side, entry_price, 0.0, exit_price, pip) - net
        for bar in range(trades.entry_bar[trade], trades.exit_bar[trade]):
            equity[bar - first_bar] += unrealised_pips(side, entry_price, costs, closes[bar], pip)


def in_time_order(trades: TradeLog) -> TradeLog:
    """The trades in the order of their exits."""
    order = np.argsort(trades.columns.exit_bar, kind="stable")
    return TradeLog(TradeColumns._make(column[order] for column in trades.columns))


def equity_curve(trades: TradeLog, closes: Float64, *, pip: float, first_bar: int, last_bar: int) -> Float64:
    """Profit so far at every bar close; open positions are marked at the close.

    A trade is entered at the open of its entry bar and closed at the open of its exit bar. All its costs
    are charged at the entry, like the spread in the environment.

    Args:
        trades: trades in any order, entered and closed within the bars.
        closes: `[T]` closing prices of the whole series.
        pip: size of a pip in price.
        first_bar: index of the first bar of the curve.
        last_bar: index of the last bar of the curve, inclusive.
    Returns:
        Cumulative pips, `[last_bar - first_bar + 1]`; the profit before the first bar is 0.
    Raises:
        DataError: a trade lies outside the bars, or a bar lies outside the series.
    Oracle: tests/oracles/equity.py.
    """
    if not 0 <= first_bar <= last_bar < len(closes):
        raise DataError(f"bars {first_bar}..{last_bar} do not lie within the series of {len(closes)} bars")
    entry, leave = trades.columns.entry_bar, trades.columns.exit_bar
    outside = (entry < first_bar) | (leave > last_bar) | (leave < entry)
    if outside.any():
        row = int(np.argmax(outside))
        raise DataError(
            f"trade {row} spans bars {entry[row]}..{leave[row]}: "
            f"expected entry before exit, within {first_bar}..{last_bar}"
        )
    realised = np.zeros(last_bar - first_bar + 1)
    np.add.at(realised, leave - first_bar, trades.columns.pips)
    equity = np.cumsum(realised)
    _mark_open(equity, first_bar, closes, trades.columns, pip)
    return equity


def max_drawdown_pips(equity_pips: Float64) -> float:
    """Largest fall of a curve below its running maximum, which includes the starting value 0."""
    curve = np.concatenate(([0.0], equity_pips))
    return float((np.maximum.accumulate(curve) - curve).max())


def max_drawdown(equity_pips: Float64, starting_equity_pips: float) -> float:
    """Largest fall as a fraction of the running maximum: max (M - E) / M, with E_0 included in M.

    A value above 1 means that the account lost more than it held.

    Args:
        equity_pips: `[T]` profit so far.
        starting_equity_pips: E_0, positive.
    """
    equity = starting_equity_pips + np.concatenate(([0.0], equity_pips))
    peak = np.maximum.accumulate(equity)
    return float(((peak - equity) / peak).max())


def drawdown_curve(equity_pips: Float64) -> Float64:
    """The curve less its running maximum, `[T]` pips, at most 0."""
    return equity_pips - np.maximum(np.maximum.accumulate(equity_pips), 0.0)


def daily_pips(equity_pips: Float64, days: Int64) -> tuple[Int64, Float64]:
    """Profit of each trading day, marked to market at its end.

    Args:
        equity_pips: `[T]` profit so far at each bar close.
        days: `[T]` trading day of each bar (`trading_day`), not decreasing.
    Returns:
        The days that have bars, `[D]`, and the pips of each day, `[D]`. The pips add up to the last value of
        the curve.
    """
    require_shape("days", days, len(equity_pips))
    last = np.flatnonzero(np.append(days[1:] != days[:-1], True))
    return days[last], np.diff(equity_pips[last], prepend=0.0)


def sharpe(returns: Float64, periods_per_year: float = DAYS_PER_YEAR) -> float | None:
    """Annualised Sharpe ratio mean / sd · √k, sd with D - 1 degrees of freedom.

    Args:
        returns: `[D]`, one value per period; 0 for periods without a trade.
        periods_per_year: k; 1 gives the ratio per period.
    Returns:
        None for fewer than two periods, or periods that are all equal up to rounding.
    """
    ratio = mean_over_deviation(returns)
    return None if ratio is None else ratio * math.sqrt(periods_per_year)


def sortino(returns: Float64, periods_per_year: float = DAYS_PER_YEAR, target: float = 0.0) -> float | None:
    """Annualised Sortino ratio mean(x - t) / √mean(min(x - t, 0)²) · √k; the mean is over all periods.

    Returns:
        None if no period is below the target.
    """
    excess = settled(returns - target)
    if not (excess < 0.0).any():
        return None
    scaled = excess / np.abs(excess).max()  # squares of very small or large values underflow or overflow
    downside = math.sqrt(float(np.mean(np.minimum(scaled, 0.0) ** 2)))
    return float(scaled.mean()) / downside * math.sqrt(periods_per_year)


def why_not_annualised(num_days: float, min_days: int) -> str | None:
    """Why a ratio of so few days is not annualised; None if there are enough days."""
    if num_days >= min_days:
        return None
    return f"{num_days:.0f} day{'' if round(num_days) == 1 else 's'}: fewer than {min_days}, not annualised"


@dataclass(frozen=True)
class Month:
    """One calendar month of trading days."""

    month: str  # YYYY-MM
    num_days: int
    pips: float  # marked to market; the months add up to the total
    num_trades: int  # closed in this month
    win_rate: float | None
    expectancy_pips: float | None

    def undefined(self) -> Mapping[str, str]:
        """The reason for each number that is None."""
        return {"win_rate": NO_TRADE, "expectancy_pips": NO_TRADE}


def months(days: Int64, pips: Float64, exit_days: Int64, trade_pips: Float64) -> tuple[Month, ...]:
    """The monthly table.

    Args:
        days: `[D]` trading days, numbered by the calendar day on which they end.
        pips: `[D]` profit of each day.
        exit_days: `[N]` trading day on which each trade was closed.
        trade_pips: `[N]` pips of each trade.
    """
    month_of_day, month_of_trade = _month(days), _month(exit_days)
    rows = []
    for month in np.unique(month_of_day):
        in_month = month_of_day == month
        closed = trade_pips[month_of_trade == month]
        rows.append(
            Month(
                month=str(month),
                num_days=int(in_month.sum()),
                pips=float(pips[in_month].sum()),
                num_trades=len(closed),
                win_rate=win_rate(closed),
                expectancy_pips=expectancy(closed),
            )
        )
    return tuple(rows)


def _month(days: Int64) -> npt.NDArray[np.datetime64]:
    return days.astype("datetime64[D]").astype("datetime64[M]")
