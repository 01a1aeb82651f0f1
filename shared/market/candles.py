"""Ticks → one-minute bars, as OANDA makes its mid candles.

A bar is labelled by the minute's opening; its prices are mids, half-way between bid and ask; its volume
is the number of price updates. A minute without a tick has no bar. OANDA's stream skips updates that
come within 250 ms, so a bar built here can differ from OANDA's candle: the candle is the truth, and the
trader compares the two.
"""

import math
from dataclasses import dataclass

from shared.errors import DataError
from shared.market.bar import BAR_SECONDS

BAR_NS = BAR_SECONDS * 1_000_000_000

#: Share of the last decimal that float arithmetic may put a mid beside the half it stands for.
_ROUNDING_SLACK = 1e-4


@dataclass(frozen=True)
class ClosedBar:
    """One bar of mid prices whose minute is over."""

    time_s: int  # seconds since 1970 UTC at its open
    open: float
    high: float
    low: float
    close: float
    volume: int  # number of price updates


class CandleBuilder:
    """Builds the bars of one instrument, tick by tick.

    Args:
        decimals: decimals that mids are rounded to, halves up. How OANDA rounds a mid that lies between
            two prices is nowhere said; six keep every such mid and leave out what float arithmetic adds.
    """

    def __init__(self, decimals: int = 6) -> None:
        self._steps = 10.0**decimals
        self._minute: int | None = None  # of the bar being built
        self._open = self._high = self._low = self._close = math.nan
        self._volume = 0
        self._last_ns = -1  # no tick or flush at or before this time counts any more
        self.num_late = 0  # ticks left out because they came again, or after their minute was closed

    def push(self, time_ns: int, bid: float, ask: float) -> ClosedBar | None:
        """Take one price update.

        A tick not later than the last one is OANDA repeating itself after a reconnect: it is counted in
        `num_late` and changes nothing.

        Args:
            time_ns: nanoseconds since 1970 UTC, by the broker's clock.
            bid: best bid.
            ask: best ask.
        Returns:
            The bar of an earlier minute that this tick closes, or None.
        Raises:
            DataError: a price is not a positive number, or the bid is above the ask.
        """
        if not (0 < bid <= ask < math.inf):
            raise DataError(f"tick at {time_ns} ns: bid {bid}, ask {ask}; expected 0 < bid <= ask")
        if time_ns <= self._last_ns:
            self.num_late += 1
            return None
        closed = self.flush(time_ns)
        self._last_ns = time_ns
        mid = self._mid(bid, ask)
        if self._minute is None:
            self._minute = time_ns // BAR_NS
            self._open = self._high = self._low = mid
            self._volume = 0
        self._high, self._low, self._close = max(self._high, mid), min(self._low, mid), mid
        self._volume += 1
        return closed

    def flush(self, now_ns: int) -> ClosedBar | None:
        """Close the bar being built if its minute is over; a heartbeat's time tells so in quiet hours.

        Ticks of a closed minute that come later still are left out.
        """
        if self._minute is None or now_ns < (self._minute + 1) * BAR_NS:
            return None
        closed = ClosedBar(
            self._minute * BAR_SECONDS, self._open, self._high, self._low, self._close, self._volume
        )
        self._last_ns = max(self._last_ns, (self._minute + 1) * BAR_NS - 1)
        self._minute = None
        return closed

    def _mid(self, bid: float, ask: float) -> float:
        return math.floor((bid + ask) / 2 * self._steps + 0.5 + _ROUNDING_SLACK) / self._steps
