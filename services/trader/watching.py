"""Watches every condition that can keep the trader from trading, and announces its beginning and its end.

The watch runs concurrently with the trading, so that it reports faults while a session waits for an answer.
"""

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import structlog

from services.trader.config import Mode
from services.trader.control import Control
from services.trader.exits import Exits
from services.trader.guards import (
    ORDINARY_GUARDS,
    Situation,
    TraderState,
    Trip,
    forced_exit,
    state_of,
    tripped,
)
from services.trader.history import History
from services.trader.market import Market
from services.trader.orders import plain
from services.trader.parts import Parts, Terms
from services.trader.refusals import Refusal
from shared.adapters.inference import Decision
from shared.adapters.oanda.records import NANOSECONDS
from shared.errors import BrokerError, LedgerError
from shared.messages.conditions import Condition, ConditionTracker
from shared.messages.schemas import AlertRaised

log = structlog.get_logger()

HOUR_S = 3_600

#: HTTP statuses with which the broker refuses the token or the account.
_REFUSED = (401, 403)

#: Alerts kept in memory while the ledger cannot be written; older ones are dropped.
_MAX_PENDING_ALERTS = 1_000

#: A shorter outage of the broker raises no alert: streams often drop, and a new session soon begins.
OUTAGE_SECONDS = 10.0

#: Absence after which a condition ends, except for an outage of the broker; a shorter gap does not end it.
ENDS_SECONDS = 60.0

#: State of a trader whose paper broker has replayed all of its bars.
REPLAY_FINISHED = "replay finished"


