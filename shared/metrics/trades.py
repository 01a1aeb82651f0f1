"""Statistics of a list of closed trades: expectancy, win rate, profit factor, R multiples, SQN.

An undefined number (no loss or deviation to divide by, too few trades) is None, never infinity or zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from shared.environment.action import NUM_ACTIONS, Action
from shared.errors import DataError, ShapeError
from shared.metrics.rounding import mean_over_deviation, settled
from shared.numeric import Float64, Int64, require_shape

#: Van Tharp's cap: more trades do not make a system better.
SQN_CAP = 100

#: A larger profit or loss is an input error: this is fifty times the price of GBP/JPY, in pips.
MAX_TRADE_PIPS: Final = 1e6

NO_TRADE: Final = "no trade"
NO_WIN: Final = "no winning trade"
NO_LOSS: Final = "no losing trade"


@dataclass(frozen=True)
class TradeStatistics:
    """Statistics of one trade list; pips are net of all costs, R is a trade's pips over its risk."""

    num_trades: int
    total_pips: float
    expectancy_pips: float | None
    win_rate: float | None
    profit_factor: float | None
    average_win_pips: float | None
    average_loss_pips: float | None  # negative
    expectancy_r: float | None
    sqn: float | None
    sqn100: float | None

    def undefined(self) -> Mapping[str, str]:
        """The reason for each number that is None."""
        if self.num_trades == 0:
            return dict.fromkeys(_UNDEFINED_WITHOUT_TRADES, NO_TRADE)
        no_risk = f"{NO_LOSS}, so the risk of a trade is not known"
        no_spread = "1 trade: fewer than 2" if self.num_trades == 1 else "all trades are equal"
        sqn_reason = no_risk if self.expectancy_r is None else no_spread
        return {
            "profit_factor": NO_LOSS,
            "average_win_pips": NO_WIN,
            "average_loss_pips": NO_LOSS,
            "expectancy_r": no_risk,
            "sqn": sqn_reason,
            "sqn100": sqn_reason,
        }


_UNDEFINED_WITHOUT_TRADES: Final = (
    "expectancy_pips",
    "win_rate",
    "profit_factor",
    "average_win_pips",
    "average_loss_pips",
    "expectancy_r",
    "sqn",
    "sqn100",
)


@dataclass(frozen=True)
class Activity:
    """How often an agent acts and holds a position."""

    num_decisions: int
    trade_ratio: float | None  # share of decisions that are BUY, SELL or CLOSE
    action_shares: tuple[float, ...] | None  # HOLD, BUY, SELL, CLOSE
    exposure: float | None  # share of bars spent in a position
    turnover_per_day: float | None  # units bought or sold per trading day; a round trip is two

    def undefined(self) -> Mapping[str, str]:
        """The reason for each number that is None."""
        names = ("trade_ratio", "action_shares", "exposure", "turnover_per_day")
        return dict.fromkeys(names, "no decision" if self.num_decisions == 0 else "no trading day")


def trade_statistics(pips: Float64, risk_pips: Float64 | None = None) -> TradeStatistics:
    """The statistics of trades `[N]` in pips; `risk_pips` as in `r_multiples`.

    Raises:
        DataError: a trade or a risk is not a usable number.
    """
    require_trades(pips)
    pips = settled(pips)
    r = r_multiples(pips, risk_pips)
    return TradeStatistics(
        num_trades=len(pips),
        total_pips=float(pips.sum()),
        expectancy_pips=expectancy(pips),
        win_rate=win_rate(pips),
        profit_factor=profit_factor(pips),
        average_win_pips=expectancy(pips[pips > 0]),
        average_loss_pips=expectancy(pips[pips < 0]),
        expectancy_r=None if r is None else expectancy(r),
        sqn=None if r is None else sqn(r),
        sqn100=None if r is None else sqn(r, cap=SQN_CAP),
    )


def require_trades(pips: Float64) -> None:
    """Check that trades are `[N]` finite numbers of a possible size.

    Raises:
        ShapeError: the trades have more than one axis.
        DataError: a value is NaN, infinite or too large; the text names the trade.
    """
    require_shape("pips", pips, None)
    possible = np.abs(pips) <= MAX_TRADE_PIPS
    if not possible.all():
        row = int(np.flatnonzero(~possible)[0])
        wanted = f"a number between -{MAX_TRADE_PIPS:,.0f} and {MAX_TRADE_PIPS:,.0f}"
        raise DataError(f"trade {row} has {pips[row]} pips: expected {wanted}")


def expectancy(pips: Float64) -> float | None:
    """Mean of the trades; None without a trade."""
    return float(pips.mean()) if len(pips) else None


def win_rate(pips: Float64) -> float | None:
    """Share of trades above zero; a trade of exactly zero is not a win. None without a trade."""
    return float((settled(pips) > 0).mean()) if len(pips) else None


def profit_factor(pips: Float64) -> float | None:
    """Sum of the wins over the absolute sum of the losses; None without a loss."""
    pips = settled(pips)
    losses = -float(pips[pips < 0].sum())
    return float(pips[pips > 0].sum()) / losses if losses > 0 else None


def r_multiples(pips: Float64, risk_pips: Float64 | None = None) -> Float64 | None:
    """The profit of each trade in units of its risk.

    Args:
        pips: `[N]` profit of each trade.
        risk_pips: `[N]` distance from entry to the initial stop. None is for trades without a stop: each
            trade then risks the mean absolute loss of the list.
    Returns:
        The R multiples, `[N]`; None if the risk is the mean loss and there is no loss.
    Raises:
        ShapeError: the number of risks differs from the number of trades.
        DataError: a risk is not a positive number.
    """
    if risk_pips is None:
        losses = pips[settled(pips) < 0]
        return pips / -losses.mean() if len(losses) else None
    if risk_pips.shape != pips.shape:
        raise ShapeError("risk_pips", risk_pips.shape, pips.shape)
    if not (np.isfinite(risk_pips) & (risk_pips > 0)).all():
        row = int(np.flatnonzero(~(np.isfinite(risk_pips) & (risk_pips > 0)))[0])
        raise DataError(f"trade {row} risks {risk_pips[row]} pips: expected a positive number")
    return pips / risk_pips


def sqn(r: Float64, cap: int | None = None) -> float | None:
    """System quality number √N · mean(R) / sd(R), sd with N - 1 degrees of freedom.

    Args:
        r: `[N]` R multiples.
        cap: largest N under the root, `SQN_CAP` for Tharp's form; None sets no cap.
    Returns:
        None for fewer than two trades, or trades that are all equal.
    Source: Van Tharp, Definitive Guide to Position Sizing (2008).
    """
    ratio = mean_over_deviation(r)
    if ratio is None:
        return None
    num_trades = len(r) if cap is None else min(len(r), cap)
    return float(np.sqrt(num_trades)) * ratio


def activity(action_counts: Int64, bars_in_position: int, num_trades: int, num_days: int) -> Activity:
    """How often an agent acts and holds a position.

    Args:
        action_counts: `[A]` how often each action was chosen, one decision per bar.
        bars_in_position: number of bar closes at which a position was open.
        num_trades: number of round trips.
        num_days: number of trading days.
    """
    require_shape("action_counts", action_counts, NUM_ACTIONS)
    total = int(action_counts.sum())
    if total == 0:
        return Activity(0, None, None, None, None)
    shares = tuple(float(count) / total for count in action_counts)
    return Activity(
        num_decisions=total,
        trade_ratio=1.0 - shares[Action.HOLD],
        action_shares=shares,
        exposure=bars_in_position / total,
        turnover_per_day=2.0 * num_trades / num_days if num_days else None,
    )
