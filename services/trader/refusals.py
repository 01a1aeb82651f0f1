"""Refusal of wrong market data: pure rules about times, price levels and candles.

A refused item is counted by its reason and otherwise ignored. The last good price stays in force and grows
older; the guards decide how long it may be traded on.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from shared.adapters.oanda.records import NANOSECONDS, Candle
from shared.market.bar import BAR_SECONDS


class Refusal(StrEnum):
    """Reason of a refusal, named as in alerts and metrics."""

    UNREADABLE = "unreadable"  # breaks the broker's own schema, or a line of an unknown type
    FOREIGN = "foreign"  # of another instrument
    FUTURE = "future"  # dated in the future
    CROSSED = "crossed"  # bid above ask, or a price that is not above 0
    OUTLIER = "outlier"  # far from the last price, and no candle confirms the new level
    CANDLE = "candle"  # a candle that breaks a rule


class Verdict(StrEnum):
    """Judgement of a line's time."""

    ACCEPTED = "accepted"
    HELD = "held"  # a jump in a replay, which the next price must confirm
    DISPROVES = "disproves"  # the line is accepted, and the price held before it is refused
    REFUSED = "refused"


#: Largest lead of a line over this machine's clock, after correction of the clock's known error.
_AHEAD_S = 5.0

#: This many lines in a row with the same lead, over this time, show that this machine's clock is slow.
_AGREEING_LINES = 3
_AGREEING_S = 10.0

#: Largest error of this machine's clock that is believed.
_MAX_SLOW_S = 600.0

#: Largest lead of a replay's line over the line before; a longer jump needs a second price.
_REPLAY_AHEAD_S = 3_600.0

#: This many prices in a row near each other make a new level, once a candle confirms it.
_LEVEL_PRICES = 3

#: A history's first price level is the median of this many closes.
_FIRST_CLOSES = 11


@dataclass
class _Agreement:
    """Successive lines with the same lead over this machine's clock."""

    ahead_s: float
    began_s: float
    lines: int = 1


class BrokerTimes:
    """Judges the times of stream lines by this machine's clock.

    A line from the future is refused, since it would close a bar early, make every later bar look old and
    start a new day of the loss limits. A line from the past is harmless: a snapshot has the time of its last
    price.
    """

    def __init__(self) -> None:
        self._slow_s = 0.0  # known delay of this machine's clock against the broker's
        self._agreement: _Agreement | None = None

    def judge(self, time_ns: int, wall_s: float, *, heartbeat: bool) -> Verdict:
        """Judge one line's time.

        Args:
            time_ns: time of the line.
            wall_s: this machine's clock.
            heartbeat: the line carries the broker's present time instead of a price's time.
        """
        ahead_s = time_ns / NANOSECONDS - wall_s
        if ahead_s > _MAX_SLOW_S:
            return Verdict.REFUSED
        if ahead_s <= self._slow_s + _AHEAD_S:
            self._agreement = None
            if heartbeat:  # the clock may have been corrected since
                self._slow_s = min(self._slow_s, max(ahead_s, 0.0))
            return Verdict.ACCEPTED
        agreed = self._agreement
        if agreed is None or abs(ahead_s - agreed.ahead_s) > _AHEAD_S:
            self._agreement = _Agreement(ahead_s, wall_s)
            return Verdict.REFUSED
        agreed.lines += 1
        if agreed.lines < _AGREEING_LINES or wall_s - agreed.began_s < _AGREEING_S:
            return Verdict.REFUSED
        self._slow_s, self._agreement = ahead_s, None
        return Verdict.ACCEPTED

    def latest_s(self, wall_s: float) -> float:
        """The latest time that the broker's clock can show now."""
        return wall_s + self._slow_s + _AHEAD_S