class Watching:
    """Checks the guards and the outages, announces them, and reports the trader's state."""

    def __init__(
        self, parts: Parts, terms: Terms, market: Market, history: History, control: Control, exits: Exits
    ) -> None:
        self._control, self._exits, self._market, self._history = control, exits, market, history
        self._account, self._ledger, self._audit = parts.account, parts.ledger, parts.audit
        self._lease, self._lifecycle, self._metrics = parts.lease, parts.lifecycle, parts.metrics
        self._instrument, self._config = terms.instrument, terms.config
        self._limits, self._mode = terms.limits, terms.mode
        self._guards = ConditionTracker(end_seconds=ENDS_SECONDS)
        self._outages = ConditionTracker(begin_seconds=OUTAGE_SECONDS, end_seconds=0.0)
        self._trips: tuple[Trip, ...] = ()
        self._counted: dict[Refusal, int] = {}  # numbers of refusals already in metrics and alerts
        self._num_in_flight = 0  # entries being sent and looked up
        self._pending_alerts: list[AlertRaised] = []  # not yet saved by the ledger
        self.in_session = False  # prices arrive, so the guards can be checked
        self.broker_unavailable = ""  # reason why the last session or its stream broke
        self.broker_refuses = ""  # reason why the broker refuses this token or account
        self.ledger_refuses = ""  # reason why the ledger cannot be written
        self.failing: dict[str, str] = {}  # details of other alert conditions, by name
        self.decision: Decision | None = None  # newest decision
        self.decision_age_seconds = 0.0  # age of the newest bar when it was decided on
        self.num_decisions = 0
        self.replay_over = False  # the paper broker's replay has ended and its last bar was decided on

    @contextlib.contextmanager
    def order_in_flight(self) -> Iterator[None]:
        """Count an entry as in flight while it is sent and looked up."""
        self._num_in_flight += 1
        try:
            yield
        finally:
            self._num_in_flight -= 1

    def session_broke(self, broken: BrokerError | LedgerError) -> None:
        """Note why the trader does not trade until the next session."""
        self.in_session = False
        if isinstance(broken, LedgerError):
            self.ledger_refuses = str(broken)
            return
        self.broker_unavailable = str(broken)
        # The position stays open and unwatched while the token is refused: an operator must know.
        self.broker_refuses = str(broken) if broken.status in _REFUSED else ""

    def session_began(self) -> None:
        """Note that prices arrive."""
        self.in_session = True
        self.broker_unavailable = self.broker_refuses = self.ledger_refuses = ""

    # -- guards --------------------------------------------------------------------------------------

    def forced_exit(self) -> str:
        """Reason why a guard requires a close now, inside a session or not; empty if none does."""
        return forced_exit(tripped(self._situation(), self._limits))

    def _situation(self) -> Situation:
        market, memory, quoted = self._market, self._account.memory, self._market.quoted
        spread = quoted.price.spread if quoted else None
        stage = self.decision.stage if self.decision else None
        proven = stage in ("paper", "live") or (stage == "unproven" and self._config.trade_unproven)
        # An order in flight is still being looked up; its outcome does not count as unknown yet.
        num_in_flight = self._num_in_flight + self._exits.closing
        return Situation(
            side=memory.holding.side,
            bars_held=self._history.position.bars_held,
            silence_seconds=time.monotonic() - market.heard,
            price_age_seconds=market.price_age_seconds(),
            spread_pips=None if spread is None else float(spread) / self._instrument.pip,
            tradeable=quoted is not None and quoted.price.tradeable,
            replay_over=self.replay_over,
            minutes_to_close=market.minutes_to_close(),
            clock_skew_seconds=market.clock_skew_seconds,
            decision_age_seconds=self.decision_age_seconds,
            decision_age_limit_seconds=self._config.decision_age_seconds,
            missing_minutes=market.missing_minutes(),
            orders_last_hour=self._ledger.num_orders_after((market.last_bar_s or 0) - HOUR_S),
            risk=memory.risk,
            control=self._control.state,
            killed_by=self._control.killed_by,
            has_lease=self._lease.token is not None,
            unknown_orders=max(0, self._account.num_unknown() - num_in_flight),
            foreign_position=memory.holding.foreign(self._config.units),
            outbox_full=self._ledger.num_undelivered() >= self._config.outbox_rows,
            version_live=stage == "live" if self._mode is Mode.LIVE else None,
            version_unproven=self.decision is not None and not proven,
        )

    def check(self) -> tuple[Trip, ...]:
        """Check every condition, announce each beginning and end, and return the tripped guards.

        Outside a session the guards are not checked and stay as they were.
        """
        if self.in_session:
            self._check_guards()
        now = time.monotonic()
        holding = {
            Condition("trader", trip.guard.value): trip.detail
            for trip in self._trips
            if trip.guard not in ORDINARY_GUARDS
        }
        holding |= {Condition("trader", name): detail for name, detail in self.failing.items()}
        holding |= self._new_refusals()
        if self._exits.failing:
            detail = f"{self._exits.detail}; the close is repeated, check the position at the broker"
            holding[Condition("trader", "exit_not_confirmed")] = detail
        if self._account.foreign_orders:
            holding[Condition("trader", "foreign_orders")] = self._account.foreign_orders
        if self.broker_refuses:
            detail = f"{self.broker_refuses}; renew OANDA_TOKEN, or close an open position by hand"
            holding[Condition("trader", "broker_refuses")] = detail
        if self.ledger_refuses:
            detail = f"{self.ledger_refuses}; only exits are sent: free the disk or repair the folder"
            holding[Condition("trader", "ledger_refuses")] = detail
        unavailable = (
            {Condition("trader", "broker_unavailable"): self.broker_unavailable}
            if self.broker_unavailable
            else {}
        )
        alerts = [*self._guards.update(holding, now), *self._outages.update(unavailable, now)]
        for alert in alerts:
            log.warning("condition", name=alert.name, phase=alert.phase, detail=alert.detail)
        self._save_alerts(alerts)
        return self._trips

    def _save_alerts(self, alerts: list[AlertRaised]) -> None:
        """Put alerts into the outbox; those that the ledger refuses are tried again at the next check."""
        self._pending_alerts = [*self._pending_alerts, *alerts][-_MAX_PENDING_ALERTS:]
        if not self._pending_alerts:
            return
        try:
            self._ledger.add_messages(self._pending_alerts)
        except LedgerError as refused:
            log.debug("alerts_deferred", error=str(refused))
            return
        self._pending_alerts = []
        self._audit.written()

    def _check_guards(self) -> None:
        before = frozenset(trip.guard for trip in self._trips)
        self._trips = tripped(self._situation(), self._limits)
        new = frozenset(trip.guard for trip in self._trips) - before
        for trip in self._trips:
            if trip.guard in new:
                log.warning("guard_tripped", guard=trip.guard, detail=trip.detail)
        for guard in before - frozenset(trip.guard for trip in self._trips):
            log.info("guard_lifted", guard=guard)
        self._metrics.show(state_of(self._trips), self._trips, new)

    def _new_refusals(self) -> dict[Condition, str]:
        """Kinds of data that were refused since the last check, with the newest reason."""
        found = {}
        for refusal, count in self._market.refused.items():
            new = count - self._counted.get(refusal, 0)
            if new:
                self._counted[refusal] = count
                self._metrics.refused.labels(refusal.value).inc(new)
                found[Condition("trader", f"refused_{refusal.value}")] = self._market.refusals[refusal]
        return found

    # -- report --------------------------------------------------------------------------------------

    def report(self) -> None:
        """Put the trader's state into its heartbeat and its metrics."""
        state = state_of(self._trips).value
        guards = [trip.guard.value for trip in self._trips]
        if self.broker_refuses:
            state, guards = TraderState.HALTED.value, ["broker_refuses"]
        elif self.ledger_refuses:
            state, guards = TraderState.HALTED.value, ["ledger_refuses"]
        elif self.broker_unavailable:
            state = "reconnecting"
        elif not self.in_session:
            state = "connecting"
        elif self.replay_over:
            state = REPLAY_FINISHED
        self._metrics.outbox.set(self._ledger.num_undelivered())
        self._metrics.late_ticks.set(self._market.num_late)
        known = self._account.reconciled or self._control.killed_by_file
        self._lifecycle.report(
            state=state,
            mode=self._mode.value,
            guards=", ".join(guards),
            control=self._control.state if known else None,
            kill_file=self._control.killed_by_file,
        )
        if self._account.reconciled:
            self._report_account()

    def _report_account(self) -> None:
        memory, last = self._account.memory, self._market.last_bar_s
        held = memory.holding.trade
        self._metrics.side.set(int(memory.holding.side))
        self._metrics.equity.set(memory.risk.equity)
        self._metrics.realised.set(memory.risk.realised)
        self._metrics.bar_mismatches.set(self._market.num_mismatches)
        self._lifecycle.report(
            side=int(memory.holding.side),
            units=plain(memory.holding.units),
            entry_price=float(held.price) if held else None,
            entry_time_s=held.time_ns // NANOSECONDS if held else None,
            pnl_pips=round(self._history.position.pnl, 3),
            realised_pips=round(memory.risk.realised, 3),
            last_bar_s=last,
            last_bar=None if last is None else datetime.fromtimestamp(last, UTC).isoformat(),
            version=self.decision.version if self.decision else None,
            decisions=self.num_decisions,
            trades=memory.risk.trades,
            orders=self._ledger.num_orders(),
            bar_mismatches=self._market.num_mismatches,
            flat_at=self._exits.flat_at,
        )
