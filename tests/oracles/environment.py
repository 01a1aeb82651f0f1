"""The trading environment of docs/algorithm.md for one lane, slow and simple, in plain Python."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

HOLD, BUY, SELL, CLOSE = range(4)


@dataclass
class Open:
    """An open position and its marks at the closes so far."""

    side: int
    entry_bar: int
    entry_price: float
    nights: int = 0
    pnls: list[float] = field(default_factory=list)

    def drawdowns(self) -> list[float]:
        """The distance of each mark below the highest mark so far, which is at least 0."""
        return [max(0.0, *self.pnls[: i + 1]) - pnl for i, pnl in enumerate(self.pnls)]


@dataclass
class Played:
    """The results of an episode, a row per decision, and its trades.

    A trade is (entry bar, exit bar, side, entry price, exit price, pips, maximum drawdown, bars held).
    """

    rewards: list[float] = field(default_factory=list)
    statics: list[list[float]] = field(default_factory=list)
    trades: list[tuple[int, int, int, float, float, float, float, int]] = field(default_factory=list)


def play(
    start_bar: int,
    actions: Sequence[int],
    open_: Sequence[float],
    close: Sequence[float],
    *,
    pip: float,
    scheme: str = "amddp1",
    cost_pips: float = 4.0,
    nights: Sequence[int] = (),
    night_pips: float = 0.0,
) -> Played:
    """Play legal actions from the close of `start_bar` on; a position open at the end is closed."""
    played = Played()
    position: Open | None = None

    def pnl(held: Open, price: float) -> float:
        return held.side * (price - held.entry_price) / pip - cost_pips - held.nights * night_pips

    def close_position(held: Open, bar: int) -> float:
        pips = pnl(held, open_[bar])
        worst = max(held.drawdowns(), default=0.0)
        played.trades.append(
            (held.entry_bar, bar, held.side, held.entry_price, open_[bar], pips, worst, len(held.pnls))
        )
        return pips - 0.01 * worst if scheme == "amddp1" else pips

    for number, action in enumerate(actions):
        bar = start_bar + number
        played.statics.append(static(position))
        reward = 0.0
        if position is None and action == HOLD:
            reward = -0.05 if scheme == "amddp1" else 0.0
        if position is not None and nights:
            position.nights += nights[bar]
        if position is None and action in (BUY, SELL):
            position = Open(1 if action == BUY else -1, bar + 1, open_[bar + 1])
            reward = 1.0 if scheme == "amddp1" else 0.0
        elif position is not None and action == CLOSE:
            reward, position = close_position(position, bar + 1), None
        if position is not None and number == len(actions) - 1:
            reward, position = reward + close_position(position, bar + 1), None
        if position is not None:
            position.pnls.append(pnl(position, close[bar + 1]))
        played.rewards.append(reward)
    return played


def static(position: Open | None) -> list[float]:
    """The six static features at the last mark."""
    if position is None:
        return [0.0] * 6
    drawdowns = position.drawdowns()
    pips = [position.pnls[-1], len(position.pnls), drawdowns[-1], max(drawdowns), math.fsum(drawdowns)]
    return [float(position.side), *(math.tanh(value / 100) for value in pips)]
