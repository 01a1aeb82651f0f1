"""Build one-minute bars from ticks, as OANDA makes its mid candles.

A bar is labelled by the opening of its minute. Its prices are mids, half-way between bid and ask, and its
volume is the number of price updates. A minute without a tick has no bar. OANDA's stream skips updates
within 250 ms of each other, so a bar built here can differ from OANDA's candle. The candle is
authoritative; the trader compares the two.
"""

import math
from dataclasses import dataclass

from shared.errors import DataError
from shared.market.bar import BAR_SECONDS

BAR_NS = BAR_SECONDS * 1_000_000_000

#: Tolerance for rounding half up, in units of the last decimal, because float arithmetic is inexact.
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
        decimals: number of decimals to which mids are rounded, half up. OANDA does not document how it rounds
            a mid that lies between two prices; six decimals keep every such mid and remove float noise.
    """

    def __init__(self, decimals: int = 6) -> None:
        self._steps = 10.0**decimals
        self._minute: int | None = None  # of the bar being built
        self._open = self._high = self._low = self._close = math.nan
        self._volume = 0
        self._last_ns = -1  # ticks at or before this time are ignored
        self.num_late = 0  # ticks ignored because they were repeated or came after their minute was closed

    def push(self, time_ns: int, bid: float, ask: float) -> ClosedBar | None:
        """Process one price update.

        OANDA repeats ticks after a reconnect. A tick that is not later than the last one is counted in
        `num_late` and otherwise ignored.

        Args:
            time_ns: nanoseconds since 1970 UTC, by the broker's clock.
            bid: best bid.
            ask: best ask.
        Returns:
            The bar of an earlier minute, if this tick closes one.
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
        """Close the current bar if its minute is over.

        In quiet hours, call this with the time of each heartbeat. Later ticks of a closed minute are ignored.
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
