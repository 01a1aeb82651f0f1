"""The account as this trader knows it: what is held, what was ordered, and what the broker says of both.

The account's transactions are the only truth. Whatever the answer to an order was, its outcome is read
from them, and an order whose outcome they do not tell stops trading; nothing is ever sent twice.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import structlog

from services.trader.config import Mode, TraderConfig
from services.trader.ledger import AuditMessage, Ledger, Memory
from services.trader.orders import (
    ClosedTrade,
    Holding,
    Intent,
    IntentState,
    fold,
    intent_id,
    outcome_in,
    snapshot_holding,
)
from shared.adapters.oanda import MarketOrder, OandaClient
from shared.adapters.oanda_records import (
    NANOSECONDS,
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
from shared.messages.schemas import AlertRaised, TradeClosed

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
    ) -> None:
        """Nothing is known of the account before `reconcile`."""
        self._client, self._ledger, self._config, self._mode = client, ledger, config, mode
        self._stopping = stopping
        self._instrument = instrument
        self._details: InstrumentDetails | None = None
        self.foreign_orders = ""  # pending orders that are not this trader's, as of the last reconciliation
        self._memory = ledger.memory()
        if self._memory is not None and self._memory.account != client.account:
            raise ServiceError(
                f"{ledger.path} is the ledger of account {self._memory.account}, not {client.account}: "
                "give each account its own MM_HOME"
            )

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
            snapshot = await self._client.snapshot()
            if snapshot.summary.hedging_enabled:
                raise BrokerError(f"account {self._client.account} hedges; only netting accounts are traded")
            if await self._agree(snapshot):
                self._note_foreign_orders(snapshot)
                return
        raise BrokerError("the account changes faster than it can be reconciled")

    async def _agree(self, snapshot: AccountSnapshot) -> bool:
        """Take the snapshot up; False when the account has gone on since it was taken."""
        known = self._memory.holding if self._memory else None
        told = snapshot_holding(snapshot, self._instrument.name, known)
        if self._memory is None:
            self.keep(Memory(self._client.account, told))
            return True
        if told.last_transaction_id < self._memory.holding.last_transaction_id:
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
            self.keep(replace(self.memory, holding=told), [alert])
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
            self._take_up(transactions, unsettled, spread)
        unread = [
            transaction
            for transaction in transactions
            if isinstance(transaction, UnreadTransaction) and transaction.transaction_id > known
        ]
        if unread:
            await self._read_instead_of(unread)

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
        self.keep(replace(self.memory, holding=replace(told, last_transaction_id=last)), [alert])

    def _take_up(
        self, transactions: Sequence[Transaction], unsettled: Sequence[Intent], spread: Decimal | None
    ) -> None:
        holding, closed = fold(self.holding, transactions, spread)
        risk, settled = self.memory.risk, []
        for intent in unsettled:
            outcome = outcome_in(
                intent.intent_id, [t for t in transactions if t.transaction_id > intent.last_transaction_id]
            )
            if outcome is not None:
                state, detail = outcome
                settled.append(replace(intent, state=state, detail=detail))
                risk = risk.ordered(filled=state is IntentState.FILLED)
        for trade in closed:
            risk = risk.closed(trade.pips(self._instrument.pip))
        messages = [_trade_closed(trade, self._instrument) for trade in closed]
        memory = replace(self.memory, holding=holding, risk=risk)
        if memory != self.memory or settled:
            self._ledger.keep(memory, messages, settled)
            self._memory = memory
        for intent in settled:
            log.info("order_settled", intent=intent.intent_id, state=intent.state, detail=intent.detail)

    # -- orders --------------------------------------------------------------------------------------

    def num_unknown(self) -> int:
        """Orders that were sent and whose outcome is not known."""
        return len(self._ledger.unsettled())

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

    async def order(self, action: Action, bar_time_s: int, quote: Price, fence: int) -> Intent:
        """Send one order and follow it until its outcome is known, or no longer looked for.

        Args:
            action: BUY, SELL or CLOSE.
            bar_time_s: opening time of the bar decided on.
            quote: in force now.
            fence: token of the lease that is held.
        Returns:
            The intent with its outcome; still SENDING when that is not known.
        Raises:
            ServiceError: this order was sent before, or under a token that is out of date.
        """
        intent = Intent(
            intent_id=self._free_id(bar_time_s, action),
            account=self._client.account,
            instrument=self._instrument.name,
            bar_time_s=bar_time_s,
            action=action,
            side=self.holding.side,
            units=abs(self.holding.units) if action is Action.CLOSE else self._config.units,
            last_transaction_id=self.holding.last_transaction_id,
            fence=fence,
        )
        # A bar with an order is decided on: a trader killed from here on does not decide on it again.
        memory = replace(self.memory, fence=fence, decided_bar_s=max(bar_time_s, self.memory.decided_bar_s))
        self._ledger.intend(intent, memory)
        self._memory = memory
        log.info("order_sending", intent=intent.intent_id, action=action.name, bar_time_s=bar_time_s)
        try:
            await self._send(intent, quote)
        except OutcomeUnknownError as unknown:
            log.warning("order_unanswered", intent=intent.intent_id, error=str(unknown))
        except OrderRejectedError as refused:
            return self._settle(intent, IntentState.REJECTED, refused.reject_reason)
        except BrokerError as unsent:
            return self._settle(intent, IntentState.NOT_SENT, str(unsent))
        return await self._follow(intent, _spread(quote))

    def _free_id(self, bar_time_s: int, action: Action) -> str:
        """The order's id; another one for the same bar only after the first is known to have done nothing."""
        attempt = 0
        while before := self._ledger.intent(intent_id(self._client.account, bar_time_s, action, attempt)):
            if before.state in (IntentState.SENDING, IntentState.FILLED):
                raise ServiceError(
                    f"{action.name} for bar {bar_time_s} was sent as {before.intent_id}: {before.state}"
                )
            attempt += 1
        return intent_id(self._client.account, bar_time_s, action, attempt)

    async def _send(self, intent: Intent, quote: Price) -> OrderOutcome:
        if intent.action is Action.CLOSE:
            return await self._client.close_position(
                intent.instrument, long=intent.side is Side.LONG, client_id=intent.intent_id
            )
        direction = 1 if intent.action is Action.BUY else -1
        price = quote.ask if direction > 0 else quote.bid
        assert price is not None, "no order is sent into an empty book"

        def away(pips: float, sign: int) -> float | None:
            return price + sign * direction * pips * self._instrument.pip if pips else None

        assert self._details is not None, "no order is sent before the account is reconciled"
        return await self._client.market_order(
            MarketOrder(
                self._details,
                direction * intent.units,
                client_id=intent.intent_id,
                trade_client_id=intent.intent_id,
                price_bound=away(self._config.max_slippage_pips, 1),
                stop_loss=away(self._config.stop_loss_pips, -1),
                take_profit=away(self._config.take_profit_pips, 1),
            )
        )

    async def _follow(self, intent: Intent, spread: Decimal | None) -> Intent:
        """Look for the order's outcome among the account's transactions."""
        deadline = time.monotonic() + self._config.look_up_seconds
        while True:
            try:
                await self.sync(spread)
            except BrokerError as away:
                log.warning("look_up_failed", intent=intent.intent_id, error=str(away))
            found = self._ledger.intent(intent.intent_id)
            assert found is not None, "an intent is never removed while its account lives"
            if found.state is not IntentState.SENDING:
                return found
            if time.monotonic() >= deadline or self._stopping.is_set():
                return self._unknown(found)
            await asyncio.sleep(self._config.look_up_poll_seconds)

    def _unknown(self, intent: Intent) -> Intent:
        detail = f"{intent.action.name} {intent.intent_id} for bar {intent.bar_time_s} left no trace yet"
        log.error("order_unknown", detail=detail)
        self.keep(self.memory, [AlertRaised(source="trader", name="outcome_unknown", detail=detail)])
        return intent

    def _settle(self, intent: Intent, state: IntentState, detail: str) -> Intent:
        settled = replace(intent, state=state, detail=detail[:500])
        memory = replace(self.memory, risk=self.memory.risk.ordered(filled=False))
        self._ledger.keep(memory, (), [settled])
        self._memory = memory
        log.warning("order_refused", intent=intent.intent_id, state=state, detail=detail)
        return settled


def _spread(quote: Price) -> Decimal | None:
    if quote.bid is None or quote.ask is None:
        return None
    return Decimal(str(quote.ask)) - Decimal(str(quote.bid))


def _trade_closed(closed: ClosedTrade, instrument: Instrument) -> TradeClosed:
    trade = closed.trade
    return TradeClosed(
        trade_id=f"{trade.trade_id}-{closed.transaction_id}",
        instrument=instrument.name,
        side=1 if trade.side is Side.LONG else -1,
        units=closed.units,
        entry_time=_moment(trade.time_ns),
        exit_time=_moment(closed.time_ns),
        entry_price=float(trade.price),
        exit_price=float(closed.price),
        pips=closed.pips(instrument.pip),
        reason=closed.reason,
    )


def _moment(time_ns: int) -> datetime:
    return datetime.fromtimestamp(time_ns / NANOSECONDS, UTC)
