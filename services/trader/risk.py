"""Equity in pips, and which loss limits it has broken; a pure state that the ledger keeps over restarts."""

from dataclasses import dataclass, replace

import numpy as np

from services.trader.config import GuardConfig
from shared.market.calendar import trading_day, week_open_s


@dataclass(frozen=True)
class RiskBook:
    """Equity, where its day, week and peak stand, and the limits broken; all in pips.

    A broken limit stays broken until its own rule says otherwise: the day's until the next trading day,
    the week's until the next week, the drawdown's and the rejects' until an operator resumes trading.
    """

    realised: float = 0.0  # all trades closed so far
    trades: int = 0  # how many they are
    equity: float = 0.0  # realised and open
    peak: float = 0.0
    day: int = -1  # `trading_day` of the last mark
    day_start: float = 0.0  # equity when it began
    week_open_s: int = -1
    week_start: float = 0.0
    daily_broken: bool = False
    weekly_broken: bool = False
    drawdown_broken: bool = False
    rejects: int = 0  # orders in a row that were refused or cancelled

    @property
    def daily_loss(self) -> float:
        """What the trading day has lost so far; negative when it won."""
        return self.day_start - self.equity

    @property
    def weekly_loss(self) -> float:
        """What the trading week has lost so far."""
        return self.week_start - self.equity

    @property
    def drawdown(self) -> float:
        """How far the equity lies below its peak."""
        return self.peak - self.equity

    def closed(self, pips: float) -> "RiskBook":
        """The book after a trade was closed."""
        return replace(self, realised=self.realised + pips, trades=self.trades + 1)

    def marked(self, time_s: int, open_pips: float, limits: GuardConfig) -> "RiskBook":
        """The book at a bar's close: a new day or week begins, limits break.

        Args:
            time_s: market time.
            open_pips: unrealised pips of the position held; 0 when flat.
            limits: in force.
        """
        moment = np.array([time_s], np.int64)
        day, week = int(trading_day(moment)[0]), int(week_open_s(moment)[0])
        equity = self.realised + open_pips
        book = replace(self, equity=equity, peak=max(self.peak, equity))
        if day > self.day:
            # The first mark of a day starts from the equity that the day before ended with. A day never
            # comes again: a clock that goes back must not forgive its losses.
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
        """The book after an order's end: a fill ends a row of refusals."""
        return replace(self, rejects=0 if filled else self.rejects + 1)

    def resumed(self) -> "RiskBook":
        """The book after an operator resumed trading: the drawdown counts from here, the rejects anew."""
        return replace(self, peak=self.equity, drawdown_broken=False, rejects=0)
