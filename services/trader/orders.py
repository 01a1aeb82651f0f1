"""Orders and their outcomes: pure functions over the account's transactions, the only source of truth.

An order begins as an `Intent`: it is saved before it is sent, sent once, and settled by the transactions that
carry its client id, whatever the answer to the request was.
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
    """Known state of an order."""

    SENDING = "sending"  # saved, and sent at most once; the outcome is not known
    FILLED = "filled"
    CANCELLED = "cancelled"  # accepted, but not filled; HTTP 201 does not mean a fill
    REJECTED = "rejected"  # refused with a reject transaction
    NOT_SENT = "not_sent"  # no connection, or refused before processing: 401, 403, 429
    NOT_EXECUTED = "not_executed"  # no clear answer, and no transaction during the look-up time
    ABANDONED = "abandoned"  # no transaction, and an operator resumed trading


@dataclass(frozen=True)
class Intent:
    """One order, saved before it is sent."""

    intent_id: str  # the order's client id
    account: str
    instrument: str
    bar_time_s: int  # opening time of the bar decided on
    action: Action  # BUY, SELL or CLOSE
    side: Side  # side of the position before the order
    units: Decimal
    last_transaction_id: int  # last transaction of the account before sending
    fence: int  # fencing token of the lease
    state: IntentState = IntentState.SENDING
    detail: str = ""


def intent_id(account: str, bar_time_s: int, action: Action, attempt: int = 0) -> str:
    """The client id of an order; equal arguments give equal ids.

    Args:
        account: account id.
        bar_time_s: opening time of the bar decided on.
        action: action of the order.
        attempt: number of earlier orders with this action for this bar. An entry is retried only if the
            earlier ones are known to have had no effect; a close is repeated as often as necessary.
    """
    text = f"{account}|{bar_time_s}|{action.name}|{attempt}"
    return f"mm-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def entry_order(
    intent: Intent, quote: Price, details: InstrumentDetails, config: TraderConfig, pip: float
) -> MarketOrder:
    """The market order of an entry, with price bound, stop and target at distances from the quote."""
    direction = 1 if intent.action is Action.BUY else -1
    price = quote.ask if direction > 0 else quote.bid
    assert price is not None, "the guards permit no entry into an empty book"

    def at_distance(pips: float, sign: int) -> float | None:
        return price + sign * direction * pips * pip if pips else None

    return MarketOrder(
        details,
        direction * intent.units,
        client_id=intent.intent_id,
        trade_client_id=intent.intent_id,
        price_bound=at_distance(config.max_slippage_pips, 1),
        stop_loss=at_distance(config.stop_loss_pips, -1),
        take_profit=at_distance(config.take_profit_pips, 1),
    )


@dataclass(frozen=True)
class HeldTrade:
    """One open trade at the broker."""

    trade_id: int
    units: Decimal  # signed; fractional only if someone else opened the trade
    price: Decimal
    time_ns: int  # time of the fill
    spread: Decimal | None  # spread quoted at the fill, in units of price; None if not known

    @property
    def side(self) -> Side:
        """Long or short."""
        return Side.LONG if self.units > 0 else Side.SHORT


@dataclass(frozen=True)
class ClosedTrade:
    """A trade that was closed, completely or in part."""

    trade: HeldTrade
    units: Decimal  # closed units, above 0
    price: Decimal
    time_ns: int
    transaction_id: int
    reason: str  # OANDA's reason, such as MARKET_ORDER_POSITION_CLOSEOUT or STOP_LOSS_ORDER

    def pips(self, pip: float, costs: EnvironmentConfig) -> float:
        """Net pips of the round trip, charged as in the environment.

        The two fill prices contain spread and slippage. Commission and financing are charged here, as they
        were charged to the open position.
        """
        between = float((self.price - self.trade.price) * int(self.trade.side) / Decimal(str(pip)))
        bars_s = np.array([bar_of(self.trade.time_ns), bar_of(self.time_ns)], np.int64)
        nights = int(rollover_nights(bars_s)[0])
        return between - costs.commission_pips - costs.financing_pips_per_night * nights


@dataclass(frozen=True)
class Holding:
    """The account's position in one instrument, as of one transaction."""

    instrument: str
    last_transaction_id: int
    trades: tuple[HeldTrade, ...] = ()

    @property
    def units(self) -> Decimal:
        """Net units, signed."""
        return sum((trade.units for trade in self.trades), Decimal(0))

    @property
    def side(self) -> Side:
        """Side of the net position."""
        return Side((self.units > 0) - (self.units < 0))

    @property
    def trade(self) -> HeldTrade | None:
        """The open trade, the oldest if there are several; None when flat."""
        return self.trades[0] if self.trades else None

    def foreign(self, units: int) -> str:
        """Alert text if this position is not one that this trader opens; otherwise empty."""
        if not self.trades or (len(self.trades) == 1 and abs(self.units) == units):
            return ""
        return (
            f"the account holds {self.units} units of {self.instrument} in {len(self.trades)} trades, "
            f"expected at most one trade of {units} units: close it at the broker or with `micro-muzero kill`"
        )


def snapshot_holding(snapshot: AccountSnapshot, instrument: str, known: Holding | None) -> Holding:
    """The position in a snapshot, with the spreads of the trades that `known` contains too."""
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
    """The position after some transactions, and the trades that they closed.

    Args:
        holding: the position before.
        transactions: transactions of the account in order; those already in `holding` are skipped.
        spread: present spread in units of price; saved with a trade that opens.
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
    """The outcome of an order according to some transactions, or None if they do not show it.

    Args:
        intent: the order's client id.
        transactions: transactions since the order was sent, in order.
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
    """Client ids of the orders that some transactions filled, each with a text about the fill."""
    created = {t.transaction_id: t.client_order_id for t in transactions if isinstance(t, OrderCreated)}
    found: dict[str, str] = {}
    for fill in transactions:
        if isinstance(fill, Fill):
            client_id = fill.client_order_id or created.get(fill.order_id)
            if client_id is not None:
                found[client_id] = f"filled at {fill.price}"
    return found


def bar_of(time_ns: int) -> int:
    """Opening time in seconds of the bar that contains a moment."""
    return time_ns // NANOSECONDS // BAR_SECONDS * BAR_SECONDS


def plain(units: Decimal) -> int | float:
    """Units as a JSON number, an integer if possible."""
    return int(units) if units == int(units) else float(units)


def trade_closed(closed: ClosedTrade, instrument: Instrument, costs: EnvironmentConfig) -> TradeClosed:
    """The message about a closed trade."""
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
