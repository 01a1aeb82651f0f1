"""What keeps the trader from trading, each announced when it begins and when it ends.

The watch goes on beside the trading, so that a trader that waits for an answer still says what is wrong.
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

#: The broker refuses the token, or this account.
_REFUSED = (401, 403)

#: Alerts that wait for a ledger that cannot be written; conditions that flap must not fill the memory.
_MOST_UNKEPT = 1_000

#: A broker that is unavailable for less is no news: streams drop, and the next session begins at once.
AWAY_SECONDS = 10.0

#: A condition has ended once it was absent for so long; shorter gaps are the same condition.
ENDS_SECONDS = 60.0


#: State of a trader whose paper broker has replayed all of its bars.
REPLAY_FINISHED = "replay finished"


class Watching:
    """Looks at everything that can keep the trader from trading, and announces it."""

    def __init__(
        self, parts: Parts, terms: Terms, market: Market, history: History, control: Control, exits: Exits
    ) -> None:
        """Nothing holds yet."""
        self._control, self._exits, self._market, self._history = control, exits, market, history
        self._account, self._ledger, self._audit = parts.account, parts.ledger, parts.audit
        self._lease, self._lifecycle, self._metrics = parts.lease, parts.lifecycle, parts.metrics
        self._instrument, self._config = terms.instrument, terms.config
        self._limits, self._mode = terms.limits, terms.mode
        self._guards = ConditionTracker(end_seconds=ENDS_SECONDS)
        self._outages = ConditionTracker(begin_seconds=AWAY_SECONDS, end_seconds=0.0)
        self._trips: tuple[Trip, ...] = ()
        self._counted: dict[Refusal, int] = {}  # refusals that metrics and alerts know of
        self._num_on_their_way = 0  # orders sent now, in the middle of their look-up
        self.in_session = False  # prices come, so that the guards can be looked at
        self.broker_away = ""  # why the broker cannot be worked with
        self.broker_refuses = ""  # why it refuses this token or account
        self.ledger_refuses = ""  # why the ledger cannot be written
        self._unkept: list[AlertRaised] = []  # alerts that the ledger did not take yet
        self.failing: dict[str, str] = {}  # other conditions that hold, by name
        self.decision: Decision | None = None  # the newest
        self.decision_age_seconds = 0.0  # of the newest bar decided on, when it was decided on
        self.num_decisions = 0
        self.replay_over = False  # the paper broker's tape has ended, and its last bar was decided on

    @contextlib.contextmanager
    def ordering(self) -> Iterator[None]:
        """An order is sent and looked up inside the block."""
        self._num_on_their_way += 1
        try:
            yield
        finally:
            self._num_on_their_way -= 1

    def session_broke(self, broken: BrokerError | LedgerError) -> None:
        """Note why nothing is traded until the next session."""
        self.in_session = False
        if isinstance(broken, LedgerError):
            self.ledger_refuses = str(broken)
            return
        self.broker_away = str(broken)
        # The position stays open and unwatched while the token is refused: an operator must know.
        self.broker_refuses = str(broken) if broken.status in _REFUSED else ""

    def session_began(self) -> None:
        """Note that prices come."""
        self.in_session = True
        self.broker_away = self.broker_refuses = self.ledger_refuses = ""

    # -- guards --------------------------------------------------------------------------------------

    def _situation(self) -> Situation:
        now, market, memory = time.monotonic(), self._market, self._account.memory
        quoted = market.quoted
        spread = quoted.price.spread if quoted else None
        stage = self.decision.stage if self.decision else None
        proven = stage in ("paper", "live") or (stage == "unproven" and self._config.trade_unproven)
        return Situation(
            side=memory.holding.side,
            bars_held=self._history.position.bars_held,
            silence_seconds=now - market.heard,
            price_age_seconds=market.price_age_seconds(),
            spread_pips=None if spread is None else spread / self._instrument.pip,
            tradeable=quoted is not None and quoted.price.tradeable,
            replay_over=self.replay_over,
            minutes_to_close=market.minutes_to_close(),
            clock_skew_seconds=market.clock_skew_seconds,
            decision_age_seconds=self.decision_age_seconds,
            decision_age_limit_seconds=self._config.decision_age_seconds,
            missing_minutes=market.missing_minutes(),
            orders_last_hour=self._ledger.num_orders_after((market.last_bar_s or 0) - HOUR_S),
            risk=memory.risk,
            control=self._control.now,
            killed_by=self._control.killed_by,
            has_lease=self._lease.token is not None,
            # An order that is on its way is looked up before its outcome counts as unknown.
            unknown_orders=max(0, self._account.num_unknown() - self._num_on_their_way - self._exits.closing),
            foreign_position=memory.holding.foreign(self._config.units),
            outbox_full=self._ledger.num_untold() >= self._config.outbox_rows,
            version_live=stage == "live" if self._mode is Mode.LIVE else None,
            version_unproven=self.decision is not None and not proven,
        )

    def look(self) -> tuple[Trip, ...]:
        """The guards that hold; every condition that begins or ends is an alert.

        Outside a session the guards are not looked at and stay as they were.
        """
        if self.in_session:
            self._look_at_guards()
        now = time.monotonic()
        holding = {
            Condition("trader", trip.guard.value): trip.detail
            for trip in self._trips
            if trip.guard not in ORDINARY_GUARDS
        }
        holding |= {Condition("trader", name): detail for name, detail in self.failing.items()}
        holding |= self._new_refusals()
        if self._exits.failing:
            holding[Condition("trader", "exit_not_confirmed")] = self._exits.detail
        if self._account.foreign_orders:
            holding[Condition("trader", "foreign_orders")] = self._account.foreign_orders
        if self.broker_refuses:
            holding[Condition("trader", "broker_refuses")] = self.broker_refuses
        if self.ledger_refuses:
            holding[Condition("trader", "ledger_refuses")] = self.ledger_refuses
        away = {Condition("trader", "broker_away"): self.broker_away} if self.broker_away else {}
        alerts = [*self._guards.look(holding, now), *self._outages.look(away, now)]
        for alert in alerts:
            log.warning("condition", name=alert.name, phase=alert.phase, detail=alert.detail)
        self._tell(alerts)
        return self._trips

    def _tell(self, alerts: list[AlertRaised]) -> None:
        """Keep alerts for the readers; what the ledger does not take is tried again at the next look."""
        self._unkept = [*self._unkept, *alerts][-_MOST_UNKEPT:]
        if not self._unkept:
            return
        try:
            self._ledger.tell(self._unkept)
        except LedgerError as refused:
            log.debug("alerts_not_kept", error=str(refused))
            return
        self._unkept = []
        self._audit.written()

    def forced_exit(self) -> str:
        """Why what is held must be closed now, in a session or not; empty when no guard asks for it."""
        return forced_exit(tripped(self._situation(), self._limits))

    def _look_at_guards(self) -> None:
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
        """The kinds of data that were refused since the last look."""
        found = {}
        for refusal, count in self._market.refused.items():
            new = count - self._counted.get(refusal, 0)
            if new:
                self._counted[refusal] = count
                self._metrics.refused.labels(refusal.value).inc(new)
                found[Condition("trader", f"refused_{refusal.value}")] = self._market.refusals[refusal]
        return found

    # -- telling -------------------------------------------------------------------------------------

    def report(self) -> None:
        """Put into the heartbeat how things stand."""
        state = state_of(self._trips).value
        guards = [trip.guard.value for trip in self._trips]
        if self.broker_refuses:
            state, guards = TraderState.HALTED.value, ["broker_refuses"]
        elif self.ledger_refuses:
            state, guards = TraderState.HALTED.value, ["ledger_refuses"]
        elif self.broker_away:
            state = "reconnecting"
        elif not self.in_session:
            state = "connecting"
        elif self.replay_over:
            state = REPLAY_FINISHED
        self._metrics.outbox.set(self._ledger.num_untold())
        self._metrics.late_ticks.set(self._market.num_late)
        known = self._account.reconciled or self._control.by_file
        self._lifecycle.report(
            state=state,
            mode=self._mode.value,
            guards=", ".join(guards),
            control=self._control.now if known else None,
            kill_file=self._control.by_file,
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
