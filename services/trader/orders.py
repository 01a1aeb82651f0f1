"""Orders and what became of them: pure functions over the account's transactions, the only truth.

An order is an `Intent` first: kept before it is sent, sent once, and settled by what the account's
transactions say of its client id, whatever the answer to the request was.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum

import numpy as np

from services.trader.config import TraderConfig
from shared.adapters.oanda.client import MarketOrder
from shared.adapters.oanda.records import (
    NANOSECONDS,
    AccountSnapshot,
    Fill,
    InstrumentDetails,
    OrderCancelled,
    OrderCreated,
    OrderRejected,
    Price,
    TradeFill,
    Transaction,
)
from shared.environment.action import Action, Side
from shared.environment.environment import EnvironmentConfig
from shared.market.bar import BAR_SECONDS, Instrument
from shared.market.calendar import rollover_nights
from shared.messages.schemas import TradeClosed


class IntentState(StrEnum):
    """How far an order is known to have come."""

    SENDING = "sending"  # kept; sent at most once from here on, and its outcome is not known
    FILLED = "filled"
    CANCELLED = "cancelled"  # accepted and not filled: a 201 is not a fill
    REJECTED = "rejected"  # refused with a reject transaction
    NOT_SENT = "not_sent"  # no connection, or refused before it was looked at: 401, 403, 429
    NOT_EXECUTED = "not_executed"  # no clear answer, and no trace in the account for the look-up time
    ABANDONED = "abandoned"  # no trace of it, and an operator resumed trading


@dataclass(frozen=True)
class Intent:
    """One order as it was meant, kept before it is sent."""

    intent_id: str  # the order's client id
    account: str
    instrument: str
    bar_time_s: int  # the bar whose close it was decided at
    action: Action  # BUY, SELL or CLOSE
    side: Side  # held when it was decided
    units: Decimal
    last_transaction_id: int  # the account's, before sending
    fence: int  # token of the lease it is sent under
    state: IntentState = IntentState.SENDING
    detail: str = ""


def intent_id(account: str, bar_time_s: int, action: Action, attempt: int = 0) -> str:
    """The client id of an order: the same account, bar and action always have the same one.

    Args:
        account: account id.
        bar_time_s: opening time of the bar decided on.
        action: the order's.
        attempt: counts orders of one bar; an entry has a second one only where the first is known to have
            done nothing, a close as often as it is repeated.
    """
    text = f"{account}|{bar_time_s}|{action.name}|{attempt}"
    return f"mm-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def entry_order(
    intent: Intent, quote: Price, details: InstrumentDetails, config: TraderConfig, pip: float
) -> MarketOrder:
    """The market order of an entry: its worst price, stop and target are counted from the quote."""
    direction = 1 if intent.action is Action.BUY else -1
    price = quote.ask if direction > 0 else quote.bid
    assert price is not None, "no order is sent into an empty book"

    def away(pips: float, sign: int) -> float | None:
        return price + sign * direction * pips * pip if pips else None

    return MarketOrder(
        details,
        direction * intent.units,
        client_id=intent.intent_id,
        trade_client_id=intent.intent_id,
        price_bound=away(config.max_slippage_pips, 1),
        stop_loss=away(config.stop_loss_pips, -1),
        take_profit=away(config.take_profit_pips, 1),
    )


@dataclass(frozen=True)
class HeldTrade:
    """One open trade at the broker."""

    trade_id: int
    units: Decimal  # signed; whole where this trader opened it, and others may have opened it
    price: Decimal
    time_ns: int  # of the fill
    spread: Decimal | None  # quoted when it was filled, in units of price; None when that is not known

    @property
    def side(self) -> Side:
        """Which way it was entered."""
        return Side.LONG if self.units > 0 else Side.SHORT


@dataclass(frozen=True)
class ClosedTrade:
    """A trade that was closed, wholly or in part."""

    trade: HeldTrade
    units: Decimal  # closed now, above 0
    price: Decimal
    time_ns: int
    transaction_id: int
    reason: str  # OANDA's, such as MARKET_ORDER_POSITION_CLOSEOUT or STOP_LOSS_ORDER

    def pips(self, pip: float, costs: EnvironmentConfig) -> float:
        """Net pips of the round trip, charged as the environment charges it.

        Spread and slippage lie in the two fills. Commission and financing do not, and are charged as an
        open position was charged for them: a trade earns no more by being closed.
        """
        between = float((self.price - self.trade.price) * int(self.trade.side) / Decimal(str(pip)))
        bars_s = np.array([bar_of(self.trade.time_ns), bar_of(self.time_ns)], np.int64)
        nights = int(rollover_nights(bars_s)[0])
        return between - costs.commission_pips - costs.financing_pips_per_night * nights


@dataclass(frozen=True)
class Holding:
    """What the account holds of one instrument, as of one transaction."""

    instrument: str
    last_transaction_id: int
    trades: tuple[HeldTrade, ...] = ()

    @property
    def units(self) -> Decimal:
        """Net units, signed."""
        return sum((trade.units for trade in self.trades), Decimal(0))

    @property
    def side(self) -> Side:
        """Which way the net position lies."""
        return Side((self.units > 0) - (self.units < 0))

    @property
    def trade(self) -> HeldTrade | None:
        """The one trade held, or None when flat."""
        return self.trades[0] if self.trades else None

    def foreign(self, units: int) -> str:
        """Why this is not a position of this trader's, or an empty text when it is one, or flat."""
        if not self.trades or (len(self.trades) == 1 and abs(self.units) == units):
            return ""
        return (
            f"the account holds {self.units} units of {self.instrument} in {len(self.trades)} trades, "
            f"expected {units} units in one, or none"
        )


