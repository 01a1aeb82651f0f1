"""Equity bar by bar, from the definition."""

import numpy as np

from shared.environment.trade import Trade
from shared.numeric import Float64


def equity_curve(trades: list[Trade], closes: Float64, pip: float, first_bar: int, last_bar: int) -> Float64:
    equity = []
    for bar in range(first_bar, last_bar + 1):
        total = 0.0
        for trade in trades:
            if trade.exit_bar <= bar:
                total += trade.pips
            elif trade.entry_bar <= bar:
                gross = trade.side * (trade.exit_price - trade.entry_price) / pip
                total += trade.side * (closes[bar] - trade.entry_price) / pip - (gross - trade.pips)
        equity.append(total)
    return np.array(equity)


def max_drawdown(equity_pips: Float64, starting_equity: float) -> float:
    deepest, peak = 0.0, starting_equity
    for profit in equity_pips:
        equity = starting_equity + profit
        peak = max(peak, equity)
        deepest = max(deepest, (peak - equity) / peak)
    return deepest
