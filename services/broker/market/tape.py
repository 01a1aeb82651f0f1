"""The replayed market: each bar becomes four ticks, from which the bar can be rebuilt exactly.

The ticks of a bar are its open, its two extremes (the low first in a rising bar, the high first in a falling
one) and its close, distributed over its minute. Prices are integers in points (the last decimal of a price).
Bid and ask are the same number of points away from the mid, so that their mean is exactly the mid.
"""

from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from services.broker.exchange.planning import Quote
from shared.errors import DataError
from shared.market.bar import BAR_SECONDS, BarSeries
from shared.market.calendar import is_open
from shared.numeric import Bool, Int64

TICKS_PER_BAR = 4
SECOND_NS = 1_000_000_000

#: Second of the minute for open, first extreme, second extreme and close.
TICK_SECONDS = (0, 20, 40, 59)

OPEN, HIGH, LOW, CLOSE = range(4)


@dataclass(frozen=True)
class Tape:
    """All bars of the data set in points; bars `first` to `stop` - 1 are replayed."""

    time_s: Int64  # [T]
    points: Int64  # [T, 4] mid open, high, low, close
    half_spread: Int64  # [T] points from the mid to bid and ask
    volume: Int64  # [T]
    open_market: Bool  # [T] whether the market is open at the bar's time
    decimals: int
    first: int
    stop: int

    @classmethod
    def of(
        cls,
        bars: BarSeries,
        *,
        spread_pips: float,
        spread_from_data: bool = False,
        first: int = 0,
        stop: int | None = None,
    ) -> "Tape":
        """Convert bars to points. A spread of an odd number of points is rounded up to an even one.

        Raises:
            DataError: `first` to `stop` contains no bar, or exceeds the data set.
        """
        stop = len(bars) if stop is None else stop
        if not 0 <= first < stop <= len(bars):
            raise DataError(f"cannot replay bars [{first}, {stop}): the data set has bars [0, {len(bars)})")
        decimals = bars.instrument.price_decimals
        prices = np.stack([bars.open, bars.high, bars.low, bars.close], axis=1)
        spread = np.full(len(bars), spread_pips)
        if spread_from_data:
            spread = np.where(np.isnan(bars.spread_pips), spread_pips, bars.spread_pips)
        half = np.ceil(np.round(spread * 10, 6) / 2).astype(np.int64)
        points = np.rint(prices * 10**decimals).astype(np.int64)
        return cls(bars.time_s, points, half, bars.volume, is_open(bars.time_s), decimals, first, stop)

    def __len__(self) -> int:
        return len(self.time_s)

    @property
    def first_tick(self) -> int:
        """Index of the first replayed tick; tick k belongs to bar k // 4."""
        return self.first * TICKS_PER_BAR

    @property
    def stop_tick(self) -> int:
        """Index after the last replayed tick."""
        return self.stop * TICKS_PER_BAR

    def tick_time_ns(self, tick: int) -> int:
        """Time of a tick in nanoseconds."""
        bar, phase = divmod(tick, TICKS_PER_BAR)
        return (int(self.time_s[bar]) + TICK_SECONDS[phase]) * SECOND_NS

    def end_ns(self, bar: int) -> int:
        """Time from which a bar is complete, in nanoseconds."""
        return (int(self.time_s[bar]) + BAR_SECONDS) * SECOND_NS

    def gap_minutes(self, bar: int) -> int:
        """Number of minutes without a bar right before this one; 0 for the first bar."""
        return int(self.time_s[bar] - self.time_s[bar - 1]) // BAR_SECONDS - 1 if bar else 0

    def path(self, bar: int) -> tuple[int, int, int, int]:
        """Mid prices of a bar's four ticks, in points."""
        opened, high, low, close = (int(value) for value in self.points[bar])
        return (opened, low, high, close) if close >= opened else (opened, high, low, close)

    def quote(self, tick: int) -> Quote:
        """The price of a tick."""
        bar, phase = divmod(tick, TICKS_PER_BAR)
        mid, half = self.path(bar)[phase], int(self.half_spread[bar])
        return Quote(
            self.tick_time_ns(tick),
            self.price(mid - half),
            self.price(mid + half),
            bool(self.open_market[bar]),
        )

    def closed_quote(self, bar: int) -> Quote:
        """The last price of a bar, not tradeable: the quote while the market is closed after it."""
        mid, half = int(self.points[bar, CLOSE]), int(self.half_spread[bar])
        return Quote(self.end_ns(bar), self.price(mid - half), self.price(mid + half), tradeable=False)

    def price(self, points: int) -> Decimal:
        """Convert points to a price."""
        return Decimal(points).scaleb(-self.decimals)

    def bar_so_far(self, bar: int, num_ticks: int) -> tuple[int, int, int, int]:
        """Open, high, low and close of a bar's first `num_ticks` ticks, in points."""
        seen = self.path(bar)[:num_ticks]
        return seen[0], max(seen), min(seen), seen[-1]