def snapshot_holding(snapshot: AccountSnapshot, instrument: str, known: Holding | None) -> Holding:
    """What the broker says is held; what was kept of the same trades (the spread) is kept on."""
    spreads = {trade.trade_id: trade.spread for trade in known.trades} if known else {}
    trades = (
        HeldTrade(trade.trade_id, trade.units, trade.price, trade.open_time_ns, spreads.get(trade.trade_id))
        for trade in snapshot.trades
        if trade.instrument == instrument
    )
    return Holding(
        instrument,
        snapshot.summary.last_transaction_id,
        tuple(sorted(trades, key=lambda trade: trade.trade_id)),
    )


def fold(
    holding: Holding, transactions: Iterable[Transaction], spread: Decimal | None
) -> tuple[Holding, tuple[ClosedTrade, ...]]:
    """What is held after some transactions, and what they closed; one seen before changes nothing.

    Args:
        holding: before.
        transactions: of the account, in order.
        spread: quoted now, in units of price, kept with a trade that is opened.
    """
    closed: list[ClosedTrade] = []
    for transaction in transactions:
        if transaction.transaction_id <= holding.last_transaction_id:
            continue
        if isinstance(transaction, Fill) and transaction.instrument == holding.instrument:
            holding = _after_fill(holding, transaction, spread, closed)
        holding = replace(holding, last_transaction_id=transaction.transaction_id)
    return holding, tuple(closed)


def _after_fill(holding: Holding, fill: Fill, spread: Decimal | None, closed: list[ClosedTrade]) -> Holding:
    trades = {trade.trade_id: trade for trade in holding.trades}
    for part in (*fill.closed, *((fill.reduced,) if fill.reduced else ())):
        before = trades.get(part.trade_id)
        if before is None or part.units == 0:
            continue
        closed.append(_closed(before, part, fill))
        rest = before.units + part.units
        if rest == 0 or part in fill.closed:
            del trades[part.trade_id]
        else:
            trades[part.trade_id] = replace(before, units=rest)
    if fill.opened is not None:
        opened = fill.opened
        trades[opened.trade_id] = HeldTrade(opened.trade_id, opened.units, opened.price, fill.time_ns, spread)
    return replace(holding, trades=tuple(trades.values()))


def _closed(trade: HeldTrade, part: TradeFill, fill: Fill) -> ClosedTrade:
    return ClosedTrade(trade, abs(part.units), part.price, fill.time_ns, fill.transaction_id, fill.reason)


def outcome_in(intent: str, transactions: Sequence[Transaction]) -> tuple[IntentState, str] | None:
    """What some transactions say became of an order, or None when they do not say.

    Args:
        intent: the order's client id.
        transactions: those after the last one before sending, in order.
    """
    orders = {
        t.transaction_id for t in transactions if isinstance(t, OrderCreated) and t.client_order_id == intent
    }
    found: tuple[IntentState, str] | None = None
    for transaction in transactions:
        match transaction:
            case Fill() if transaction.order_id in orders or transaction.client_order_id == intent:
                return IntentState.FILLED, f"filled at {transaction.price}"
            case OrderCancelled() if transaction.order_id in orders or transaction.client_order_id == intent:
                found = IntentState.CANCELLED, transaction.reason
            case OrderRejected() if transaction.client_order_id == intent:
                found = IntentState.REJECTED, transaction.reject_reason
            case _:
                pass
    return found


def fills_by_client_id(transactions: Sequence[Transaction]) -> dict[str, str]:
    """Client ids of the orders that some transactions filled, with the fill in words."""
    created = {t.transaction_id: t.client_order_id for t in transactions if isinstance(t, OrderCreated)}
    found: dict[str, str] = {}
    for fill in transactions:
        if isinstance(fill, Fill):
            client_id = fill.client_order_id or created.get(fill.order_id)
            if client_id is not None:
                found[client_id] = f"filled at {fill.price}"
    return found


def exact_spread(quote: Price) -> Decimal | None:
    """Ask minus bid without float noise, in units of price; None while the book is empty."""
    if quote.bid is None or quote.ask is None:
        return None
    return Decimal(str(quote.ask)) - Decimal(str(quote.bid))


def bar_of(time_ns: int) -> int:
    """Opening time of the bar in which something happened, in seconds."""
    return time_ns // NANOSECONDS // BAR_SECONDS * BAR_SECONDS


def plain(units: Decimal) -> int | float:
    """Units as a JSON number: a whole one where they are whole."""
    return int(units) if units == int(units) else float(units)


def trade_closed(closed: ClosedTrade, instrument: Instrument, costs: EnvironmentConfig) -> TradeClosed:
    """The message that tells of a closed trade."""
    trade = closed.trade
    return TradeClosed(
        trade_id=f"{trade.trade_id}-{closed.transaction_id}",
        instrument=instrument.name,
        side=1 if trade.side is Side.LONG else -1,
        units=plain(closed.units),
        entry_time=_moment(trade.time_ns),
        exit_time=_moment(closed.time_ns),
        entry_price=float(trade.price),
        exit_price=float(closed.price),
        pips=closed.pips(instrument.pip, costs),
        reason=closed.reason,
    )


def _moment(time_ns: int) -> datetime:
    return datetime.fromtimestamp(time_ns / NANOSECONDS, UTC)
