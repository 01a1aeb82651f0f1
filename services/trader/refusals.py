"""Rules that refuse implausible market data: times, price levels and candles.

A refused item is counted by its reason and otherwise ignored. The last good price stays in use, and its age
increases; the guards decide up to which age the trader may trade on it. A "line" is one message of the
broker's price stream: a price or a heartbeat.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from shared.adapters.oanda.records import NANOSECONDS, Candle
from shared.market.bar import BAR_SECONDS


class Refusal(StrEnum):
    """Reason for a refusal. Its value is used in alerts and as a metric label."""

    UNREADABLE = "unreadable"  # violates the broker's schema, or has an unknown type
    FOREIGN = "foreign"  # belongs to another instrument
    FUTURE = "future"  # dated in the future
    CROSSED = "crossed"  # bid above ask, or a price of 0 or less
    OUTLIER = "outlier"  # far from the last good price, without a candle that confirms the new level
    CANDLE = "candle"  # a candle that `fault_of` refuses, or whose close is an outlier


class Verdict(StrEnum):
    """Judgement of a line's time."""

    ACCEPTED = "accepted"
    HELD = "held"  # after a jump in a replay; the line is kept until the next price confirms or disproves it
    DISPROVES = "disproves"  # this line is accepted; the price held before it is refused
    REFUSED = "refused"


#: How far a line may be ahead of this machine's clock, after correction for the clock's known delay.
_AHEAD_S = 5.0

#: If this many consecutive lines, over at least this time, are ahead of this machine's clock by about the
#: same amount, the clock is considered slow.
_AGREEING_LINES = 3
_AGREEING_S = 10.0

#: Largest delay that is attributed to this machine's clock; lines further ahead are always refused.
_MAX_SLOW_S = 600.0

#: Longest accepted jump between two lines of a replay; a second price must confirm a longer one.
_REPLAY_AHEAD_S = 3_600.0

#: This many consecutive refused prices near each other become the new level once a candle confirms it.
_LEVEL_PRICES = 3

#: Number of closes whose median is the first price level.
_FIRST_CLOSES = 11


@dataclass
class _Agreement:
    """Consecutive lines that are ahead of this machine's clock by about the same amount."""

    ahead_s: float
    began_s: float
    lines: int = 1


class BrokerTimes:
    """Judges the times of lines by this machine's clock.

    A line from the future is refused, because it would close a bar too early, make every later bar look old,
    and reset the daily loss limits. A line from the past is accepted: the first line of a stream repeats the
    last price with its original time.
    """

    def __init__(self) -> None:
        self._slow_s = 0.0  # known delay of this machine's clock behind the broker's
        self._agreement: _Agreement | None = None

    def judge(self, time_ns: int, wall_s: float, *, heartbeat: bool) -> Verdict:
        """Judge one line's time.

        Args:
            time_ns: time of the line.
            wall_s: present time of this machine's clock.
            heartbeat: the line is a heartbeat, whose time is the broker's present time.
        """
        ahead_s = time_ns / NANOSECONDS - wall_s
        if ahead_s > _MAX_SLOW_S:
            return Verdict.REFUSED
        if ahead_s <= self._slow_s + _AHEAD_S:
            self._agreement = None
            if heartbeat:  # this machine's clock may have been corrected meanwhile
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
        """Upper bound of the broker's present time."""
        return wall_s + self._slow_s + _AHEAD_S


class ReplayTimes:
    """Judges the time of each line of a replay by the preceding line, because the market time is simulated.

    A replay jumps over weekends and gaps in the data, so a jump is accepted once a second price confirms it.
    Heartbeats are sent between prices, so a heartbeat after a jump is refused.
    """

    def __init__(self, last_s: int) -> None:
        """`last_s` is the market time at which the replay continues; 0 if unknown."""
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
        """Upper bound of the replay's present time; infinite before the first line."""
        return self._last_s + _REPLAY_AHEAD_S if self._last_s else math.inf


class PriceLevel:
    """Judges prices by the last good price.

    A new level needs several prices and a candle that confirms them.
    """

    def __init__(self, max_jump_percent: float) -> None:
        """Refuse prices further than `max_jump_percent` from the last good one; `inf` accepts every price."""
        self._max_jump = math.log1p(max_jump_percent / 100)
        self._level: float | None = None
        self._ticked = False  # a quote was accepted; from then on candles alone cannot change the level
        self._candidate = 0.0
        self._num_near = 0  # consecutive refused prices near the candidate

    def accepts_price(self, mid: float) -> bool:
        """Judge the mid price of a quote."""
        if self._level is None or self._near(mid, self._level):
            self._level, self._ticked, self._num_near = mid, True, 0
            return True
        self._num_near = self._num_near + 1 if self._num_near and self._near(mid, self._candidate) else 1
        self._candidate = mid
        return False

    def accepts_closes(self, closes: list[float]) -> list[bool]:
        """Judge the closes of the consecutive candles of one response.

        A close far from the last good price is accepted if the refused quotes agree with it. Before the first
        quote of a session it is also accepted if the next candle agrees with it.
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
    """Reason why a complete candle of mid prices is refused; an empty string if it is accepted.

    Args:
        candle: candle from the broker.
        until_s: latest time at which the candle may end.
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
