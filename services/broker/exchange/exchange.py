"""The exchange: turns requests and prices into transactions of one account.

A synchronous state machine without clock, file or network: time is an argument, and the account's state is a
fold over its transactions. An order first reduces opposite trades, the oldest first (FIFO). The account is
held in the instrument's quote currency, so no conversion rate is needed. The filled units of an order have
one price: the newest ask for a buy, the newest bid for a sell.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from services.broker.exchange.account import Account, ExitCreated, Order, OrderState, Trade
from services.broker.exchange.checks import InstrumentRules, check_market_order
from services.broker.exchange.planning import (
    ONE,
    ZERO,
    AccountTerms,
    Plan,
    Quote,
    half_spread_cost,
    margin,
    plan_fill,
    stop_price,
)
from services.broker.exchange.transactions import (
    CancelReason,
    ClientExtensions,
    Created,
    FundsTransferred,
    MarketOrderCreated,
    MarketOrderFields,
    MarketOrderRejected,
    OrderCancelled,
    OrderCancelRejected,
    OrderFilled,
    PositionCloseout,
    RejectReason,
    StopLossCreated,
    TakeProfitCreated,
    TradeClose,
    TradeOpened,
    TradeReduced,
    Transaction,
)
from services.broker.wire import money
from shared.errors import BrokerError

#: First request id. Request ids are large numbers, as at OANDA. Each batch has one.
_FIRST_REQUEST = 60_000_000_000_000_000


@dataclass(frozen=True)
class Answer:
    """Transactions of one request, in the order of their ids."""

    transactions: tuple[Transaction, ...]
    created: MarketOrderCreated | None = None
    filled: OrderFilled | None = None
    cancelled: OrderCancelled | None = None
    rejected: MarketOrderRejected | OrderCancelRejected | None = None


class _Batch:
    """Transactions of one request: consecutive ids, one batch id, one time."""

    def __init__(self, account: Account, terms: AccountTerms, time: int) -> None:
        self._account, self._terms, self._time = account, terms, time
        self._first = account.last_id + 1
        self.transactions: list[Transaction] = []

    def head(self) -> dict[str, object]:
        """The next transaction's values of the fields that all transactions have."""
        return {
            "id": self._account.last_id + 1,
            "time": self._time,
            "account_id": self._terms.account_id,
            "user_id": self._terms.user_id,
            "batch_id": self._first,
            "request_id": str(_FIRST_REQUEST + self._first),
        }

    def book(self, transaction: Transaction) -> None:
        """Apply a transaction to the account and append it to the batch."""
        self._account.apply(transaction)
        self.transactions.append(transaction)


