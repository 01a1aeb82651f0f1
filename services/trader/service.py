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
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import structlog

from services.trader.account import Account
from services.trader.audit import Audit
from services.trader.config import GuardConfig, Mode, TraderConfig
from services.trader.control import Control
from services.trader.exits import Exits
from services.trader.guards import Permission, permit
from services.trader.history import History
from services.trader.kill_switch import KillSwitch, StatusFile
from services.trader.ledger import Ledger
from services.trader.market import Market, compile_kernels
from services.trader.metrics import TraderMetrics
from services.trader.orders import Intent, IntentState
from services.trader.waiting import Backoff
from services.trader.watching import Watching
from shared.adapters.inference import Decision, InferenceClient
from shared.adapters.lease import Lease
from shared.adapters.oanda import OandaClient
from shared.adapters.oanda_records import NANOSECONDS, Price
from shared.environment.action import LEGAL, Action
from shared.environment.environment import EnvironmentConfig
from shared.errors import BrokerError, InferenceError, ServiceError
from shared.market.bar import Instrument
from shared.messages.schemas import AlertRaised, DecisionMade
from shared.messages.streams import CONTROL
from shared.runtime.lifecycle import Lifecycle

log = structlog.get_logger()

#: How often guards and kill switch are looked at while no bar closes.
_WATCH_SECONDS = 0.5

#: A session whose prices came for so long was a good one: the next pause is a short one again.
_GOOD_SESSION_SECONDS = 5.0

#: The paper broker refuses the acknowledgement of a bar that is not complete.
_NOT_COMPLETE = 400

#: The broker refuses the token, or this account.
_REFUSED = (401, 403)


