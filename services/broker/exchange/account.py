"""The state of an account: a fold over its transactions.

The ledger stores only the transactions; a restart applies them again.
"""

from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum

from services.broker.exchange.transactions import (
    ClientExtensions,
    Created,
    FundsTransferred,
    MarketOrderCreated,
    OrderCancelled,
    OrderFilled,
    StopLossCreated,
    TakeProfitCreated,
    TradeOpened,
    TradeReduced,
    Transaction,
)
from shared.errors import BrokerError


class OrderState(StrEnum):
    """State of an order."""

    PENDING = "PENDING"
    FILLED = "FILLED"
    CANCELLED = "CANCELLED"


ExitCreated = StopLossCreated | TakeProfitCreated
OrderCreated = MarketOrderCreated | ExitCreated


@dataclass(frozen=True)
class Order:
    """An order and its outcome."""

    created: OrderCreated
    state: OrderState = OrderState.PENDING
    filled: OrderFilled | None = None
    cancelled: OrderCancelled | None = None

    @property
    def client_id(self) -> str | None:
        """The client's id for the order."""
        extensions = self.created.client_extensions
        return None if extensions is None else extensions.id


@dataclass(frozen=True)
class Trade:
    """Units opened by one fill; negative units are short."""

    id: int
    instrument: str
    price: Decimal
    open_time: int  # nanoseconds
    initial_units: Decimal
    units: Decimal
    initial_margin: Decimal
    client_extensions: ClientExtensions | None
    realized_pl: Decimal = Decimal(0)
    close_value: Decimal = Decimal(0)  # sum of price times unsigned closed units
    closing_ids: tuple[int, ...] = ()
    close_time: int | None = None
    stop_loss: int | None = None  # id of the pending order
    take_profit: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether any units are left."""
        return self.units != 0

    @property
    def average_close_price(self) -> Decimal | None:
        """Mean price of the units closed so far; None if there are none."""
        closed = abs(self.initial_units) - abs(self.units)
        return self.close_value / closed if closed else None

    def unrealized_pl(self, bid: Decimal, ask: Decimal) -> Decimal:
        """Profit of closing the rest now: a long sells at the bid, a short buys at the ask."""
        return (bid - self.price) * self.units if self.units > 0 else (ask - self.price) * self.units


@dataclass
class Account:
    """State of an account after the transactions applied so far."""

    currency: str = ""
    created_time: int = 0
    balance: Decimal = Decimal(0)
    realized_pl: Decimal = Decimal(0)
    transactions: list[Transaction] = field(default_factory=list)
    orders: dict[int, Order] = field(default_factory=dict)
    trades: dict[int, Trade] = field(default_factory=dict)
    pending: dict[int, ExitCreated] = field(default_factory=dict)
    open_ids: list[int] = field(default_factory=list)  # of the open trades, the oldest first
    last_fill_time: int | None = None
    _orders_by_client_id: dict[str, int] = field(default_factory=dict)
    _trades_by_client_id: dict[str, int] = field(default_factory=dict)

    @property
    def last_id(self) -> int:
        """Id of the newest transaction; ids are 1, 2, 3 ... without a gap."""
        return len(self.transactions)

    @property
    def open_trades(self) -> tuple[Trade, ...]:
        """Open trades, the oldest first."""
        return tuple(self.trades[trade] for trade in self.open_ids)

    @property
    def units(self) -> Decimal:
        """Net units held."""
        return sum((trade.units for trade in self.open_trades), Decimal(0))

    def order_by_client_id(self, client_id: str) -> Order | None:
        """The newest order with this client id."""
        found = self._orders_by_client_id.get(client_id)
        return None if found is None else self.orders[found]

    def trade_by_client_id(self, client_id: str) -> Trade | None:
        """The newest trade with this client id."""
        found = self._trades_by_client_id.get(client_id)
        return None if found is None else self.trades[found]

    def apply(self, transaction: Transaction) -> None:
        """Book one transaction.

        Raises:
            BrokerError: its id is not the next one, so the ledger is damaged.
        """
        if transaction.id != self.last_id + 1:
            raise BrokerError(
                f"transaction {transaction.id} follows transaction {self.last_id}: the ledger is damaged, "
                "delete it to start over"
            )
        self.transactions.append(transaction)
        match transaction:
            case Created():
                self.currency, self.created_time = transaction.home_currency, transaction.time
            case FundsTransferred():
                self.balance = transaction.account_balance
            case MarketOrderCreated():
                self._add_order(transaction)
            case StopLossCreated():
                self._add_exit(transaction)
                self._change_trade(transaction.trade_id, stop_loss=transaction.id)
            case TakeProfitCreated():
                self._add_exit(transaction)
                self._change_trade(transaction.trade_id, take_profit=transaction.id)
            case OrderFilled():
                self._fill(transaction)
            case OrderCancelled():
                self._cancel(transaction)
            case _:  # a rejection changes nothing but the history
                pass

    def _add_order(self, created: OrderCreated) -> None:
        order = Order(created)
        self.orders[created.id] = order
        if order.client_id is not None:
            self._orders_by_client_id[order.client_id] = created.id

    def _add_exit(self, created: ExitCreated) -> None:
        self._add_order(created)
        self.pending[created.id] = created

    def _change_trade(self, trade_id: int, **changes: int | None) -> None:
        self.trades[trade_id] = replace(self.trades[trade_id], **changes)  # type: ignore[arg-type]

    def _end_order(self, order_id: int, **changes: object) -> None:
        self.orders[order_id] = replace(self.orders[order_id], **changes)  # type: ignore[arg-type]
        ended = self.pending.pop(order_id, None)
        if isinstance(ended, StopLossCreated):
            self._change_trade(ended.trade_id, stop_loss=None)
        elif isinstance(ended, TakeProfitCreated):
            self._change_trade(ended.trade_id, take_profit=None)

    def _cancel(self, cancelled: OrderCancelled) -> None:
        self._end_order(cancelled.order_id, state=OrderState.CANCELLED, cancelled=cancelled)

    def _fill(self, filled: OrderFilled) -> None:
        self._end_order(filled.order_id, state=OrderState.FILLED, filled=filled)
        self.balance, self.last_fill_time = filled.account_balance, filled.time
        self.realized_pl += filled.pl
        for part in filled.trades_closed or ():
            self._reduce_trade(part, filled)
        if filled.trade_reduced is not None:
            self._reduce_trade(filled.trade_reduced, filled)
        if filled.trade_opened is not None:
            self._open_trade(filled.trade_opened, filled)

    def _open_trade(self, opened: TradeOpened, filled: OrderFilled) -> None:
        self.trades[opened.trade_id] = Trade(
            id=opened.trade_id,
            instrument=filled.instrument,
            price=opened.price,
            open_time=filled.time,
            initial_units=opened.units,
            units=opened.units,
            initial_margin=opened.initial_margin_required,
            client_extensions=opened.client_extensions,
        )
        self.open_ids.append(opened.trade_id)
        if opened.client_extensions is not None and opened.client_extensions.id is not None:
            self._trades_by_client_id[opened.client_extensions.id] = opened.trade_id

    def _reduce_trade(self, part: TradeReduced, filled: OrderFilled) -> None:
        trade = self.trades[part.trade_id]
        units = trade.units + part.units
        self.trades[trade.id] = replace(
            trade,
            units=units,
            realized_pl=trade.realized_pl + part.realized_pl,
            close_value=trade.close_value + part.price * abs(part.units),
            closing_ids=(*trade.closing_ids, filled.id),
            close_time=filled.time if units == 0 else None,
        )
        if units == 0:
            self.open_ids.remove(trade.id)