class Exchange:
    """One account on one instrument."""

    def __init__(
        self, terms: AccountTerms, rules: InstrumentRules, history: Iterable[Transaction] = ()
    ) -> None:
        """Rebuild the account from its history. Without history, `open` creates it."""
        self.terms, self.rules = terms, rules
        self.account = Account()
        self.quote: Quote | None = None
        for transaction in history:
            self.account.apply(transaction)

    def open(self, time: int) -> tuple[Transaction, ...]:
        """Create the account with its initial balance; do nothing if it exists."""
        if self.account.last_id:
            return ()
        batch = _Batch(self.account, self.terms, time)
        batch.book(Created.model_validate({**batch.head(), "home_currency": self.terms.currency}))
        amount = money(self.terms.balance)
        batch.book(
            FundsTransferred.model_validate({**batch.head(), "amount": amount, "account_balance": amount})
        )
        return tuple(batch.transactions)

    # -- prices --------------------------------------------------------------------------------------

    def on_quote(self, quote: Quote) -> tuple[Transaction, ...]:
        """Set the newest price and fill the stop losses and take profits that it reaches."""
        self.quote = quote
        booked: list[Transaction] = []
        if quote.tradeable:
            for exit_order in list(self.account.pending.values()):
                if exit_order.id in self.account.pending and self._reached(exit_order, quote):
                    booked += self._fill_exit(exit_order, quote)
        return tuple(booked)

    def _reached(self, exit_order: ExitCreated, quote: Quote) -> bool:
        is_long = self.account.trades[exit_order.trade_id].units > 0
        price = quote.bid if is_long else quote.ask
        wants_lower = is_long == isinstance(exit_order, StopLossCreated)
        return price <= exit_order.price if wants_lower else price >= exit_order.price

    def _fill_exit(self, exit_order: ExitCreated, quote: Quote) -> list[Transaction]:
        batch = _Batch(self.account, self.terms, quote.time)
        trade = self.account.trades[exit_order.trade_id]
        order = self.account.orders[exit_order.id]
        self._book_fill(
            batch, order, exit_order.type, quote, Plan(((trade, abs(trade.units)),)), -trade.units
        )
        return batch.transactions

    # -- requests ------------------------------------------------------------------------------------

    def market_order(self, fields: MarketOrderFields, time: int) -> Answer:
        """Reject a market order, cancel it, or fill it at the newest price."""
        batch = _Batch(self.account, self.terms, time)
        reject = check_market_order(fields, self.rules) or self._check_order_id(fields.client_extensions)
        if reject is not None:
            return self._reject(batch, reject, fields)
        return self._place(batch, fields, only=None)

    def close_position(
        self, *, long: bool, units: Decimal | None, extensions: ClientExtensions | None, time: int
    ) -> Answer:
        """Close `units` (without sign) of one side of the position; None closes all of it."""
        batch = _Batch(self.account, self.terms, time)
        held = self.account.units if long else -self.account.units
        if held <= 0:
            return self._reject(batch, RejectReason.CLOSEOUT_POSITION_DOESNT_EXIST)
        if units is not None and units > held:
            return self._reject(batch, RejectReason.CLOSEOUT_POSITION_UNITS_EXCEED_POSITION_SIZE)
        amount = held if units is None else units
        closeout = PositionCloseout(
            instrument=self.rules.name, units="ALL" if units is None else f"{units:f}"
        )
        fields = MarketOrderFields(
            instrument=self.rules.name,
            units=-amount if long else amount,
            position_fill="REDUCE_ONLY",
            reason="POSITION_CLOSEOUT",
            long_position_closeout=closeout if long else None,
            short_position_closeout=None if long else closeout,
            client_extensions=extensions,
        )
        reject = check_market_order(fields, self.rules) or self._check_order_id(extensions)
        return (
            self._place(batch, fields, only=None) if reject is None else self._reject(batch, reject, fields)
        )

    def close_trade(self, trade: Trade | None, units: Decimal | None, time: int) -> Answer:
        """Close `units` (without sign) of one trade; None closes all of it."""
        batch = _Batch(self.account, self.terms, time)
        if trade is None or not trade.is_open:
            return self._reject(batch, RejectReason.TRADE_DOESNT_EXIST)
        if units is not None and units > abs(trade.units):
            return self._reject(batch, RejectReason.CLOSE_TRADE_UNITS_EXCEED_TRADE_SIZE)
        amount = abs(trade.units) if units is None else units
        fields = MarketOrderFields(
            instrument=self.rules.name,
            units=-amount if trade.units > 0 else amount,
            position_fill="REDUCE_ONLY",
            reason="TRADE_CLOSE",
            trade_close=TradeClose(trade_id=trade.id, units="ALL" if units is None else f"{units:f}"),
        )
        reject = check_market_order(fields, self.rules)
        return (
            self._place(batch, fields, only=trade) if reject is None else self._reject(batch, reject, fields)
        )

    def cancel_order(self, order: Order | None, time: int) -> Answer:
        """Cancel a pending order."""
        batch = _Batch(self.account, self.terms, time)
        if order is None or order.state is not OrderState.PENDING:
            rejected = OrderCancelRejected.model_validate(
                {
                    **batch.head(),
                    "order_id": None if order is None else order.created.id,
                    "reject_reason": RejectReason.ORDER_DOESNT_EXIST,
                }
            )
            batch.book(rejected)
            return Answer(tuple(batch.transactions), rejected=rejected)
        cancelled = self._book_cancel(batch, order, CancelReason.CLIENT_REQUEST)
        return Answer(tuple(batch.transactions), cancelled=cancelled)

    def reject(self, fields: MarketOrderFields, reason: RejectReason, time: int) -> Answer:
        """Reject an order for a reason outside the exchange, such as an injected fault."""
        return self._reject(_Batch(self.account, self.terms, time), reason, fields)

    # -- execution -----------------------------------------------------------------------------------

    def _place(self, batch: _Batch, fields: MarketOrderFields, only: Trade | None) -> Answer:
        """Book the order, then its fill or cancellation. It may reduce only the trade `only`, if given."""
        created = MarketOrderCreated.model_validate({**batch.head(), **dict(fields)})
        batch.book(created)
        order = self.account.orders[created.id]
        quote = self.quote
        if quote is None or not quote.tradeable:
            cancelled = self._book_cancel(batch, order, CancelReason.MARKET_HALTED)
            return Answer(tuple(batch.transactions), created, cancelled=cancelled)
        plan = plan_fill(self.account, self.terms, fields, quote, only)
        if plan.refused is not None:
            cancelled = self._book_cancel(batch, order, plan.refused)
            return Answer(tuple(batch.transactions), created, cancelled=cancelled)
        reason = "MARKET_ORDER" if fields.reason == "CLIENT_ORDER" else f"MARKET_ORDER_{fields.reason}"
        filled = self._book_fill(batch, order, reason, quote, plan, fields.units)
        return Answer(tuple(batch.transactions), created, filled=filled)

    def _book_fill(
        self,
        batch: _Batch,
        order: Order,
        reason: str,
        quote: Quote,
        plan: Plan,
        direction: Decimal,
    ) -> OrderFilled:
        """Book a fill, cancel the exit orders of the trades that it closed, and add those of a new trade."""
        side = ONE if direction > 0 else -ONE
        price = quote.ask if side > 0 else quote.bid
        closed: list[TradeReduced] = []
        reduced: TradeReduced | None = None
        for trade, units in plan.reductions:
            part = self._reduction(trade, units, side, price, quote)
            if units == abs(trade.units):
                closed.append(part)
            else:
                reduced = part  # at most one trade, the last, is closed in part
        filled_units = sum((units for _, units in plan.reductions), plan.opening)
        pl = sum((part.realized_pl for part in closed), ZERO)
        if reduced is not None:
            pl += reduced.realized_pl
        head = batch.head()
        opened = self._opening(order, head["id"], side * plan.opening, price, quote) if plan.opening else None
        filled = OrderFilled.model_validate(
            {
                **head,
                "order_id": order.created.id,
                "client_order_id": order.client_id,
                "instrument": self.rules.name,
                "units": side * filled_units,
                "gain_quote_home_conversion_factor": ONE,
                "loss_quote_home_conversion_factor": ONE,
                "price": price,
                "full_vwap": price,
                "reason": reason,
                "pl": money(pl),
                "financing": money(ZERO),
                "commission": money(ZERO),
                "guaranteed_execution_fee": money(ZERO),
                "account_balance": money(self.account.balance + pl),
                "half_spread_cost": half_spread_cost(quote, filled_units),
                "trade_opened": opened,
                "trades_closed": tuple(closed) or None,
                "trade_reduced": reduced,
            }
        )
        batch.book(filled)
        for part in closed:
            self._cancel_exits(batch, part.trade_id)
        if plan.opening and isinstance(order.created, MarketOrderCreated):
            self._book_exits(batch, order.created, filled, side, price)
        return filled

    def _reduction(
        self, trade: Trade, units: Decimal, side: Decimal, price: Decimal, quote: Quote
    ) -> TradeReduced:
        return TradeReduced(
            trade_id=trade.id,
            units=side * units,
            price=price,
            realized_pl=money((price - trade.price) * -side * units),
            financing=money(ZERO),
            guaranteed_execution_fee=money(ZERO),
            half_spread_cost=half_spread_cost(quote, units),
        )

    def _opening(
        self, order: Order, trade_id: object, units: Decimal, price: Decimal, quote: Quote
    ) -> TradeOpened:
        extensions = (
            order.created.trade_client_extensions if isinstance(order.created, MarketOrderCreated) else None
        )
        return TradeOpened.model_validate(
            {
                "trade_id": trade_id,
                "units": units,
                "price": price,
                "guaranteed_execution_fee": money(ZERO),
                "half_spread_cost": half_spread_cost(quote, units),
                "initial_margin_required": margin(units, quote, self.terms),
                "client_extensions": extensions,
            }
        )

    def _book_exits(
        self, batch: _Batch, created: MarketOrderCreated, filled: OrderFilled, side: Decimal, price: Decimal
    ) -> None:
        target, stop = created.take_profit_on_fill, created.stop_loss_on_fill
        common = {"trade_id": filled.id, "order_fill_transaction_id": filled.id}
        if target is not None:
            fields = {"price": target.price, "client_extensions": target.client_extensions}
            batch.book(TakeProfitCreated.model_validate({**batch.head(), **common, **fields}))
        if stop is not None:
            fields = {
                "price": stop_price(stop, price, side),
                "client_extensions": stop.client_extensions,
            }
            batch.book(
                StopLossCreated.model_validate(
                    {**batch.head(), **common, **fields, "distance": stop.distance}
                )
            )

    def _cancel_exits(self, batch: _Batch, trade_id: int) -> None:
        trade = self.account.trades[trade_id]
        for exit_id in (trade.take_profit, trade.stop_loss):
            if exit_id is not None:
                self._book_cancel(batch, self.account.orders[exit_id], CancelReason.LINKED_TRADE_CLOSED)

    def _book_cancel(self, batch: _Batch, order: Order, reason: CancelReason) -> OrderCancelled:
        cancelled = OrderCancelled.model_validate(
            {
                **batch.head(),
                "order_id": order.created.id,
                "client_order_id": order.client_id,
                "reason": reason,
            }
        )
        batch.book(cancelled)
        return cancelled

    def _reject(self, batch: _Batch, reason: RejectReason, fields: MarketOrderFields | None = None) -> Answer:
        known = MarketOrderRejected.model_fields
        order = {} if fields is None else {name: value for name, value in fields if name in known}
        rejected = MarketOrderRejected.model_validate({**batch.head(), **order, "reject_reason": reason})
        batch.book(rejected)
        return Answer(tuple(batch.transactions), rejected=rejected)

    def _check_order_id(self, extensions: ClientExtensions | None) -> RejectReason | None:
        """The reason to reject a client id that a pending order has. Ids of market orders may be reused."""
        if extensions is None or extensions.id is None:
            return None
        ids = {
            order.client_extensions.id for order in self.account.pending.values() if order.client_extensions
        }
        return RejectReason.CLIENT_ORDER_ID_ALREADY_EXISTS if extensions.id in ids else None

    def newest_price(self) -> Quote:
        """The newest price.

        Raises:
            BrokerError: there is no price yet.
        """
        if self.quote is None:
            raise BrokerError(f"{self.rules.name} has no price yet: the replay has not started")
        return self.quote
