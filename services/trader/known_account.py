"""The account as this trader knows it: its position and its orders, kept in agreement with the broker.

The account's transactions are the only source of truth: an order's outcome is read from them, whatever the
answer to the order was. Several tasks may read transactions at once; each transaction takes effect once.
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
from services.trader.risk import RiskBook
from shared.adapters.oanda.client import NOTHING_TO_CLOSE, OandaClient
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

#: Kinds of pending orders that belong to a trade. This trader places no others.
_EXIT_ORDERS = frozenset(("STOP_LOSS", "TAKE_PROFIT", "TRAILING_STOP_LOSS", "GUARANTEED_STOP_LOSS"))

_RECONCILE_ATTEMPTS = 5


class KnownAccount:
    """One account's position in one instrument, with the memory that the ledger holds."""

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
        """Read the ledger's memory; a new ledger has none before `reconcile`.

        Raises:
            ServiceError: the ledger is unreadable, or belongs to another account.
        """
        self._client, self._ledger, self._config, self._mode = client, ledger, config, mode
        self._stopping, self._costs = stopping, costs
        # Description of unreadable transactions; they may have changed the position, so a snapshot is needed.
        self._unread = ""
        self._instrument = instrument
        self._details: InstrumentDetails | None = None
        self.foreign_orders = ""  # alert text about others' pending orders, as of the last reconciliation
        self._monotonic, self._began = monotonic, monotonic()
        # Monotonic time at which each order's request ended; None while the request is in flight.
        self._answered: dict[str, float | None] = {}
        # The account's last transaction, and the monotonic time at which it was first seen as the last.
        self._standstill: tuple[int, float] | None = None
        self._memory = ledger.memory()
        if self._memory is not None and self._memory.account != client.account:
            raise ServiceError(
                f"{ledger.path} is the ledger of account {self._memory.account}, not of {client.account}: "
                "set another MM_HOME for each account"
            )

    @property
    def account_id(self) -> str:
        """The account's id at the broker."""
        return self._client.account

    @property
    def instrument(self) -> str:
        """Name of the traded instrument."""
        return self._instrument.name

    @property
    def memory(self) -> Memory:
        """The trader's memory; call `reconcile` first."""
        assert self._memory is not None, "`reconcile` must be called first"
        return self._memory

    @property
    def holding(self) -> Holding:
        """The position."""
        return self.memory.holding

    @property
    def reconciled(self) -> bool:
        """True once the account was reconciled, in this run or an earlier one."""
        return self._memory is not None

    def remember(self, memory: Memory) -> None:
        """Set the memory without saving it; the next message or order saves it."""
        self._memory = memory

    def keep(self, memory: Memory, messages: Iterable[AuditMessage] = ()) -> None:
        """Save the memory, and messages for the audit."""
        self._ledger.keep(memory, messages)
        self._memory = memory

    # -- reading the broker --------------------------------------------------------------------------

    async def reconcile(self) -> None:
        """Make the memory agree with the broker.

        Raises:
            BrokerError: the account cannot be read or must not be traded, or its history is not the one that
                the ledger knows. Each of these may be temporary, so the caller retries.
        """
        self._details = await self._client.instrument(self._instrument.name)
        if self._details.pip_location != self._instrument.pip_location:
            raise BrokerError(
                f"{self._details.name}: the broker's pip is 10^{self._details.pip_location}, but this trader "
                f"began with 10^{self._instrument.pip_location}: restart the trader"
            )
        for _ in range(_RECONCILE_ATTEMPTS):
            known_before = self.holding.last_transaction_id if self._memory else 0
            snapshot = await self._client.snapshot()
            if snapshot.summary.hedging_enabled:
                raise BrokerError(
                    f"account {self._client.account} allows hedging: set OANDA_ACCOUNT to a netting account"
                )
            if await self._agree(snapshot, known_before):
                self._note_foreign_orders(snapshot)
                return
        raise BrokerError(
            f"account {self._client.account} changed during each of {_RECONCILE_ATTEMPTS} reconciliations"
        )

    async def _agree(self, snapshot: AccountSnapshot, known_before: int) -> bool:
        """Make the memory agree with a snapshot; False if the account has changed since the snapshot.

        Args:
            snapshot: snapshot of the account.
            known_before: last transaction known before the snapshot was requested. Another task may have read
                later transactions since.
        """
        known = self._memory.holding if self._memory else None
        shown = snapshot_holding(snapshot, self._instrument.name, known)
        if self._memory is None:
            self.keep(Memory(self._client.account, shown))
            return True
        if shown.last_transaction_id < known_before:
            self._start_over(shown)
            return True
        await self.sync(None)
        if self.holding.last_transaction_id > shown.last_transaction_id:
            return False
        shown = snapshot_holding(snapshot, self._instrument.name, self.holding)  # with the sync's spreads
        if {trade.trade_id: trade.units for trade in shown.trades} != {
            trade.trade_id: trade.units for trade in self.holding.trades
        }:
            detail = (
                f"the broker shows {shown.units} units, the ledger had {self.holding.units}: check who else "
                "trades on the account; the trader goes on with the broker's units"
            )
            log.warning("position_differs", detail=detail)
            alert = AlertRaised(source="trader", name="position_differs", detail=detail)
            self.keep(self._memory_with(shown), [alert])
        return True

    def _start_over(self, shown: Holding) -> None:
        """Forget the history of a paper account that was replaced by a new one.

        Raises:
            BrokerError: the account is not a paper account.
        """
        before = self.memory
        detail = (
            f"the last transaction of account {before.account} is {shown.last_transaction_id}, "
            f"but the ledger knows {before.holding.last_transaction_id}"
        )
        if self._mode is not Mode.PAPER:
            raise BrokerError(
                f"{detail}: this is another account's history, so nothing is traded; set another MM_HOME if "
                "the account was replaced"
            )
        detail = f"{detail}: the paper account was replaced, its history starts over"
        log.warning("account_replaced", detail=detail)
        memory = Memory(
            before.account,
            shown,
            control=before.control,
            control_entry=before.control_entry,
            fence=before.fence,
        )
        alert = AlertRaised(source="trader", name="account_replaced", detail=detail)
        self._ledger.start_over(memory, [alert])
        self._answered.clear()
        self._memory = memory

    def _note_foreign_orders(self, snapshot: AccountSnapshot) -> None:
        foreign = [order for order in snapshot.orders if order.kind not in _EXIT_ORDERS]
        kinds = ", ".join(f"{order.kind} {order.order_id}" for order in foreign[:5])
        self.foreign_orders = (
            f"the account has {len(foreign)} pending orders that are not this trader's ({kinds}): cancel "
            "them at the broker unless they are wanted"
            if foreign
            else ""
        )

    async def sync(self, spread: Decimal | None) -> None:
        """Read the account's new transactions: fills, exits by the broker, outcomes of orders.

        Args:
            spread: present spread in units of price; saved with a trade that opens.
        Raises:
            BrokerError: the transactions cannot be read.
        """
        unsettled, known = self._ledger.unsettled(), self.holding.last_transaction_id
        since = min([known, *(i.last_transaction_id for i in unsettled)])
        transactions = await self._client.transactions_since(since)
        if transactions:
            self._apply(transactions, spread)
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
            await self._read_snapshot(self._unread)
        await self._settle_without_trace()

    async def _read_snapshot(self, unread: str) -> None:
        """Read the position from a snapshot, since unreadable transactions may have changed it."""
        snapshot = await self._client.snapshot()
        shown = snapshot_holding(snapshot, self._instrument.name, self.holding)
        if shown.last_transaction_id < self.holding.last_transaction_id:
            return  # the answer of a lagging replica; the next sync tries again
        detail = f"{unread}; the position was read from a snapshot instead"
        log.warning("transactions_unread", detail=detail)
        alert = AlertRaised(source="trader", name="transactions_unread", detail=detail)
        self.keep(self._memory_with(shown), [alert])
        if self._unread == unread:
            self._unread = ""

    def _apply(self, transactions: Sequence[Transaction], spread: Decimal | None) -> None:
        """Update position, risk and orders from transactions; those already known change nothing."""
        holding, closed = fold(self.holding, transactions, spread)
        risk, settled = self.memory.risk, []
        for intent in self._ledger.unsettled():
            outcome = outcome_in(
                intent.intent_id, [t for t in transactions if t.transaction_id > intent.last_transaction_id]
            )
            if outcome is not None:
                state, detail = outcome
                settled.append(replace(intent, state=state, detail=detail))
                risk = risk_after(risk, state, detail)
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
        """Orders that were settled as not filled, but that a new transaction shows filled."""
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
        """The memory with a new position; an exit ends once all trades held before are closed."""
        before = {trade.trade_id for trade in self.holding.trades}
        still_held = any(trade.trade_id in before for trade in holding.trades)
        return replace(self.memory, holding=holding, exit=self.memory.exit if still_held else "")

    async def _settle_without_trace(self) -> None:
        """Settle orders without a transaction once the account has not changed for `look_up_seconds`.

        Raises:
            BrokerError: the order's state cannot be read.
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
                continue  # another task settled it meanwhile
            state = IntentState.NOT_EXECUTED
            detail = f"the account shows no trace of it and stayed at transaction {last}"
            if found is not None:
                if not any(intent.last_transaction_id < i <= last for i in found.ended_by):
                    continue  # its transactions have not been read yet
                # Its transactions were unreadable; the position was read from a snapshot.
                state = IntentState.FILLED if found.filling_transaction_id else IntentState.CANCELLED
                detail = f"the order is {found.state}; its transactions cannot be read"
            self._ledger.keep(self.memory, (), [replace(intent, state=state, detail=detail)])
            log.warning("order_settled", intent=intent.intent_id, state=state, detail=detail)


def _corrected_alert(intent: Intent) -> AlertRaised:
    detail = f"{intent.action.name} order {intent.intent_id} for bar {intent.bar_time_s} was {intent.detail}"
    return AlertRaised(source="trader", name="order_filled_late", detail=detail)


def risk_after(risk: RiskBook, state: IntentState, detail: str) -> RiskBook:
    """The book after an order's outcome. A rejected close of a flat account counts neither way."""
    if state is IntentState.REJECTED and detail == NOTHING_TO_CLOSE:
        return risk
    return risk.ordered(filled=state is IntentState.FILLED)
