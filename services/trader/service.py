"""The trader: at each bar's close a decision, past the guards, to an order and its fill.

    price stream -> bar closed -> broker's candle -> features -> /inference -> guards -> order -> fill
                                                                         |
                                          decisions, trades, alerts -> ledger -> streams, DuckDB

A session with the broker begins with reconciling account and history and ends with the first error of
the price stream; the next one begins after a pause that grows. No entry is made outside a session, without
the account's lease, or for a bar that was decided on before. Exits need none of these: a task beside the
sessions closes until the broker shows flat, and another one looks for the kill file twice a second. No
answer of the broker ends the trader: it says what is wrong and tries again.
"""

import asyncio
import contextlib
import time

import structlog

from services.trader.bar_close import BarClose
from services.trader.config import Mode
from services.trader.control import Control
from services.trader.exits import Exits
from services.trader.history import History
from services.trader.market import Market, compile_kernels
from services.trader.orders import Intent
from services.trader.parts import Parts, Terms
from services.trader.waiting import Backoff
from services.trader.watching import Watching
from shared.adapters.oanda.records import Price
from shared.errors import BrokerError, LedgerError, ServiceError, SettingsError
from shared.messages.entry_id import EntryId
from shared.messages.streams import CONTROL

log = structlog.get_logger()

#: How often guards and kill switch are looked at while no bar closes.
_WATCH_SECONDS = 0.5

#: Between two tries to read what operators order, while Redis refuses.
_REFUSED_SECONDS = 1.0

#: A session whose prices came for so long was a good one: the next pause is a short one again.
_GOOD_SESSION_SECONDS = 5.0

#: A stream that sends only what is refused is as good as dead. Longer than a slow clock takes to be believed.
UNHEARD_SECONDS = 30.0