class ReplayTimes:
    """Judges the times of a replay's lines by the line before, since its market time is simulated.

    Prices may jump over a weekend or a gap in the data, so a jump is accepted once a second price confirms
    it. Heartbeats are sent between prices and never jump.
    """

    def __init__(self, last_s: int) -> None:
        """`last_s` is the market time at which the replay continues; 0 if it is not known."""
        self._last_s = float(last_s)
        self._held_s: float | None = None

    def judge(self, time_ns: int, _wall_s: float, *, heartbeat: bool) -> Verdict:
        """Judge one line's time."""
        time_s = time_ns / NANOSECONDS
        if not self._last_s or time_s <= self._last_s + _REPLAY_AHEAD_S:
            disproved, self._held_s = self._held_s is not None, None
            self._last_s = max(self._last_s, time_s)
            return Verdict.DISPROVES if disproved else Verdict.ACCEPTED
        if heartbeat:
            return Verdict.REFUSED
        if self._held_s is not None and self._held_s <= time_s <= self._held_s + _REPLAY_AHEAD_S:
            self._last_s, self._held_s = time_s, None
            return Verdict.ACCEPTED
        self._held_s = time_s
        return Verdict.HELD

    def latest_s(self, _wall_s: float) -> float:
        """The latest time that the replay can show now; infinite before the first line."""
        return self._last_s + _REPLAY_AHEAD_S if self._last_s else math.inf


class PriceLevel:
    """Judges prices by the last good one; a new level needs several prices and a candle to confirm them."""

    def __init__(self, max_jump_percent: float) -> None:
        """A price further than this from the last good one is refused; `inf` accepts every price."""
        self._max_jump = math.log1p(max_jump_percent / 100)
        self._level: float | None = None
        self._ticked = False  # a quote was accepted, after which candles alone cannot move the level
        self._candidate = 0.0
        self._num_near = 0  # refused prices in a row near the candidate

    def accepts_price(self, mid: float) -> bool:
        """Judge the mid of a quote."""
        if self._level is None or self._near(mid, self._level):
            self._level, self._ticked, self._num_near = mid, True, 0
            return True
        self._num_near = self._num_near + 1 if self._num_near and self._near(mid, self._candidate) else 1
        self._candidate = mid
        return False

    def accepts_closes(self, closes: list[float]) -> list[bool]:
        """Judge the closes of successive candles of one answer.

        A close far from the last good price is accepted if refused quotes confirm it, or, before the first
        quote of a session, if the next candle does.
        """
        if self._level is None and closes:
            first = sorted(closes[:_FIRST_CLOSES])
            self._level = first[len(first) // 2]
        return [
            self._accepts_close(close, closes[index + 1] if index + 1 < len(closes) else None)
            for index, close in enumerate(closes)
        ]

    def _accepts_close(self, close: float, following: float | None) -> bool:
        assert self._level is not None, "the first closes set the level"
        confirmed = (self._num_near >= _LEVEL_PRICES and self._near(close, self._candidate)) or (
            not self._ticked and following is not None and self._near(following, close)
        )
        if not confirmed and not self._near(close, self._level):
            return False
        if confirmed:
            self._num_near = 0
        self._level = close
        return True

    def _near(self, price: float, other: float) -> bool:
        return abs(math.log(price / other)) <= self._max_jump


def fault_of(candle: Candle, until_s: float) -> str:
    """Reason why a complete mid candle is refused, or an empty text.

    Args:
        candle: as the broker sent it.
        until_s: latest time at which it may end.
    """
    mid = candle.mid
    if mid is None:
        return "it has no mid prices"
    if candle.time_s % BAR_SECONDS:
        return f"its time {candle.time_s} is not the opening of a minute"
    if candle.time_s + BAR_SECONDS > until_s:
        return f"it ends {candle.time_s + BAR_SECONDS - until_s:.0f} s in the future"
    if not all(0 < mid.low <= price <= mid.high < math.inf for price in (mid.open, mid.close)):
        return (
            f"open {mid.open}, high {mid.high}, low {mid.low}, close {mid.close}: "
            "expected 0 < low <= open, close <= high"
        )
    return ""
