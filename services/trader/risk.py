"""Equity in pips and the loss limits that it has reached: an immutable state that the ledger saves."""

from dataclasses import dataclass, replace

import numpy as np

from services.trader.config import GuardConfig
from shared.market.calendar import trading_day, week_open_s


@dataclass(frozen=True)
class RiskBook:
    """Equity, its value at the start of the day and the week, its peak, and the broken limits.

    Amounts are in pips. The daily limit stays broken until the next trading day, the weekly limit until the
    next week, the drawdown limit until an operator resumes trading. A fill or a resume sets `rejects` to 0.
    """

    realised: float = 0.0  # sum over all closed trades
    trades: int = 0  # number of closed trades
    equity: float = 0.0  # realised and unrealised
    peak: float = 0.0  # largest equity
    day: int = -1  # newest `trading_day` given to `marked`
    day_start: float = 0.0  # equity at the start of that day
    week_open_s: int = -1  # newest `week_open_s` given to `marked`
    week_start: float = 0.0  # equity at the start of that week
    daily_broken: bool = False
    weekly_broken: bool = False
    drawdown_broken: bool = False
    rejects: int = 0  # orders in a row that were refused or cancelled

    @property
    def daily_loss(self) -> float:
        """Loss of the trading day so far; negative for a gain."""
        return self.day_start - self.equity

    @property
    def weekly_loss(self) -> float:
        """Loss of the trading week so far; negative for a gain."""
        return self.week_start - self.equity

    @property
    def drawdown(self) -> float:
        """Peak minus equity."""
        return self.peak - self.equity

    def closed(self, pips: float) -> "RiskBook":
        """The book after a trade was closed."""
        return replace(self, realised=self.realised + pips, trades=self.trades + 1)

    def marked(self, time_s: int, open_pips: float, limits: GuardConfig) -> "RiskBook":
        """The book at a bar's close; it starts a new day or week and sets the broken limits.

        Args:
            time_s: market time.
            open_pips: unrealised pips of the position; 0 when flat.
            limits: limits in force.
        """
        moment = np.array([time_s], np.int64)
        day, week = int(trading_day(moment)[0]), int(week_open_s(moment)[0])
        equity = self.realised + open_pips
        book = replace(self, equity=equity, peak=max(self.peak, equity))
        if day > self.day:
            # A day starts with the last equity of the day before. Days only go forward: a clock that is set
            # back must not reset the day's loss.
            book = replace(book, day=day, day_start=self.equity, daily_broken=False)
        if week > self.week_open_s:
            book = replace(book, week_open_s=week, week_start=self.equity, weekly_broken=False)
        return replace(
            book,
            daily_broken=book.daily_broken or book.daily_loss >= limits.daily_loss_pips,
            weekly_broken=book.weekly_broken or book.weekly_loss >= limits.weekly_loss_pips,
            drawdown_broken=book.drawdown_broken or book.drawdown >= limits.max_drawdown_pips,
        )

    def ordered(self, *, filled: bool) -> "RiskBook":
        """The book after an order's outcome; a fill resets the count of rejects."""
        return replace(self, rejects=0 if filled else self.rejects + 1)

    def resumed(self) -> "RiskBook":
        """The book after an operator resumed trading: drawdown and rejects count from 0."""
        return replace(self, peak=self.equity, drawdown_broken=False, rejects=0)
