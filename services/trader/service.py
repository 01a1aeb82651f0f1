"""The trader: at each bar's close, turns a decision into an order if the guards permit it.

    price stream -> bar closed -> broker's candle -> features -> /inference -> guards -> order -> fill
                                                                         |
                                          decisions, trades, alerts -> ledger -> streams, DuckDB

Trading happens in sessions with the broker (see `session`). After a session breaks, the next one begins after
a pause that grows with each failure. Entries are made only inside a session, under the account's lease, and
once per bar. Exits need none of these: a separate task repeats closes until the broker shows the account
flat, and another task checks the kill file twice a second. An error of the broker never stops the trader: it
raises an alert and retries.
"""

import asyncio
import time
from collections.abc import Coroutine

import structlog

from services.trader.bar_close import BarClose
from services.trader.config import Mode
from services.trader.control import Control
from services.trader.exits import Exits
from services.trader.history import History
from services.trader.market import Market, compile_kernels
from services.trader.orders import Intent
from services.trader.parts import Parts, Terms
from services.trader.session import Session
from services.trader.waiting import Backoff
from services.trader.watching import Watching
from shared.errors import BrokerError, LedgerError

log = structlog.get_logger()

#: Pause between two checks of the guards, the kill file and the exits.
_WATCH_SECONDS = 0.5

#: A session that received prices for longer than this resets the backoff.
_GOOD_SESSION_SECONDS = 5.0


class TraderService:
    """Trades one instrument on one account."""

    def __init__(self, parts: Parts, terms: Terms) -> None:
        self._account, self._lifecycle, self._metrics = parts.account, parts.lifecycle, parts.metrics
        self._instrument, self._config = terms.instrument, terms.config
        market = Market(
            terms.instrument,
            time.monotonic,
            None if terms.mode is Mode.PAPER else terms.wall,
            max_jump_percent=terms.limits.max_jump_percent,
        )
        self._history = History(parts.client, market, terms.instrument, terms.config, terms.costs)
        self._exits = Exits(parts.account, market, terms.config, terms.limits, settled=self._order_settled)
        self._control = Control(parts, terms, self._exits)
        self._watching = Watching(parts, terms, market, self._history, self._control, self._exits)
        self._bar_close = BarClose(
            parts, terms, market, self._history, self._exits, self._control, self._watching
        )
        self._session = Session(
            parts, terms, market, self._history, self._control, self._watching, self._bar_close
        )
        self._failure: Exception | None = None  # first failure of a task

    async def run(self) -> None:
        """Trade until the lifecycle stops.

        If a task fails, the service shuts down gracefully: an order in flight is still looked up.
        """
        async with asyncio.TaskGroup() as tasks:
            loops = (self._control.follow(), self._keep_watch(), self._keep_closing())
            background = [tasks.create_task(self._stop_on_failure(loop)) for loop in loops]
            await self._stop_on_failure(self._trade())
            for task in background:
                task.cancel()
        if self._failure is not None:
            raise self._failure

    async def _stop_on_failure(self, work: Coroutine[None, None, None]) -> None:
        """Do the work and stop the service once it ends; `run` raises the first failure at the end."""
        try:
            await work
        except Exception as failure:  # noqa: BLE001
            self._failure = self._failure or failure
        finally:
            self._lifecycle.stop()

    async def _trade(self) -> None:
        """Run one session after the other."""
        await asyncio.to_thread(compile_kernels, self._instrument)
        backoff = Backoff(self._config.reconnect_max_seconds)
        while not self._lifecycle.stopping.is_set():
            try:
                await self._session.run()
            except (BrokerError, LedgerError) as broken:
                self._metrics.reconnects.inc()
                pause = backoff.after(good=self._session.seconds_with_prices() > _GOOD_SESSION_SECONDS)
                log.warning("session_broke", error=str(broken), again_in_seconds=round(pause, 2))
                self._watching.session_broke(broken)
                self._watching.check()
                self._watching.report()
                await self._lifecycle.sleep(pause)

    async def _keep_watch(self) -> None:
        """Check the kill file and the guards, also while a session waits for an answer."""
        while True:
            self._control.check_kill_file()
            self._watching.check()
            self._watching.report()
            self._control.write_status(str(self._lifecycle.heartbeat.detail.get("state", "starting")))
            await asyncio.sleep(_WATCH_SECONDS)

    async def _keep_closing(self) -> None:
        """Close the position whenever it must be closed, inside a session or not."""
        while True:
            try:
                if self._account.reconciled:
                    await self._close_if_required()
                elif self._control.state == "killed" and self._exits.flat_at is None:
                    await self._exits.close_unread()
            except LedgerError as refused:  # the close was sent; its outcome could not be saved
                log.warning("ledger_refuses", error=str(refused))
            await asyncio.sleep(_WATCH_SECONDS)

    async def _close_if_required(self) -> None:
        forced = self._watching.forced_exit()
        if reason := self._exits.wanted(forced):
            await self._exits.close_when_due(reason)
        else:
            await self._exits.check_account(confirm=bool(forced))
        if self._account.holding.trade is None:
            await self._history.follow(None)

    def _order_settled(self, intent: Intent) -> None:
        self._bar_close.order_settled(intent)
