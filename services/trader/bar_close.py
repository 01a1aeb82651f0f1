"""A bar's close: read its candle, ask for a decision, check the guards, send the order, record the result."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from services.trader.config import Mode
from services.trader.control import Control
from services.trader.exits import Exits
from services.trader.guards import Permission, permit
from services.trader.history import History
from services.trader.market import Market
from services.trader.orders import Intent, IntentState
from services.trader.parts import Parts, Terms
from services.trader.watching import Watching
from shared.adapters.inference import Decision
from shared.adapters.oanda.records import NANOSECONDS
from shared.environment.action import LEGAL, Action
from shared.errors import BrokerError, InferenceError, ServiceError
from shared.messages.schemas import AlertRaised, DecisionMade

log = structlog.get_logger()

#: Status with which the paper broker refuses to acknowledge a bar that is not complete.
_NOT_COMPLETE = 400


class BarClose:
    """Decides on each closed bar once and carries the decision out."""

    def __init__(
        self,
        parts: Parts,
        terms: Terms,
        market: Market,
        history: History,
        exits: Exits,
        control: Control,
        watching: Watching,
    ) -> None:
        self._client, self._inference, self._account = parts.client, parts.inference, parts.account
        self._audit, self._lease, self._lifecycle = parts.audit, parts.lease, parts.lifecycle
        self._metrics = parts.metrics
        self._instrument, self._limits, self._mode = terms.instrument, terms.limits, terms.mode
        self._market, self._history, self._exits = market, history, exits
        self._control, self._watching = control, watching

    async def decide(self, bar_time_s: int, reader: asyncio.Task[None]) -> None:
        """Decide on a closed bar and carry the decision out, unless that was done before.

        If the bar's candle does not arrive in time, the decision is HOLD.

        Args:
            bar_time_s: opening time of the bar.
            reader: task that reads the price stream; when it ends, the wait for the candle ends too.
        Raises:
            BrokerError: the broker does not answer, or refuses.
            LedgerError: the ledger cannot be written.
        """

        def given_up() -> bool:
            return self._lifecycle.stopping.is_set() or reader.done()

        complete = await self._history.catch_up(bar_time_s, given_up)
        if not complete and given_up():
            return  # the next session decides on the bar if its candle is complete by then
        quoted = self._market.quoted
        await self._account.sync(None if quoted is None else quoted.price.spread)
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
            await self.acknowledge(bar_time_s)
            return
        decision, failure = await self._ask(bar_time_s) if complete else (None, self._late(bar_time_s))
        self._watching.decision_age_seconds = self._market.bar_age_seconds(bar_time_s)
        trips = self._watching.check()
        if decision is None:
            permission = permit(Action.HOLD, self._account.holding.side, trips)
            permission = replace(permission, reason="; ".join(filter(None, (permission.reason, failure))))
        else:
            permission = permit(decision.action, self._account.holding.side, trips)
        executed = await self._carry_out(permission, bar_time_s, decision)
        self._note(bar_time_s, decision, permission, executed)
        await self.acknowledge(bar_time_s)

    def _late(self, bar_time_s: int) -> str:
        detail = f"the candle of bar {bar_time_s} did not arrive in time: holding"
        self._watching.failing["candle_late"] = detail
        return detail

    def _mark_risk(self) -> None:
        memory = self._account.memory
        risk = memory.risk.marked(
            self._market.time_ns // NANOSECONDS, self._history.position.pnl, self._limits
        )
        self._account.remember(replace(memory, risk=risk))

    async def _ask(self, bar_time_s: int) -> tuple[Decision | None, str]:
        """The decision for a bar, or None and the reason why the trader holds."""
        window = self._market.window()
        if window is None:
            return None, "the candles do not fill the features' window yet"
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
        """Carry out the permitted action; True if a decided or forced action was executed."""
        if permission.action is Action.HOLD:
            return decision is not None and decision.action is Action.HOLD
        if permission.action is Action.CLOSE:
            reason = permission.reason or "the agent decided to close"
            closed = await self._exits.close(reason, bar_time_s, decided=True)
            await self._history.follow(self._account.holding.trade)
            return closed
        return await self._enter(permission.action, bar_time_s)

    async def _enter(self, action: Action, bar_time_s: int) -> bool:
        """Send an entry, unless a kill, a lost lease or a changed position now forbids it."""
        token, quoted = self._lease.token, self._market.quoted
        legal = LEGAL[self._account.holding.side + 1, action]
        if token is None or quoted is None or not legal or self._control.forbids_entry():
            return False
        try:
            with self._watching.order_in_flight():
                intent = await self._account.enter(action, bar_time_s, quoted.price, token)
        except ServiceError as refused:  # sent before, or under an outdated lease
            self._alert("entry_refused", str(refused))
            return False
        self.order_settled(intent)
        await self._history.follow(self._account.holding.trade)
        if intent.state is not IntentState.FILLED:
            unknown = intent.state is IntentState.SENDING
            outcome = "the outcome is not known yet" if unknown else f"{intent.state}: {intent.detail}"
            self._alert("order_not_filled", f"{action.name} order for bar {bar_time_s}: {outcome}")
        return intent.state is IntentState.FILLED

    def order_settled(self, intent: Intent) -> None:
        """Count an order whose outcome is known or whose look-up has timed out."""
        self._metrics.orders.labels(intent.state.value).inc()
        self._audit.written()

    def _note(
        self, bar_time_s: int, decision: Decision | None, permission: Permission, executed: bool
    ) -> None:
        """Save that the bar was decided on, and queue the decision's message."""
        wanted = decision.action if decision is not None and not executed else permission.action
        message = DecisionMade(
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
        self._account.keep(replace(self._account.memory, decided_bar_s=bar_time_s), [message])
        self._audit.written()
        self._watching.report()

    async def acknowledge(self, bar_time_s: int) -> None:
        """Let the paper broker's replay go on, and note whether it is over; does nothing at OANDA.

        The paper broker refuses to acknowledge an incomplete bar, as may happen after a late candle. Such a
        bar closes again later.
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

    def _alert(self, name: str, detail: str) -> None:
        alert = AlertRaised(source="trader", name=name, detail=detail)
        self._account.keep(self._account.memory, [alert])
        self._audit.written()
