"""The market as the trader sees it: ticks into bars, bars checked against the broker's candles, features."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shared.adapters.oanda_records import NANOSECONDS, Candle, Heartbeat, Price
from shared.environment.position import Position
from shared.errors import BrokerError
from shared.features.window import FIRST_WINDOW_BAR, FeatureStream
from shared.market.bar import BAR_SECONDS, Instrument
from shared.market.calendar import WEEK_OPEN_S, open_minute, week_open_s
from shared.market.candles import CandleBuilder
from shared.numeric import Float32

#: Bars whose closes the features of the newest one depend on.
FEATURE_PAST = FIRST_WINDOW_BAR + 1

#: Own bars kept until their candle comes.
_KEPT_BARS = 64


@dataclass(frozen=True)
class Quoted:
    """The newest price, and when it came by this machine's monotonic clock."""

    price: Price
    arrived: float


class Market:
    """One instrument, live."""

    def __init__(self, instrument: Instrument, monotonic: Callable[[], float]) -> None:
        self._instrument, self._monotonic = instrument, monotonic
        self.quoted: Quoted | None = None
        self.time_ns = 0  # market time: that of the newest tick or heartbeat
        self.heard = monotonic()  # when it came
        self.num_compared = 0  # own bars compared with the broker's candles
        self.num_mismatches = 0
        self._restart(())

    # -- history -------------------------------------------------------------------------------------

    def warm_up(self, candles: Sequence[Candle]) -> None:
        """Begin anew with a history of complete candles; ticks build bars from here on."""
        self._restart(candles)

    def _restart(self, candles: Sequence[Candle]) -> None:
        self._features = FeatureStream(self._instrument)
        self._past: deque[tuple[int, float]] = deque(maxlen=5_000)
        self._builder = CandleBuilder()
        self._own: dict[int, float] = {}
        self._first_own = True  # ticks began inside a minute: its bar is no candle
        for candle in candles:
            self.append(candle)

    def append(self, candle: Candle) -> None:
        """Take the broker's next complete candle, and compare it with the bar that the ticks made.

        Raises:
            BrokerError: it has no mid prices.
            DataError: it is not later than the one before, or its close is no price.
        """
        if candle.mid is None:
            raise BrokerError(f"candle {candle.time_s} has no mid prices")
        self._features.push(candle.time_s, candle.mid.close)
        self._past.append((candle.time_s, candle.mid.close))
        own = self._own.pop(candle.time_s, None)
        if own is not None:
            self.num_compared += 1
            self.num_mismatches += abs(own - candle.mid.close) > self._instrument.pip / 100
        self._own = {time_s: close for time_s, close in self._own.items() if time_s > candle.time_s}

    @property
    def last_bar_s(self) -> int | None:
        """Opening time of the newest complete candle."""
        return self._past[-1][0] if self._past else None

    @property
    def last_close(self) -> float:
        """Its close."""
        return self._past[-1][1]

    def window(self) -> Float32 | None:
        """`[32, 9]` temporal features that end with the newest candle; None while the past is too short."""
        return self._features.window()

    def missing_minutes(self) -> int:
        """Open minutes without a bar among those that the newest window's features see."""
        times = np.array([time_s for time_s, _ in self._past][-FEATURE_PAST:], np.int64)
        if len(times) < 2:
            return 0
        first, last = open_minute(times[[0, -1]]).tolist()
        return int(last - first + 1 - len(times))

    def marked(self, position: Position, from_s: int) -> Position:
        """The position after the closes of the bars kept from `from_s` on."""
        for time_s, close in self._past:
            if time_s >= from_s:
                position = position.at_close(close)
        return position

    @property
    def first_bar_s(self) -> int | None:
        """Opening time of the oldest candle kept."""
        return self._past[0][0] if self._past else None

    # -- ticks ---------------------------------------------------------------------------------------

    def on_item(self, item: Price | Heartbeat) -> int | None:
        """Take one line of the price stream.

        Returns:
            Opening time of the bar that it closed, or None.
        """
        self.heard = self._monotonic()
        self.time_ns = max(self.time_ns, item.time_ns)
        if isinstance(item, Heartbeat):
            closed = self._builder.flush(item.time_ns)
        else:
            self.quoted = Quoted(item, self.heard)
            if item.bid is None or item.ask is None or not item.tradeable:
                closed = self._builder.flush(item.time_ns)
            else:
                closed = self._builder.push(item.time_ns, item.bid, item.ask)
        if closed is None:
            return None
        if not self._first_own and len(self._own) < _KEPT_BARS:
            self._own[closed.time_s] = closed.close
        self._first_own = False
        return closed.time_s

    def minutes_to_close(self) -> float:
        """Open minutes until Friday's close; 0 or less while the week is over."""
        time_s = self.time_ns // NANOSECONDS
        opened = int(week_open_s(np.array([time_s], np.int64))[0])
        return (opened + WEEK_OPEN_S - time_s) / 60

    def bar_age_seconds(self, bar_time_s: int) -> float:
        """Market time since a bar ended."""
        return self.time_ns / NANOSECONDS - (bar_time_s + BAR_SECONDS)