class TraderService:
    """One account on one instrument."""

    def __init__(
        self,
        client: OandaClient,
        inference: InferenceClient,
        account: Account,
        ledger: Ledger,
        audit: Audit,
        lease: Lease,
        lifecycle: Lifecycle,
        metrics: TraderMetrics,
        instrument: Instrument,
        config: TraderConfig,
        limits: GuardConfig,
        mode: Mode,
        costs: EnvironmentConfig,
        switch: KillSwitch,
        status: StatusFile,
        *,
        api_url: str,
        wall: Callable[[], float],
    ) -> None:
        """Wire the parts; `run` does the rest.

        Args:
            client: of the account.
            inference: asked for decisions.
            account: what is held and ordered.
            ledger: of the account, on disk.
            audit: told of new messages.
            lease: of the account.
            lifecycle: of the service.
            metrics: of the service.
            instrument: that is traded.
            config: the trader's.
            limits: of the guards.
            mode: paper, practice or live.
            costs: charged to a position as the environment charges them.
            switch: the kill file.
            status: written for `kill`.
            api_url: where the broker's requests go, as the status file names it.
            wall: this machine's clock, in seconds since 1970 UTC.
        """
        self._client, self._inference, self._account = client, inference, account
        self._ledger, self._audit, self._lease = ledger, audit, lease
        self._lifecycle, self._metrics = lifecycle, metrics
        self._instrument, self._config, self._limits, self._mode = instrument, config, limits, mode
        self._market = Market(
            instrument,
            time.monotonic,
            None if mode is Mode.PAPER else wall,
            max_jump_percent=limits.max_jump_percent,
        )
        self._history = History(client, self._market, instrument, config, costs)
        self._exits = Exits(account, self._market, config, limits, settled=self._order_settled)
        self._control = Control(switch, status, account, self._exits, mode=mode, api_url=api_url)
        self._watching = Watching(
            account,
            ledger,
            audit,
            self._market,
            self._history,
            lease,
            lifecycle,
            metrics,
            instrument,
            config,
            limits,
            mode,
            self._control,
            self._exits,
        )
        self._closed_bars: asyncio.Queue[int] = asyncio.Queue()
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
            if self._account.reconciled:
                await self._close_what_must_be_closed()
            elif self._control.now == "killed" and self._exits.flat_at is None:
                await self._exits.close_unread()
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
            except BrokerError as broken:
                self._metrics.reconnects.inc()
                good = watching.in_session and time.monotonic() - self._began > _GOOD_SESSION_SECONDS
                pause = backoff.after(good=good)
                log.warning("broker_away", error=str(broken), again_in_seconds=round(pause, 2))
                watching.in_session, watching.broker_away = False, str(broken)
                # The position stays open and unwatched while the token is refused: an operator must know.
                watching.broker_refuses = str(broken) if broken.status in _REFUSED else ""
                watching.look()
                watching.report()
                await self._lifecycle.sleep(pause)

    async def _session(self) -> None:
        """Reconcile, then trade until the stream breaks or the service stops.

        Raises:
            BrokerError: the broker is away.
        """
        await self._account.reconcile()
        self._control.account_is_known()
        await self._lifecycle.until_stopping(self._control_read.wait())
        await self._history.warm_up(self._account.holding.trade)
        if self._market.first_bar_s is not None:
            await self._acknowledge(
                self._market.first_bar_s
            )  # from here on a paper market waits for this trader
        self._closed_bars = asyncio.Queue()
        self._first_price.clear()
        reader = asyncio.create_task(self._read_prices())
        reader.add_done_callback(self._note_broken_stream)
        try:
            await self._until_first_price(reader)
            await self._history.refresh()
            self._began = time.monotonic()
            self._watching.in_session = True
            self._watching.broker_away = self._watching.broker_refuses = ""
            log.info(
                "session_began", side=self._account.holding.side.name, last_bar_s=self._market.last_bar_s
            )
            if self._market.last_bar_s is not None:
                await self._on_bar(self._market.last_bar_s, reader)
            while not self._lifecycle.stopping.is_set():
                bar_time_s = await self._next_bar(reader)
                if bar_time_s is not None:
                    await self._on_bar(bar_time_s, reader)
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
                    self._closed_bars.put_nowait(closed)

    async def _until_first_price(self, reader: asyncio.Task[None]) -> None:
        waiting = asyncio.ensure_future(self._first_price.wait())
        stop = asyncio.ensure_future(self._lifecycle.stopping.wait())
        try:
            await asyncio.wait({waiting, stop, reader}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            stop.cancel()
        if reader.done():
            reader.result()

    async def _next_bar(self, reader: asyncio.Task[None]) -> int | None:
        """The next bar that closed, or None when it is time to see whether the stream still lives.

        Raises:
            BrokerError: the stream broke.
        """
        if reader.done():
            reader.result()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WATCH_SECONDS):
                bar_time_s = await self._lifecycle.until_stopping(self._closed_bars.get())
                while not self._closed_bars.empty():  # decide on the newest only; the past is read as candles
                    bar_time_s = self._closed_bars.get_nowait()
                return bar_time_s
        return None

    # -- one bar -------------------------------------------------------------------------------------

    async def _on_bar(self, bar_time_s: int, reader: asyncio.Task[None]) -> None:
        """Everything that a bar's close asks for; each bar is decided on once, with its candle or without."""

        def given_up() -> bool:
            return self._in_a_hurry() or reader.done()

        complete = await self._history.catch_up(bar_time_s, given_up)
        await self._account.sync(self._spread())
        await self._history.follow(self._account.holding.trade)
        self._mark_risk()
        newest = self._market.last_bar_s
        if newest is None:
            return
        if complete:
            bar_time_s = newest
            self._watching.failing.pop("candle_late", None)
        else:
            self._metrics.late_candles.inc()
            log.warning("candle_late", bar_time_s=bar_time_s)
        if bar_time_s <= self._account.memory.decided_bar_s:
            await self._acknowledge(bar_time_s)
            return
        decision, failure = await self._ask(bar_time_s) if complete else (None, self._late(bar_time_s))
        self._watching.decision_age_seconds = self._market.bar_age_seconds(bar_time_s)
        trips = self._watching.look()
        if decision is None:
            permission = permit(Action.HOLD, self._account.holding.side, trips)
            permission = replace(permission, reason="; ".join(filter(None, (permission.reason, failure))))
        else:
            permission = permit(decision.action, self._account.holding.side, trips)
        executed = await self._carry_out(permission, bar_time_s, decision)
        self._note(bar_time_s, decision, permission, executed)
        await self._acknowledge(bar_time_s)

    def _late(self, bar_time_s: int) -> str:
        detail = f"the candle of bar {bar_time_s} did not come in time"
        self._watching.failing["candle_late"] = detail
        return detail

    def _in_a_hurry(self) -> bool:
        """Something is more urgent than a late candle."""
        return self._lifecycle.stopping.is_set() or self._control.now == "killed"

    def _mark_risk(self) -> None:
        memory = self._account.memory
        risk = memory.risk.marked(
            self._market.time_ns // NANOSECONDS, self._history.position.pnl, self._limits
        )
        self._account.remember(replace(memory, risk=risk))

    async def _ask(self, bar_time_s: int) -> tuple[Decision | None, str]:
        """The decision for a bar, or why there is none: then the trader holds."""
        window = self._market.window()
        if window is None:
            return None, "the features are warming up"
        try:
            decision = await self._inference.decide(
                self._instrument.name, bar_time_s, window, self._history.position.static()
            )
        except InferenceError as failure:
            self._metrics.inference_failures.inc()
            if "inference" not in self._watching.failing:
                log.warning("no_decision", error=str(failure))
            self._watching.failing["inference"] = str(failure)
            return None, f"inference: {failure}"
        self._watching.failing.pop("inference", None)
        self._watching.decision = decision
        self._metrics.inference_seconds.observe(decision.latency_ms / 1e3)
        return decision, ""

    async def _carry_out(self, permission: Permission, bar_time_s: int, decision: Decision | None) -> bool:
        """Send what is permitted; True when what was decided, or forced by a guard, was done."""
        if permission.action is Action.HOLD:
            return decision is not None and decision.action is Action.HOLD
        if permission.action is Action.CLOSE:
            reason = permission.reason or "the agent decided to close"
            closed = await self._exits.close(reason, bar_time_s, decided=True)
            await self._history.follow(self._account.holding.trade)
            return closed
        return await self._enter(permission.action, bar_time_s)

    async def _enter(self, action: Action, bar_time_s: int) -> bool:
        """Send an entry, unless a kill, the lease or the position changed since the guards looked."""
        token, quoted = self._lease.token, self._market.quoted
        legal = LEGAL[self._account.holding.side + 1, action]
        if token is None or quoted is None or not legal or self._control.forbids_entry():
            return False
        try:
            with self._watching.ordering():
                intent = await self._account.enter(action, bar_time_s, quoted.price, token)
        except ServiceError as refused:  # sent before, or a later holder of the lease has sent an order
            self._alert("entry_refused", str(refused))
            return False
        self._order_settled(intent)
        await self._history.follow(self._account.holding.trade)
        if intent.state is not IntentState.FILLED:
            self._alert(
                "order_not_filled", f"{action.name} for bar {bar_time_s}: {intent.state}: {intent.detail}"
            )
        return intent.state is IntentState.FILLED

    def _order_settled(self, intent: Intent) -> None:
        self._metrics.orders.labels(intent.state.value).inc()
        self._audit.written()

    def _note(
        self, bar_time_s: int, decision: Decision | None, permission: Permission, executed: bool
    ) -> None:
        """Keep that the bar was decided on, and tell what became of it."""
        wanted = decision.action if decision is not None and not executed else permission.action
        told = DecisionMade(
            bar_time=datetime.fromtimestamp(bar_time_s, UTC),
            action=wanted.name,
            executed=executed,
            reason=permission.reason,
            version=decision.version if decision else None,
            value=decision.value if decision else None,
            visit_policy=decision.visit_policy if decision else (),
            q_values=decision.q_values if decision else (),
            outcome_probabilities=decision.outcome_probabilities if decision else (),
            side=int(self._history.position.side),
            pnl_pips=self._history.position.pnl,
            close=self._market.last_close,
            latency_ms=decision.latency_ms if decision else None,
        )
        self._watching.num_decisions += 1
        self._metrics.decisions.labels(wanted.name, str(executed).lower()).inc()
        self._account.keep(replace(self._account.memory, decided_bar_s=bar_time_s), [told])
        self._audit.written()
        self._watching.report()

    async def _acknowledge(self, bar_time_s: int) -> None:
        """Let the paper broker's replay go on, and learn whether it is over; OANDA's market waits for nobody.

        A bar that was held through for want of its candle may not be complete yet: it closes once more.
        """
        if self._mode is not Mode.PAPER:
            return
        try:
            over = await self._client.acknowledge_bar(bar_time_s)
            if over and not self._watching.replay_over:
                log.info("replay_finished", last_bar_s=bar_time_s, trades=self._account.memory.risk.trades)
            self._watching.replay_over = over
        except BrokerError as early:
            if early.status != _NOT_COMPLETE:
                raise
            log.info("acknowledged_early", bar_time_s=bar_time_s, error=str(early))

    # -- operators -----------------------------------------------------------------------------------

    def _alert(self, name: str, detail: str) -> None:
        alert = AlertRaised(source="trader", name=name, detail=detail[:2048])
        self._account.keep(self._account.memory, [alert])
        self._audit.written()

    async def _follow_control(self) -> None:
        """Take up what operators order, from where the ledger stands; runs until it is cancelled."""
        bus = self._lifecycle.bus
        until = await bus.last_id(CONTROL)
        after = self._account.memory.control_entry if self._account.reconciled else "0-0"
        if _entry_order(after) >= _entry_order(until):
            self._control_read.set()
        async for entries in bus.follow(CONTROL, after):
            for entry in entries:
                self._control.take_up(entry.entry_id, entry.message)
            if not entries or _entry_order(entries[-1].entry_id) >= _entry_order(until):
                self._control_read.set()

    # -- telling -------------------------------------------------------------------------------------

    def _spread(self) -> Decimal | None:
        quoted = self._market.quoted
        if quoted is None or quoted.price.bid is None or quoted.price.ask is None:
            return None
        return Decimal(str(quoted.price.ask)) - Decimal(str(quoted.price.bid))


def _entry_order(entry_id: str) -> tuple[int, ...]:
    """A stream entry's id as numbers that compare."""
    return tuple(int(part) for part in entry_id.split("-"))
