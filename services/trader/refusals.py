"""What the trader refuses of the data that it is sent: pure rules about times, price levels and candles.

A refused item is counted by its reason and changes nothing else. The last good price stays in force and
ages, so that the guards decide how long it may be traded on.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from shared.adapters.oanda.records import NANOSECONDS, Candle
from shared.market.bar import BAR_SECONDS


class Refusal(StrEnum):
    """Why an item was refused; alerts and metrics carry this name."""

    UNREADABLE = "unreadable"  # not the broker's own schema, or a line of an unknown type
    FOREIGN = "foreign"  # of another instrument
    FUTURE = "future"  # dated later than the time can be
    CROSSED = "crossed"  # bid above ask, or a price that is not above 0
    OUTLIER = "outlier"  # far from the last price, and no candle confirms the new level
    CANDLE = "candle"  # a candle that breaks a rule


class Verdict(StrEnum):
    """What becomes of a line, by its time."""

    ACCEPTED = "accepted"
    HELD = "held"  # a replay's jump that the next price must confirm
    DISPROVES = "disproves"  # accepted, and the price that was held is refused
    REFUSED = "refused"


#: A line may be dated so far ahead of this machine's clock, corrected by what is known of its error.
_AHEAD_S = 5.0

#: So many lines in a row, over so long, that agree with each other show that this machine's clock is slow.
_AGREEING_LINES = 3
_AGREEING_S = 10.0

#: No clock is believed to be slower than this.
_MAX_SLOW_S = 600.0

#: A replay's line may be so far ahead of the line before; a longer jump needs a second price.
_REPLAY_AHEAD_S = 3_600.0

#: So many prices in a row near each other make a new level, once a candle confirms it.
_LEVEL_PRICES = 3

#: The median of so many closes is where a history begins.
_FIRST_CLOSES = 11


@dataclass
class _Agreement:
    """Lines in a row that put the broker's clock equally far ahead of this one."""

    ahead_s: float
    began_s: float
    lines: int = 1


class BrokerTimes:
    """Judges the times of stream lines by this machine's clock.

    A line from the future would close a bar early, make every later bar look old and begin a new day of
    losses, so it is refused. Lines from the past are harmless: a snapshot is as old as its last price.
    """

    def __init__(self) -> None:
        self._slow_s = 0.0  # how far this machine's clock is known to be behind the broker's
        self._agreement: _Agreement | None = None

    def judge(self, time_ns: int, wall_s: float, *, heartbeat: bool) -> Verdict:
        """Take one line's time.

        Args:
            time_ns: of the line.
            wall_s: this machine's clock.
            heartbeat: the line carries the broker's present time, not that of a price.
        """
        ahead_s = time_ns / NANOSECONDS - wall_s
        if ahead_s > _MAX_SLOW_S:
            return Verdict.REFUSED
        if ahead_s <= self._slow_s + _AHEAD_S:
            self._agreement = None
            if heartbeat:  # a clock that was corrected is trusted again
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
        """The latest moment that may be past by the broker's clock."""
        return wall_s + self._slow_s + _AHEAD_S


class ReplayTimes:
    """Judges the times of a replay's lines, whose market time is simulated, by the line before.

    Prices may jump over a weekend or a gap in the data, so a jump is accepted once a second price confirms
    it. Heartbeats come between prices and never jump.
    """

    def __init__(self, last_s: int) -> None:
        """`last_s` is the market time that the replay goes on from; 0 where it is not known."""
        self._last_s = float(last_s)
        self._held_s: float | None = None

    def judge(self, time_ns: int, _wall_s: float, *, heartbeat: bool) -> Verdict:
        """Take one line's time."""
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
        """The latest moment that may be past; unknown before the first line."""
        return self._last_s + _REPLAY_AHEAD_S if self._last_s else math.inf


class PriceLevel:
    """Judges prices by the last good one; a new level needs prices and a candle that agree on it."""

    def __init__(self, max_jump_percent: float) -> None:
        """A price further than this from the last good one is refused; `inf` accepts every price."""
        self._max_jump = math.log1p(max_jump_percent / 100)
        self._level: float | None = None
        self._ticked = False  # a price was accepted, so that a candle alone cannot move the level
        self._candidate = 0.0
        self._num_near = 0  # refused prices in a row near the candidate

    def accepts_price(self, mid: float) -> bool:
        """Take the mid of a quote."""
        if self._level is None or self._near(mid, self._level):
            self._level, self._ticked, self._num_near = mid, True, 0
            return True
        self._num_near = self._num_near + 1 if self._num_near and self._near(mid, self._candidate) else 1
        self._candidate = mid
        return False

    def accepts_closes(self, closes: list[float]) -> list[bool]:
        """Take the closes of successive candles of one answer.

        A close far from the last good price is accepted where refused quotes agree with it, or, before the
        first quote of a session, where the next candle does.
        """
        if self._level is None and closes:
            first = sorted(closes[:_FIRST_CLOSES])
            self._level = first[len(first) // 2]
        return [
            self._accepts_close(close, closes[index + 1] if index + 1 < len(closes) else None)
            for index, close in enumerate(closes)
        ]

    def _accepts_close(self, close: float, following: float | None) -> bool:
        assert self._level is not None, "a level was taken from the first closes"
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
    """Why a complete mid candle is refused, or an empty text.

    Args:
        candle: as the broker sent it.
        until_s: latest moment at which it may end.
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
