"""A session with the broker: reconcile, then decide at each bar's close until the price stream breaks.

It is one connection to the broker, not a session of 360 bars.
"""

import asyncio
import contextlib
import time

import structlog

from services.trader.bar_close import BarClose
from services.trader.control import Control
from services.trader.history import History
from services.trader.market import Market
from services.trader.parts import Parts, Terms
from services.trader.watching import Watching
from shared.adapters.oanda.records import Price
from shared.errors import BrokerError

log = structlog.get_logger()

#: Interval at which the session checks whether the stream is alive while no bar closes.
_WATCH_SECONDS = 0.5

#: A stream without an accepted line for this long counts as broken. The limit is longer than the time in
#: which `refusals` detects that this machine's clock is slow, since it refuses lines until then.
UNHEARD_SECONDS = 30.0


class Session:
    """Runs sessions, one at a time."""

    def __init__(
        self,
        parts: Parts,
        terms: Terms,
        market: Market,
        history: History,
        control: Control,
        watching: Watching,
        bar_close: BarClose,
    ) -> None:
        self._client, self._account, self._lifecycle = parts.client, parts.account, parts.lifecycle
        self._instrument = terms.instrument
        self._market, self._history, self._control = market, history, control
        self._watching, self._bar_close = watching, bar_close
        self._closed_bar_s: int | None = None  # newest closed bar that was not passed to `BarClose` yet
        self._bar_closed = asyncio.Event()
        self._first_price = asyncio.Event()
        self._began = 0.0  # monotonic time at which the session began, after its first price

    def seconds_with_prices(self) -> float:
        """Time since the session began, after its first price; 0 outside a session."""
        return time.monotonic() - self._began if self._watching.in_session else 0.0

    async def run(self) -> None:
        """Reconcile, then trade until the stream breaks or the service stops.

        Raises:
            BrokerError: the broker does not answer or refuses, or its price stream broke.
            LedgerError: the ledger cannot be written.
        """
        await self._account.reconcile()
        self._control.apply_early_orders()
        await self._lifecycle.until_stopping(self._control.caught_up.wait())
        await self._history.warm_up(self._account.holding.trade)
        if self._market.first_bar_s is not None:
            # From this acknowledgement on, the paper broker's replay waits for this trader.
            await self._bar_close.acknowledge(self._market.first_bar_s)
        self._closed_bar_s = None
        self._first_price.clear()
        # A TaskGroup would cancel the look-up of an order's outcome when the stream breaks.
        reader = asyncio.create_task(self._read_prices())
        reader.add_done_callback(self._report_broken_stream)
        try:
            await self._until_first_price(reader)
            await self._history.refresh()
            self._begin()
            await self._decide_on_bars(reader)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    def _begin(self) -> None:
        self._began = time.monotonic()
        self._watching.session_began()
        side, last_bar_s = self._account.holding.side.name, self._market.last_bar_s
        log.info("session_began", side=side, last_bar_s=last_bar_s)

    async def _decide_on_bars(self, reader: asyncio.Task[None]) -> None:
        """Decide on the newest bar of the history, then on each bar that closes, until asked to stop."""
        if self._market.last_bar_s is not None and not self._lifecycle.stopping.is_set():
            await self._bar_close.decide(self._market.last_bar_s, reader)
        while not self._lifecycle.stopping.is_set():
            bar_time_s = await self._next_bar(reader)
            if bar_time_s is not None:
                await self._bar_close.decide(bar_time_s, reader)

    def _report_broken_stream(self, reader: asyncio.Task[None]) -> None:
        """Report the break at once, since the session itself may be waiting for the broker's answer."""
        if not reader.cancelled() and isinstance(broken := reader.exception(), BrokerError):
            self._watching.broker_unavailable = str(broken)

    async def _read_prices(self) -> None:
        async with contextlib.aclosing(self._client.price_stream(self._instrument.name)) as items:
            async for item in items:
                closed = self._market.on_item(item)
                if isinstance(item, Price):
                    self._first_price.set()
                if closed is not None:
                    self._closed_bar_s = closed
                    self._bar_closed.set()

    async def _until_first_price(self, reader: asyncio.Task[None]) -> None:
        """Wait for a price line, accepted or refused, or for a stop request.

        Raises:
            BrokerError: the stream broke, or sent no price in time.
        """
        waiting = asyncio.ensure_future(self._first_price.wait())
        stop = asyncio.ensure_future(self._lifecycle.stopping.wait())
        try:
            done, _ = await asyncio.wait(
                {waiting, stop, reader}, timeout=UNHEARD_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            waiting.cancel()
            stop.cancel()
        if reader.done():
            reader.result()
        if not done:
            raise BrokerError(f"the price stream sent no price within {UNHEARD_SECONDS:.0f} s")

    async def _next_bar(self, reader: asyncio.Task[None]) -> int | None:
        """The newest bar that closed, or None if none closed for `_WATCH_SECONDS`.

        If several bars closed meanwhile, the trader decides only on the newest. `History` reads them all.

        Raises:
            BrokerError: the stream broke, or had no usable line for `UNHEARD_SECONDS`.
        """
        if reader.done():
            reader.result()
        silence = time.monotonic() - self._market.heard
        if silence > UNHEARD_SECONDS:
            raise BrokerError(f"the price stream sent no usable line for {silence:.0f} s")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WATCH_SECONDS):
                await self._lifecycle.until_stopping(self._bar_closed.wait())
        self._bar_closed.clear()
        bar_time_s, self._closed_bar_s = self._closed_bar_s, None
        return bar_time_s
