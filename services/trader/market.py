"""The market as the trader sees it: builds bars from ticks, checks them against candles, computes features.

No data from the broker raises an error here. An item that breaks a rule of `refusals` is counted and
otherwise ignored.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from services.trader.refusals import BrokerTimes, PriceLevel, Refusal, ReplayTimes, Verdict, fault_of
from shared.adapters.oanda.records import NANOSECONDS, Candle, Heartbeat, Price, UnreadableLine
from shared.environment.action import Side
from shared.environment.position import Position
from shared.features.window import FIRST_WINDOW_BAR, FeatureStream
from shared.market.bar import BAR_SECONDS, Instrument
from shared.market.calendar import WEEK_OPEN_S, open_minute, week_open_s
from shared.market.candles import BAR_NS, CandleBuilder
from shared.numeric import Float32

#: Number of bars whose closes the newest bar's features depend on.
FEATURE_PAST = FIRST_WINDOW_BAR + 1

#: Largest number of bars built from ticks that are kept until their candle arrives.
_KEPT_BARS = 64


@dataclass(frozen=True)
class Quoted:
    """The newest price."""

    price: Price
    arrived: float  # time of arrival by this machine's monotonic clock, in seconds


class Market:
    """Live prices, candles and features of one instrument."""

    def __init__(
        self,
        instrument: Instrument,
        monotonic: Callable[[], float],
        wall: Callable[[], float] | None,
        *,
        max_jump_percent: float,
    ) -> None:
        """Begin without history.

        Args:
            instrument: traded instrument.
            monotonic: clock for ages, in seconds.
            wall: clock in seconds since 1970 UTC; None where market time is simulated.
            max_jump_percent: distance from the last good price beyond which a price is refused.
        """
        self._instrument, self._monotonic, self._wall = instrument, monotonic, wall
        self._max_jump_percent = max_jump_percent
        self.num_mismatches = 0  # bars built from ticks whose close differs from the candle's
        self.num_late = 0  # ticks not newer than the one before, such as repeated ones
        self.refused: Counter[Refusal] = Counter()
        self.refusals: dict[Refusal, str] = {}  # newest reason of each kind
        self.warm_up(())

    # -- history -------------------------------------------------------------------------------------

    def warm_up(self, candles: Sequence[Candle]) -> None:
        """Start over with a history of complete candles; from here on ticks build bars.

        Market time and prices are reset too, so that a wrong value does not outlive its session.
        """
        self.heard = self._monotonic()  # arrival of the newest usable line
        self.quoted: Quoted | None = None
        self.time_ns = 0  # market time: time of the newest tick or heartbeat
        self._skew_s: float | None = None
        self._features = FeatureStream(self._instrument)
        self._past: deque[tuple[int, float]] = deque(maxlen=5_000)
        self._builder = CandleBuilder()
        self._minute = -1  # minute of the bar being built, even if its prices are refused; -1 without one
        self._over = -1  # newest closed minute
        self._minute_starts: deque[int] = deque(maxlen=64)  # times of each minute's first line, in a replay
        self._own: dict[int, float] = {}  # closes of bars built from ticks, by opening time
        self._first_own = True  # the first minute is partial, so its bar cannot match the candle
        self._level = PriceLevel(self._max_jump_percent)
        self._refused_candles: deque[int] = deque(maxlen=1_000)
        self._times: BrokerTimes | ReplayTimes = BrokerTimes() if self._wall else ReplayTimes(0)
        self.take(candles)
        if self._wall is None and self.last_bar_s is not None:
            self._times = ReplayTimes(self.last_bar_s + BAR_SECONDS)

    def take(self, candles: Sequence[Candle]) -> list[tuple[int, float]]:
        """Append the broker's complete candles and compare each with the bar built from ticks.

        Returns:
            Opening time and close of each new candle that was accepted, in order of time.
        """
        fresh: list[tuple[Candle, float]] = []
        until_s = self._times.latest_s(self._wall_s())
        last_s = -1 if self.last_bar_s is None else self.last_bar_s
        for candle in sorted(candles, key=lambda candle: candle.time_s):
            if candle.time_s <= last_s:
                continue
            fault = fault_of(candle, until_s)
            if fault or candle.mid is None:
                self._refuse_candle(candle, fault)
            else:
                fresh.append((candle, candle.mid.close))
                last_s = candle.time_s
        taken = []
        accepted = self._level.accepts_closes([close for _, close in fresh])
        for (candle, close), is_accepted in zip(fresh, accepted, strict=True):
            if is_accepted:
                self._append(candle.time_s, close)
                taken.append((candle.time_s, close))
            else:
                detail = f"close {close} is far from the last price, and no quote confirms it"
                self._refuse_candle(candle, detail)
        return taken

    def _append(self, time_s: int, close: float) -> None:
        self._features.push(time_s, close)
        self._past.append((time_s, close))
        own = self._own.pop(time_s, None)
        if own is not None:
            self.num_mismatches += abs(own - close) > self._instrument.pip / 100
        self._own = {own_s: close for own_s, close in self._own.items() if own_s > time_s}

    def _refuse_candle(self, candle: Candle, fault: str) -> None:
        """Count a refused candle, only once however often it is read."""
        if candle.time_s not in self._refused_candles:
            self._refused_candles.append(candle.time_s)
            self.refuse(Refusal.CANDLE, f"candle {candle.time_s}: {fault}")

    def refuse(self, refusal: Refusal, detail: str) -> None:
        """Count a refused item."""
        self.refused[refusal] += 1
        self.refusals[refusal] = detail

    @property
    def last_bar_s(self) -> int | None:
        """Opening time of the newest complete candle."""
        return self._past[-1][0] if self._past else None

    @property
    def last_close(self) -> float:
        """Close of the newest complete candle."""
        return self._past[-1][1]

    def window(self) -> Float32 | None:
        """`[32, 9]` temporal features up to the newest candle; None while the history is too short."""
        return self._features.window()

    def missing_minutes(self) -> int:
        """Number of open minutes without a bar among the bars used for the newest window."""
        times = np.array([time_s for time_s, _ in self._past][-FEATURE_PAST:], np.int64)
        if len(times) < 2:
            return 0
        first, last = open_minute(times[[0, -1]]).tolist()
        return int(last - first + 1 - len(times))

    def closes_from(self, from_s: int) -> list[tuple[int, float]]:
        """Opening time and close of each bar in the history from `from_s` on."""
        return [(time_s, close) for time_s, close in self._past if time_s >= from_s]

    @property
    def first_bar_s(self) -> int | None:
        """Opening time of the oldest candle in the history."""
        return self._past[0][0] if self._past else None

    # -- ticks ---------------------------------------------------------------------------------------

    def on_item(self, item: Price | Heartbeat | UnreadableLine) -> int | None:
        """Process one line of the price stream.

        Returns:
            Opening time of the bar that the line closed, or None.
        """
        if isinstance(item, UnreadableLine):
            self.refuse(Refusal.UNREADABLE, item.reason)
            return None
        price = item if isinstance(item, Price) else None
        if price is not None and price.instrument != self._instrument.name:
            detail = f"a price of {price.instrument[:40]!r}, expected {self._instrument.name}"
            self.refuse(Refusal.FOREIGN, detail)
            return None
        wall_s = self._wall_s()
        verdict = self._times.judge(item.time_ns, wall_s, heartbeat=price is None)
        if verdict in (Verdict.REFUSED, Verdict.DISPROVES):
            self.refuse(Refusal.FUTURE, self._misdated(item.time_ns, wall_s, verdict))
        if verdict is Verdict.REFUSED:
            return None
        if verdict is Verdict.DISPROVES:  # reopen the bar that the refused price closed
            self._over = min(self._over, item.time_ns // BAR_NS - 1)
        if verdict is Verdict.HELD:  # the open minute is over whether the jump is confirmed or not
            return self._close_minute((self._minute + 1) * BAR_NS)
        self.heard = self._monotonic()
        if self._wall and price is None:  # a price may be old, so only heartbeats show the clocks' difference
            self._skew_s = wall_s - item.time_ns / NANOSECONDS
        self._advance(item.time_ns)
        closed = self._close_minute(item.time_ns)
        if price is not None:
            self._on_price(price)
        return closed

    def _advance(self, time_ns: int) -> None:
        if self._wall is None and time_ns // BAR_NS > self.time_ns // BAR_NS:
            self._minute_starts.append(time_ns)
        self.time_ns = max(self.time_ns, time_ns)

    def _on_price(self, price: Price) -> None:
        if price.bid is None or price.ask is None or not price.tradeable:
            self.quoted = Quoted(price, self.heard)
            return
        self._minute = max(self._minute, price.time_ns // BAR_NS)
        if self._minute <= self._over:
            self._minute = -1
        if not 0 < price.bid <= price.ask < math.inf:
            self.refuse(Refusal.CROSSED, f"bid {price.bid}, ask {price.ask}: expected 0 < bid <= ask")
        elif self.quoted and self.quoted.price.tradeable and price.time_ns <= self.quoted.price.time_ns:
            self.num_late += 1
        elif not self._level.accepts_price((price.bid + price.ask) / 2):
            detail = (
                f"bid {price.bid}, ask {price.ask} are far from the last price, and no candle confirms them"
            )
            self.refuse(Refusal.OUTLIER, detail)
        else:
            self.quoted = Quoted(price, self.heard)
            self._builder.push(price.time_ns, price.bid, price.ask)

    def _close_minute(self, now_ns: int) -> int | None:
        """Close the open minute if it is over, even if all of its prices were refused."""
        if self._minute < 0 or now_ns < (self._minute + 1) * BAR_NS:
            return None
        built = self._builder.flush(now_ns)
        if built is not None:
            if not self._first_own and len(self._own) < _KEPT_BARS:
                self._own[built.time_s] = built.close
            self._first_own = False
        self._over, self._minute = self._minute, -1
        return self._over * BAR_SECONDS

    def _misdated(self, time_ns: int, wall_s: float, verdict: Verdict) -> str:
        if verdict is Verdict.DISPROVES:
            return "a price was dated far ahead of the replay, and the next price did not confirm it"
        ahead_s = time_ns / NANOSECONDS - (wall_s if self._wall else self.time_ns / NANOSECONDS)
        clock = "this machine's clock" if self._wall else "the replay"
        return f"a line is dated {ahead_s:.0f} s ahead of {clock}"

    def _wall_s(self) -> float:
        return self._wall() if self._wall else 0.0

    @property
    def clock_skew_seconds(self) -> float | None:
        """This machine's clock minus the broker's; None until a heartbeat arrives, and in a replay."""
        return self._skew_s

    def price_age_seconds(self) -> float:
        """Seconds since the newest price arrived; in real time, since its own time if that is longer."""
        if self.quoted is None:
            return math.inf
        age = self._monotonic() - self.quoted.arrived
        if self._wall is None or self._skew_s is None:
            return age
        return max(age, self._wall() - self._skew_s - self.quoted.price.time_ns / NANOSECONDS)

    def minutes_to_close(self) -> float:
        """Open minutes until Friday's close; 0 or less after it."""
        time_s = self.time_ns // NANOSECONDS
        opened = int(week_open_s(np.array([time_s], np.int64))[0])
        return (opened + WEEK_OPEN_S - time_s) / 60

    def bar_age_seconds(self, bar_time_s: int) -> float:
        """Market time since a bar ended; in a replay, since the first line after its end.

        A replay sends no line in a gap of its data and fills at the open that follows, as the environment
        does. The first line after a gap is therefore the earliest moment for a decision.
        """
        end_ns = (bar_time_s + BAR_SECONDS) * NANOSECONDS
        since_ns = next((start for start in self._minute_starts if start >= end_ns), end_ns)
        return (self.time_ns - since_ns) / NANOSECONDS


def compile_kernels(instrument: Instrument) -> None:
    """Compile every kernel that a bar's close needs, before the first bar.

    With a cold cache this takes up to half a minute: call it in a thread.
    """
    FeatureStream(instrument).push(0, 1.0)
    Position(instrument.pip).after_entry(Side.LONG, 1.0, 0.0).at_close(1.0).static()
