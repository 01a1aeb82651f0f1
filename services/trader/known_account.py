"""The account as this trader knows it: what is held, what was ordered, and what the broker says of both.

The account's transactions are the only truth. Whatever the answer to an order was, its outcome is read
from them.

The reading of transactions may be asked for by several tasks at once: what one of them takes up, the others
find known.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from decimal import Decimal

import structlog

from services.trader.config import Mode, TraderConfig
from services.trader.ledger import AuditMessage, Ledger, Memory
from services.trader.orders import (
    Holding,
    Intent,
    IntentState,
    fills_by_client_id,
    fold,
    outcome_in,
    snapshot_holding,
    trade_closed,
)
from shared.adapters.oanda.client import OandaClient
from shared.adapters.oanda.records import (
    AccountSnapshot,
    InstrumentDetails,
    Transaction,
    UnreadTransaction,
)
from shared.environment.environment import EnvironmentConfig
from shared.errors import BrokerError, ServiceError
from shared.market.bar import Instrument
from shared.messages.schemas import AlertRaised

log = structlog.get_logger()

#: Pending orders that belong to a trade; any other one is not this trader's.
_EXIT_ORDERS = frozenset(("STOP_LOSS", "TAKE_PROFIT", "TRAILING_STOP_LOSS", "GUARANTEED_STOP_LOSS"))

_RECONCILE_ATTEMPTS = 5


class KnownAccount:
    """One account on one instrument; `memory` is what it is known to hold, always as kept in the ledger."""

    def __init__(
        self,
        client: OandaClient,
        ledger: Ledger,
        config: TraderConfig,
        instrument: Instrument,
        mode: Mode,
        stopping: asyncio.Event,
        costs: EnvironmentConfig,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is known of the account before `reconcile`."""
        self._client, self._ledger, self._config, self._mode = client, ledger, config, mode
        self._stopping, self._costs = stopping, costs
        # Why a snapshot is needed: transactions that cannot be read may have changed what is held.
        self._unread = ""
        self._instrument = instrument
        self._details: InstrumentDetails | None = None
        self.foreign_orders = ""  # pending orders that are not this trader's, as of the last reconciliation
        self._monotonic, self._began = monotonic, monotonic()
        # When each order's request ended, by this process's clock; None while it is on its way.
        self._answered: dict[str, float | None] = {}
        # The account's last transaction, and since when it has been the last.
        self._standstill: tuple[int, float] | None = None
        self._memory = ledger.memory()
        if self._memory is not None and self._memory.account != client.account:
            raise ServiceError(
                f"{ledger.path} is the ledger of account {self._memory.account}, not {client.account}: "
                "give each account its own MM_HOME"
            )

    @property
    def account_id(self) -> str:
        """The account's id at the broker."""
        return self._client.account

    @property
    def instrument(self) -> str:
        """Name of what is traded."""
        return self._instrument.name

    @property
    def memory(self) -> Memory:
        """What is known; `reconcile` comes first."""
        assert self._memory is not None, "the account was not reconciled yet"
        return self._memory

    @property
    def holding(self) -> Holding:
        """What is held."""
        return self.memory.holding

    @property
    def reconciled(self) -> bool:
        """True once the broker was asked, in this run or an earlier one."""
        return self._memory is not None

    def remember(self, memory: Memory) -> None:
        """Go on with this memory; it is kept with the next message or order."""
        self._memory = memory

    def keep(self, memory: Memory, messages: Iterable[AuditMessage] = ()) -> None:
        """Go on with this memory, and tell these messages."""
        self._ledger.keep(memory, messages)
        self._memory = memory

    # -- reading the broker --------------------------------------------------------------------------

    async def reconcile(self) -> None:
        """Make memory and broker agree; the broker is right.

        Raises:
            BrokerError: it cannot be read, the account is one that is not traded, or its history is not the
                one that the ledger knows. The broker may answer better later, so none of these is final.
        """
        self._details = await self._client.instrument(self._instrument.name)
        if self._details.pip_location != self._instrument.pip_location:
            raise BrokerError(
                f"{self._details.name}: the broker's pip is 10^{self._details.pip_location}, "
                f"the features' 10^{self._instrument.pip_location}"
            )
        for _ in range(_RECONCILE_ATTEMPTS):
            known_before = self.holding.last_transaction_id if self._memory else 0
            snapshot = await self._client.snapshot()
            if snapshot.summary.hedging_enabled:
                raise BrokerError(f"account {self._client.account} hedges; only netting accounts are traded")
            if await self._agree(snapshot, known_before):
                self._note_foreign_orders(snapshot)
                return
        raise BrokerError("the account changes faster than it can be reconciled")

    async def _agree(self, snapshot: AccountSnapshot, known_before: int) -> bool:
        """Take the snapshot up; False when the account has gone on since it was taken.

        Args:
            snapshot: of the account.
            known_before: the last transaction known before it was asked for; one asked for by another task
                meanwhile may be later than the snapshot.
        """
        known = self._memory.holding if self._memory else None
        told = snapshot_holding(snapshot, self._instrument.name, known)
        if self._memory is None:
            self.keep(Memory(self._client.account, told))
            return True
        if told.last_transaction_id < known_before:
            self._begin_anew(told)
            return True
        await self.sync(None)
        if self.holding.last_transaction_id > told.last_transaction_id:
            return False
        told = snapshot_holding(snapshot, self._instrument.name, self.holding)  # spreads kept by the sync
        if {trade.trade_id: trade.units for trade in told.trades} != {
            trade.trade_id: trade.units for trade in self.holding.trades
        }:
            detail = f"the broker holds {told.units} units, the ledger said {self.holding.units}"
            log.warning("position_differs", detail=detail)
            alert = AlertRaised(source="trader", name="position_differs", detail=detail)
            self.keep(self._memory_with(told), [alert])
        return True

    def _begin_anew(self, told: Holding) -> None:
        """A paper account that was replaced by a younger one takes the old one's history with it."""
        before = self.memory
        detail = (
            f"account {before.account} ends at transaction {told.last_transaction_id}, "
            f"the ledger knows {before.holding.last_transaction_id}"
        )
        if self._mode is not Mode.PAPER:
            raise BrokerError(f"{detail}: another account's history, nothing is traded on it")
        log.warning("account_replaced", detail=detail)
        memory = Memory(
            before.account,
            told,
            control=before.control,
            control_entry=before.control_entry,
            fence=before.fence,
        )
        alert = AlertRaised(source="trader", name="account_replaced", detail=detail)
        self._ledger.begin_anew(memory, [alert])
        self._answered.clear()
        self._memory = memory

    def _note_foreign_orders(self, snapshot: AccountSnapshot) -> None:
        foreign = [order for order in snapshot.orders if order.kind not in _EXIT_ORDERS]
        kinds = ", ".join(f"{order.kind} {order.order_id}" for order in foreign[:5])
        self.foreign_orders = f"pending orders that are not this trader's: {kinds}" if foreign else ""

    async def sync(self, spread: Decimal | None) -> None:
        """Read the account's new transactions: fills, exits by the broker, outcomes of orders.

        Args:
            spread: quoted now, in units of price; kept with a trade that opens.
        Raises:
            BrokerError: they cannot be read.
        """
        unsettled, known = self._ledger.unsettled(), self.holding.last_transaction_id
        since = min([known, *(i.last_transaction_id for i in unsettled)])
        transactions = await self._client.transactions_since(since)
        if transactions:
            self._take_up(transactions, spread)
        unread = [
            transaction
            for transaction in transactions
            if isinstance(transaction, UnreadTransaction) and transaction.transaction_id > known
        ]
        if unread:
            first = unread[0]
            self._unread = (
                f"{len(unread)} transactions from {first.transaction_id} on cannot be read: {first.reason}"
            )
        if self._unread:
            await self._read_instead_of(self._unread)
        await self._settle_without_trace()

    async def _read_instead_of(self, unread: str) -> None:
        """Take what is held from a snapshot, since transactions that cannot be read may have changed it."""
        snapshot = await self._client.snapshot()
        told = snapshot_holding(snapshot, self._instrument.name, self.holding)
        if told.last_transaction_id < self.holding.last_transaction_id:
            return  # of a replica that lags; the next sync reads another one
        detail = f"the position was read from a snapshot, since {unread}"
        log.warning("transactions_unread", detail=detail)
        alert = AlertRaised(source="trader", name="transactions_unread", detail=detail[:2048])
        self.keep(self._memory_with(told), [alert])
        if self._unread == unread:
            self._unread = ""

    def _take_up(self, transactions: Sequence[Transaction], spread: Decimal | None) -> None:
        holding, closed = fold(self.holding, transactions, spread)
        risk, settled = self.memory.risk, []
        for intent in self._ledger.unsettled():
            outcome = outcome_in(
                intent.intent_id, [t for t in transactions if t.transaction_id > intent.last_transaction_id]
            )
            if outcome is not None:
                state, detail = outcome
                settled.append(replace(intent, state=state, detail=detail))
                risk = risk.ordered(filled=state is IntentState.FILLED)
        corrected = self._corrected(transactions)
        for trade in closed:
            risk = risk.closed(trade.pips(self._instrument.pip, self._costs))
        messages = [trade_closed(trade, self._instrument, self._costs) for trade in closed]
        memory = replace(self._memory_with(holding), risk=risk)
        if memory != self.memory or settled or corrected:
            self._ledger.keep(memory, [*messages, *map(_corrected_alert, corrected)], [*settled, *corrected])
            self._memory = memory
        for intent in (*settled, *corrected):
            log.info("order_settled", intent=intent.intent_id, state=intent.state, detail=intent.detail)

    def _corrected(self, transactions: Sequence[Transaction]) -> list[Intent]:
        """Orders that the ledger took for not executed and that a new transaction fills."""
        known = self.holding.last_transaction_id
        new = [t for t in transactions if t.transaction_id > known]
        found = []
        for client_id, detail in fills_by_client_id(new).items():
            intent = self._ledger.intent(client_id)
            if intent is not None and intent.state not in (IntentState.SENDING, IntentState.FILLED):
                found.append(
                    replace(intent, state=IntentState.FILLED, detail=f"{detail}, after {intent.state}")
                )
        return found

    def _memory_with(self, holding: Holding) -> Memory:
        """The memory with what is held now; an exit is over once the trades that it was for are closed."""
        before = {trade.trade_id for trade in self.holding.trades}
        still_held = any(trade.trade_id in before for trade in holding.trades)
        return replace(self.memory, holding=holding, exit=self.memory.exit if still_held else "")

    async def _settle_without_trace(self) -> None:
        """Settle as not executed what has left no trace while the account stood still for the look-up time.

        Raises:
            BrokerError: the broker cannot be asked for the order.
        """
        now, last = self._monotonic(), self.holding.last_transaction_id
        unsettled = self._ledger.unsettled()
        self._answered = {i.intent_id: self._answered.get(i.intent_id, self._began) for i in unsettled}
        if self._standstill is None or self._standstill[0] != last:
            self._standstill = (last, now)
        since = self._standstill[1]
        for intent in unsettled:
            answered = self._answered[intent.intent_id]
            if answered is None or now - max(since, answered) < self._config.look_up_seconds:
                continue
            found = await self._client.order_by_client_id(intent.intent_id)
            kept = self._ledger.intent(intent.intent_id)
            if kept is None or kept.state is not IntentState.SENDING:
                continue  # its transactions were read meanwhile
            state = IntentState.NOT_EXECUTED
            detail = f"no trace of it, and the account stayed at transaction {last}"
            if found is not None:
                if not any(intent.last_transaction_id < i <= last for i in found.ended_by):
                    continue  # its transactions are on their way
                # They were among those that cannot be read, and what is held is known from a snapshot.
                state = IntentState.FILLED if found.filling_transaction_id else IntentState.CANCELLED
                detail = f"the order is {found.state}; its transactions cannot be read"
            self._ledger.keep(self.memory, (), [replace(intent, state=state, detail=detail)])
            log.warning("order_settled", intent=intent.intent_id, state=state, detail=detail)


def _corrected_alert(intent: Intent) -> AlertRaised:
    detail = f"{intent.action.name} {intent.intent_id} for bar {intent.bar_time_s} was {intent.detail}"
    return AlertRaised(source="trader", name="order_filled_late", detail=detail)