class TraderService:
    """One account on one instrument."""

    def __init__(self, parts: Parts, terms: Terms) -> None:
        """Wire the parts; `run` does the rest."""
        self._client, self._account, self._lifecycle = parts.client, parts.account, parts.lifecycle
        self._metrics, self._instrument, self._config = parts.metrics, terms.instrument, terms.config
        self._market = Market(
            terms.instrument,
            time.monotonic,
            None if terms.mode is Mode.PAPER else terms.wall,
            max_jump_percent=terms.limits.max_jump_percent,
        )
        self._history = History(parts.client, self._market, terms.instrument, terms.config, terms.costs)
        self._exits = Exits(
            parts.account, self._market, terms.config, terms.limits, settled=self._order_settled
        )
        self._control = Control(parts, terms, self._exits)
        self._watching = Watching(parts, terms, self._market, self._history, self._control, self._exits)
        self._bar_close = BarClose(
            parts, terms, self._market, self._history, self._exits, self._control, self._watching
        )
        self._closed_bar_s: int | None = None  # the newest that closed and was not decided on
        self._bar_closed = asyncio.Event()
        self._first_price = asyncio.Event()
        self._control_read = asyncio.Event()  # what operators ordered so far was taken up
        self._began = 0.0  # when the session's first price had come

    # -- sessions ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Trade until the lifecycle stops."""
        work = (self._follow_control(), self._keep_watch(), self._keep_closing())
        beside = [asyncio.create_task(task) for task in work]
        for task in beside:
            task.add_done_callback(lambda _: self._lifecycle.stop())
        try:
            await asyncio.to_thread(compile_kernels, self._instrument)
            await self._sessions()
        finally:
            for task in beside:
                task.cancel()
            ends = await asyncio.gather(*beside, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _keep_watch(self) -> None:
        """Look around beside the trading, which may wait for an answer; runs until it is cancelled."""
        while True:
            self._control.see_kill_file()
            self._watching.look()
            self._watching.report()
            self._control.write_status(str(self._lifecycle.heartbeat.detail.get("state", "starting")))
            await asyncio.sleep(_WATCH_SECONDS)

    async def _keep_closing(self) -> None:
        """Close what must be closed, in a session or not; runs until it is cancelled."""
        while True:
            try:
                if self._account.reconciled:
                    await self._close_what_must_be_closed()
                elif self._control.now == "killed" and self._exits.flat_at is None:
                    await self._exits.close_unread()
            except LedgerError as refused:  # of the note that a close was settled
                log.warning("ledger_refuses", error=str(refused))
            await asyncio.sleep(_WATCH_SECONDS)

    async def _close_what_must_be_closed(self) -> None:
        forced = self._watching.forced_exit()
        if reason := self._exits.wanted(forced):
            await self._exits.close_when_due(reason)
        else:
            await self._exits.look_around(confirm=bool(forced))
        if self._account.holding.trade is None:
            await self._history.follow(None)

    async def _sessions(self) -> None:
        backoff, watching = Backoff(self._config.reconnect_max_seconds), self._watching
        while not self._lifecycle.stopping.is_set():
            try:
                await self._session()
            except (BrokerError, LedgerError) as broken:
                self._metrics.reconnects.inc()
                good = watching.in_session and time.monotonic() - self._began > _GOOD_SESSION_SECONDS
                pause = backoff.after(good=good)
                log.warning("session_broke", error=str(broken), again_in_seconds=round(pause, 2))
                watching.session_broke(broken)
                watching.look()
                watching.report()
                await self._lifecycle.sleep(pause)

    async def _session(self) -> None:
        """Reconcile, then trade until the stream breaks or the service stops.

        Raises:
            BrokerError: the broker is away.
            LedgerError: what happens cannot be kept.
        """
        await self._account.reconcile()
        self._control.account_is_known()
        await self._lifecycle.until_stopping(self._control_read.wait())
        await self._history.warm_up(self._account.holding.trade)
        if self._market.first_bar_s is not None:
            await self._bar_close.acknowledge(
                self._market.first_bar_s
            )  # from here on a paper market waits for this trader
        self._closed_bar_s = None
        self._first_price.clear()
        reader = asyncio.create_task(self._read_prices())
        reader.add_done_callback(self._note_broken_stream)
        try:
            await self._until_first_price(reader)
            await self._history.refresh()
            self._began = time.monotonic()
            self._watching.session_began()
            log.info(
                "session_began", side=self._account.holding.side.name, last_bar_s=self._market.last_bar_s
            )
            if self._market.last_bar_s is not None:
                await self._bar_close.decide(self._market.last_bar_s, reader)
            while not self._lifecycle.stopping.is_set():
                bar_time_s = await self._next_bar(reader)
                if bar_time_s is not None:
                    await self._bar_close.decide(bar_time_s, reader)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    def _note_broken_stream(self, reader: asyncio.Task[None]) -> None:
        """Say that the stream broke as soon as it did; the session may be waiting for an answer."""
        if not reader.cancelled() and isinstance(broken := reader.exception(), BrokerError):
            self._watching.broker_away = str(broken)

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
        """Wait for a price, whose line may be refused.

        Raises:
            BrokerError: the stream broke, or sent none in time.
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
        """The newest bar that closed, or None when it is time to see whether the stream still lives.

        Bars that closed before it are not decided on; they are read as candles.

        Raises:
            BrokerError: the stream broke.
        """
        if reader.done():
            reader.result()
        silence = time.monotonic() - self._market.heard
        if silence > UNHEARD_SECONDS:
            raise BrokerError(f"no line of the price stream could be used for {silence:.0f} s")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WATCH_SECONDS):
                await self._lifecycle.until_stopping(self._bar_closed.wait())
        self._bar_closed.clear()
        bar_time_s, self._closed_bar_s = self._closed_bar_s, None
        return bar_time_s

    def _order_settled(self, intent: Intent) -> None:
        self._bar_close.order_settled(intent)

    # -- operators -----------------------------------------------------------------------------------

    async def _follow_control(self) -> None:
        """Take up what operators order; runs until it is cancelled, also where Redis refuses."""
        while True:
            try:
                await self._take_up_orders()
            except (ServiceError, SettingsError) as refused:
                log.warning("control_not_read", error=str(refused))
                await asyncio.sleep(_REFUSED_SECONDS)

    async def _take_up_orders(self) -> None:
        """Take up what operators order, from where the ledger stands.

        Raises:
            ServiceError: Redis refuses to tell.
            SettingsError: it refuses the password.
        """
        bus = self._lifecycle.bus
        until = await bus.last_id(CONTROL)
        after = self._account.memory.control_entry if self._account.reconciled else "0-0"
        if EntryId.parse(after) >= EntryId.parse(until):
            self._control_read.set()
        async for entries in bus.follow(CONTROL, after):
            for entry in entries:
                self._control.take_up(entry.entry_id, entry.message)
            if not entries or EntryId.parse(entries[-1].entry_id) >= EntryId.parse(until):
                self._control_read.set()
