"""The account as this trader knows it: what is held, what was ordered, and what the broker says of both.

The account's transactions are the only truth. Whatever the answer to an order was, its outcome is read
from them. An entry is never sent twice, and an order whose outcome is not known forbids the next entry. A
close can only reduce the position, so it may be sent again under another id.

The reading of transactions may be asked for by several tasks at once: what one of them takes up, the others
find known.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from decimal import Decimal

import structlog

from services.trader.config import Mode, TraderConfig
from services.trader.ledger import AuditMessage, Ledger, Memory
from services.trader.orders import (
    Holding,
    Intent,
    IntentState,
    entry_order,
    fills_by_client_id,
    fold,
    intent_id,
    outcome_in,
    snapshot_holding,
    trade_closed,
)
from shared.adapters.oanda import NOTHING_TO_CLOSE, OandaClient
from shared.adapters.oanda_records import (
    AccountSnapshot,
    InstrumentDetails,
    OrderOutcome,
    Price,
    Transaction,
    UnreadTransaction,
)
from shared.environment.action import Action, Side
from shared.errors import BrokerError, OrderRejectedError, OutcomeUnknownError, ServiceError
from shared.market.bar import Instrument
from shared.messages.schemas import AlertRaised

log = structlog.get_logger()

OUT_OF_RANGE = 416

#: Pending orders that belong to a trade; any other one is not this trader's.
_EXIT_ORDERS = frozenset(("STOP_LOSS", "TAKE_PROFIT", "TRAILING_STOP_LOSS", "GUARANTEED_STOP_LOSS"))

_RECONCILE_ATTEMPTS = 5


class Account:
    """One account on one instrument; `memory` is what it is known to hold, always as kept in the ledger."""

    def __init__(
        self,
        client: OandaClient,
        ledger: Ledger,
        config: TraderConfig,
        instrument: Instrument,
        mode: Mode,
        stopping: asyncio.Event,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is known of the account before `reconcile`."""
        self._client, self._ledger, self._config, self._mode = client, ledger, config, mode
        self._stopping = stopping
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
        self._answered.clear()
        self._memory = Memory(
            before.account,
            told,
            control=before.control,
            control_entry=before.control_entry,
            fence=before.fence,
        )
        alert = AlertRaised(source="trader", name="account_replaced", detail=detail)
        self._ledger.begin_anew(self._memory, [alert])

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
            await self._read_instead_of(unread)
        await self._settle_without_trace()

    async def _read_instead_of(self, unread: Sequence[UnreadTransaction]) -> None:
        """Take what is held from a snapshot, since transactions that cannot be read may have changed it."""
        snapshot = await self._client.snapshot()
        first = unread[0]
        detail = (
            f"{len(unread)} transactions from {first.transaction_id} on cannot be read, "
            f"the position was read from a snapshot instead: {first.reason}"
        )
        log.warning("transactions_unread", detail=detail)
        alert = AlertRaised(source="trader", name="transactions_unread", detail=detail[:2048])
        told = snapshot_holding(snapshot, self._instrument.name, self.holding)
        last = max(told.last_transaction_id, self.holding.last_transaction_id)
        self.keep(self._memory_with(replace(told, last_transaction_id=last)), [alert])

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
            risk = risk.closed(trade.pips(self._instrument.pip))
        messages = [trade_closed(trade, self._instrument) for trade in closed]
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
            if found is not None or kept is None or kept.state is not IntentState.SENDING:
                continue  # its transactions are on their way, or were read meanwhile
            detail = f"no trace of it, and the account stayed at transaction {last}"
            self._ledger.keep(
                self.memory, (), [replace(intent, state=IntentState.NOT_EXECUTED, detail=detail)]
            )
            log.warning("order_not_executed", intent=intent.intent_id, detail=detail)

    # -- orders --------------------------------------------------------------------------------------

    def num_unknown(self) -> int:
        """Orders that were sent and whose outcome is not known."""
        return len(self._ledger.unsettled())

    async def shown_flat(self) -> bool:
        """Ask the broker whether nothing is held, and no order of this trader's may still open a position.

        Raises:
            BrokerError: it cannot be read.
        """
        await self.sync(None)
        snapshot = await self._client.snapshot()
        if snapshot_holding(snapshot, self._instrument.name, None).trades:
            await self.reconcile()
            return False
        return self.holding.side is Side.FLAT and self._ledger.num_unknown_entries() == 0

    def abandon_unknown(self) -> int:
        """Settle the orders that left no trace, on an operator's word; how many there were."""
        lost = [
            replace(intent, state=IntentState.ABANDONED, detail="no trace of it; an operator resumed trading")
            for intent in self._ledger.unsettled()
        ]
        if lost:
            self._ledger.keep(self.memory, (), lost)
            log.warning("orders_abandoned", intents=[intent.intent_id for intent in lost])
        return len(lost)

    async def enter(self, action: Action, bar_time_s: int, quote: Price, fence: int) -> Intent:
        """Send one entry and follow it until its outcome is known, or no longer looked for.

        Args:
            action: BUY or SELL.
            bar_time_s: opening time of the bar decided on.
            quote: in force now.
            fence: token of the lease that is held.
        Returns:
            The intent with its outcome; still SENDING when that is not known.
        Raises:
            ServiceError: this entry was sent before, or under a token that is out of date.
        """
        assert self._details is not None, "no entry is sent before the account is reconciled"
        intent = self._intent(action, bar_time_s, self._config.units, fence)
        order = entry_order(intent, quote, self._details, self._config, self._instrument.pip)
        # A bar with an order is decided on: a trader killed from here on does not decide on it again.
        memory = replace(self.memory, fence=fence, decided_bar_s=max(bar_time_s, self.memory.decided_bar_s))
        sending = self._client.market_order(order)
        return await self._send(intent, memory, sending, _spread(quote), self._config.look_up_seconds)

    async def close(
        self, bar_time_s: int, reason: str, *, look_up_seconds: float, decided: bool = False
    ) -> Intent:
        """Send one close of all that is held, and follow it for a while.

        It needs no lease and no quote, and may be repeated: it can only reduce the position.

        Args:
            bar_time_s: opening time of the newest bar.
            reason: kept until what is held now is closed, so that a restarted trader goes on closing it.
            look_up_seconds: how long its outcome is looked for.
            decided: the close is what was decided for the bar.
        Returns:
            The intent with its outcome; still SENDING when that is not known.
        """
        intent = self._intent(Action.CLOSE, bar_time_s, abs(self.holding.units), self.memory.fence)
        memory = replace(self.memory, exit=reason[:500])
        if decided:
            memory = replace(memory, decided_bar_s=max(bar_time_s, memory.decided_bar_s))
        sending = self._client.close_position(
            intent.instrument, long=intent.side is Side.LONG, client_id=intent.intent_id
        )
        return await self._send(intent, memory, sending, None, look_up_seconds)

    def _intent(self, action: Action, bar_time_s: int, units: int, fence: int) -> Intent:
        return Intent(
            intent_id=self._free_id(bar_time_s, action),
            account=self._client.account,
            instrument=self._instrument.name,
            bar_time_s=bar_time_s,
            action=action,
            side=self.holding.side,
            units=units,
            last_transaction_id=self.holding.last_transaction_id,
            fence=fence,
        )

    def _free_id(self, bar_time_s: int, action: Action) -> str:
        """The order's id: an entry has another one for the same bar only after the first did nothing."""
        attempt = 0
        while before := self._ledger.intent(intent_id(self._client.account, bar_time_s, action, attempt)):
            if action is not Action.CLOSE and before.state in (IntentState.SENDING, IntentState.FILLED):
                raise ServiceError(
                    f"{action.name} for bar {bar_time_s} was sent as {before.intent_id}: {before.state}"
                )
            attempt += 1
        return intent_id(self._client.account, bar_time_s, action, attempt)

    async def _send(
        self,
        intent: Intent,
        memory: Memory,
        sending: Coroutine[None, None, OrderOutcome],
        spread: Decimal | None,
        look_up_seconds: float,
    ) -> Intent:
        """Keep an order, send it once, and look for its outcome."""
        try:
            self._ledger.intend(intent, memory)
        except BaseException:
            sending.close()
            raise
        self._memory = memory
        self._answered[intent.intent_id] = None
        log.info("order_sending", intent=intent.intent_id, action=intent.action.name, bar=intent.bar_time_s)
        try:
            await sending
        except OutcomeUnknownError as unknown:
            log.warning("order_unanswered", intent=intent.intent_id, error=str(unknown))
        except OrderRejectedError as refused:
            return self._settle(intent, IntentState.REJECTED, refused.reject_reason)
        except BrokerError as unsent:
            return self._settle(intent, IntentState.NOT_SENT, str(unsent))
        finally:
            self._answered[intent.intent_id] = self._monotonic()
        return await self._follow(intent, spread, look_up_seconds)

    async def _follow(self, intent: Intent, spread: Decimal | None, look_up_seconds: float) -> Intent:
        """Look for the order's outcome among the account's transactions."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(look_up_seconds):
                while True:
                    try:
                        await self.sync(spread)
                    except BrokerError as unreadable:
                        log.warning("look_up_failed", intent=intent.intent_id, error=str(unreadable))
                    if self._kept(intent).state is not IntentState.SENDING or self._stopping.is_set():
                        break
                    await asyncio.sleep(self._config.look_up_poll_seconds)
        found = self._kept(intent)
        if found.state is IntentState.SENDING:
            log.error("order_unknown", intent=intent.intent_id, action=intent.action.name)
        return found

    def _kept(self, intent: Intent) -> Intent:
        found = self._ledger.intent(intent.intent_id)
        assert found is not None, "an intent is never removed while its account lives"
        return found

    def _settle(self, intent: Intent, state: IntentState, detail: str) -> Intent:
        """Settle an order that was refused; only a reject of the order itself counts as one in a row."""
        settled = replace(intent, state=state, detail=detail[:500])
        memory = self.memory
        if state is IntentState.REJECTED and detail != NOTHING_TO_CLOSE:
            memory = replace(memory, risk=memory.risk.ordered(filled=False))
        self._ledger.keep(memory, (), [settled])
        self._memory = memory
        log.warning("order_refused", intent=intent.intent_id, state=state, detail=detail)
        return settled


def _spread(quote: Price) -> Decimal | None:
    if quote.bid is None or quote.ask is None:
        return None
    return Decimal(str(quote.ask)) - Decimal(str(quote.bid))


def _corrected_alert(intent: Intent) -> AlertRaised:
    detail = f"{intent.action.name} {intent.intent_id} for bar {intent.bar_time_s} was {intent.detail}"
    return AlertRaised(source="trader", name="order_filled_late", detail=detail)
