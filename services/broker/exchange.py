"""The exchange: a request and the price in force become transactions of one account.

A synchronous state machine without clock, file or network: time comes in as an argument, and the account
is what its transactions add up to. Netting (FIFO) account in the instrument's quote currency, so that no
conversion rate is needed; a fill takes the whole book of the price in force, buy at the ask, sell at the bid.

Where OANDA's own behaviour is not documented, this exchange chooses: a REDUCE_ONLY order that cannot be
filled as asked is cancelled with POSITION_CLOSEOUT_FAILED, an OPEN_ONLY order against an opposite position
with FIFO_VIOLATION. Margin is checked when a trade opens; there is no margin close-out.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from services.broker.account import Account, ExitCreated, Order, OrderState, Trade
from services.broker.checks import InstrumentRules, check_market_order
from services.broker.transactions import (
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
    StopLossDetails,
    TakeProfitCreated,
    TradeClose,
    TradeOpened,
    TradeReduced,
    Transaction,
)
from services.broker.wire import money
from shared.errors import BrokerError

ZERO = Decimal(0)
ONE = Decimal(1)

#: Request ids are OANDA-like large numbers; here one per batch.
_FIRST_REQUEST = 60_000_000_000_000_000


@dataclass(frozen=True)
class Quote:
    """The price in force: one level a side."""

    time: int  # nanoseconds since 1970 UTC
    bid: Decimal
    ask: Decimal
    tradeable: bool
    liquidity: int = 10_000_000  # units on each side


@dataclass(frozen=True)
class AccountTerms:
    """What an account starts with."""

    account_id: str = "101-001-0000001-001"
    currency: str = "JPY"
    balance: Decimal = Decimal(1_000_000)
    margin_rate: Decimal = Decimal("0.05")

    @property
    def user_id(self) -> int:
        """The user's number, the third part of the account id."""
        return int(self.account_id.split("-")[2])


@dataclass(frozen=True)
class Answer:
    """What one request led to, in the order of the ids."""

    transactions: tuple[Transaction, ...]
    created: MarketOrderCreated | None = None
    filled: OrderFilled | None = None
    cancelled: OrderCancelled | None = None
    rejected: MarketOrderRejected | OrderCancelRejected | None = None


class _Batch:
    """Transactions of one request: consecutive ids, one batch id, one time; each is booked at once."""

    def __init__(self, account: Account, terms: AccountTerms, time: int) -> None:
        self._account, self._terms, self._time = account, terms, time
        self._first = account.last_id + 1
        self.transactions: list[Transaction] = []

    def head(self) -> dict[str, object]:
        """The fields that every transaction has, for the next one."""
        return {
            "id": self._account.last_id + 1,
            "time": self._time,
            "account_id": self._terms.account_id,
            "user_id": self._terms.user_id,
            "batch_id": self._first,
            "request_id": str(_FIRST_REQUEST + self._first),
        }

    def book(self, transaction: Transaction) -> None:
        """Append and apply."""
        self._account.apply(transaction)
        self.transactions.append(transaction)


class Exchange:
    """One account on one instrument."""

    def __init__(
        self, terms: AccountTerms, rules: InstrumentRules, history: Iterable[Transaction] = ()
    ) -> None:
        """Take up an account where its history left it; an empty history is an account not yet opened."""
        self.terms, self.rules = terms, rules
        self.account = Account()
        self.quote: Quote | None = None
        for transaction in history:
            self.account.apply(transaction)

    def open(self, time: int) -> tuple[Transaction, ...]:
        """Create the account and pay in its first balance; does nothing when it exists."""
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
        """Put a price in force and fill the stop losses and take profits that it reaches."""
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
        self._book_fill(batch, order, exit_order.type, quote, [(trade, abs(trade.units))], ZERO, -trade.units)
        return batch.transactions

    # -- requests ------------------------------------------------------------------------------------

    def market_order(self, fields: MarketOrderFields, time: int) -> Answer:
        """Fill, cancel or refuse a market order at the price in force."""
        batch = _Batch(self.account, self.terms, time)
        reject = check_market_order(fields, self.rules) or self._taken_order_id(fields.client_extensions)
        if reject is not None:
            return self._reject(batch, reject, fields)
        return self._place(batch, fields, only=None)

    def close_position(
        self, *, long: bool, units: Decimal | None, extensions: ClientExtensions | None, time: int
    ) -> Answer:
        """Close a side of the position: `units` of it (without sign), or all when None."""
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
        reject = check_market_order(fields, self.rules) or self._taken_order_id(extensions)
        return (
            self._place(batch, fields, only=None) if reject is None else self._reject(batch, reject, fields)
        )

    def close_trade(self, trade: Trade | None, units: Decimal | None, time: int) -> Answer:
        """Close `units` (without sign) of one trade, or all of it when None."""
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
        """Refuse an order for a reason that lies outside the exchange, such as an injected fault."""
        return self._reject(_Batch(self.account, self.terms, time), reason, fields)

    # -- execution -----------------------------------------------------------------------------------

    def _place(self, batch: _Batch, fields: MarketOrderFields, only: Trade | None) -> Answer:
        """Book the order, then its fill or its cancellation; `only` names the one trade it may reduce."""
        created = MarketOrderCreated.model_validate({**batch.head(), **dict(fields)})
        batch.book(created)
        order = self.account.orders[created.id]
        quote = self.quote
        if quote is None or not quote.tradeable:
            cancelled = self._book_cancel(batch, order, CancelReason.MARKET_HALTED)
            return Answer(tuple(batch.transactions), created, cancelled=cancelled)
        reductions, opening, refused = self._plan(fields, quote, only)
        if refused is not None:
            cancelled = self._book_cancel(batch, order, refused)
            return Answer(tuple(batch.transactions), created, cancelled=cancelled)
        reason = "MARKET_ORDER" if fields.reason == "CLIENT_ORDER" else f"MARKET_ORDER_{fields.reason}"
        filled = self._book_fill(batch, order, reason, quote, reductions, opening, fields.units)
        return Answer(tuple(batch.transactions), created, filled=filled)

    def _plan(
        self, fields: MarketOrderFields, quote: Quote, only: Trade | None
    ) -> tuple[list[tuple[Trade, Decimal]], Decimal, CancelReason | None]:
        """Which trades are reduced by how much, how much is opened, or why the order is cancelled."""
        wanted = abs(fields.units)
        held = self.account.open_trades if only is None else (only,)
        opposite = [trade for trade in held if trade.units * fields.units < 0]
        reducible = sum((abs(trade.units) for trade in opposite), ZERO)
        is_whole = fields.time_in_force == "FOK"
        if fields.position_fill == "OPEN_ONLY" and opposite:
            return [], ZERO, CancelReason.FIFO_VIOLATION
        if fields.position_fill == "REDUCE_ONLY":
            if reducible == 0 or (is_whole and wanted > reducible):
                return [], ZERO, CancelReason.POSITION_CLOSEOUT_FAILED
            wanted = min(wanted, reducible)
        if quote.liquidity == 0 or (is_whole and wanted > quote.liquidity):
            return [], ZERO, CancelReason.INSUFFICIENT_LIQUIDITY
        wanted = min(wanted, Decimal(quote.liquidity))
        reductions: list[tuple[Trade, Decimal]] = []
        left = wanted
        for trade in opposite:
            if left > 0:
                reductions.append((trade, min(left, abs(trade.units))))
                left -= reductions[-1][1]
        return reductions, left, self._refusal(fields, quote, left)

    def _refusal(self, fields: MarketOrderFields, quote: Quote, opening: Decimal) -> CancelReason | None:
        """Why a fill that opens so many units may not be; None when it may."""
        is_buy = fields.units > 0
        price = quote.ask if is_buy else quote.bid
        bound = fields.price_bound
        if bound is not None and (price > bound if is_buy else price < bound):
            return CancelReason.BOUNDS_VIOLATION
        if opening == 0:
            return None
        extensions = fields.trade_client_extensions
        if extensions is not None and extensions.id is not None:
            namesake = self.account.trade_by_client_id(extensions.id)
            if namesake is not None and namesake.is_open:
                return CancelReason.CLIENT_TRADE_ID_ALREADY_EXISTS
        side = ONE if is_buy else -ONE
        exit_price = quote.bid if is_buy else quote.ask
        stop, target = fields.stop_loss_on_fill, fields.take_profit_on_fill
        if stop is not None and (exit_price - stop_price(stop, price, side)) * side <= 0:
            return CancelReason.STOP_LOSS_ON_FILL_LOSS
        if target is not None and (target.price - exit_price) * side <= 0:
            return CancelReason.TAKE_PROFIT_ON_FILL_LOSS
        held_after = self.account.units + side * opening if self.account.units * side >= 0 else side * opening
        if self.margin(abs(held_after), quote) > self.nav(quote):
            return CancelReason.INSUFFICIENT_MARGIN
        return None

    def _book_fill(
        self,
        batch: _Batch,
        order: Order,
        reason: str,
        quote: Quote,
        reductions: list[tuple[Trade, Decimal]],
        opening: Decimal,
        direction: Decimal,
    ) -> OrderFilled:
        """Book a fill, the end of exit orders whose trade it closed, and the exits of the trade it opened."""
        side = ONE if direction > 0 else -ONE
        price = quote.ask if side > 0 else quote.bid
        parts = [self._reduction(trade, units, side, price, quote) for trade, units in reductions]
        closed = tuple(
            part for part, (trade, units) in zip(parts, reductions, strict=True) if units == abs(trade.units)
        )
        reduced = [part for part in parts if part not in closed]
        filled_units = sum((units for _, units in reductions), opening)
        pl = sum((part.realized_pl for part in parts), ZERO)
        head = batch.head()
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
                "half_spread_cost": _half_spread(quote, filled_units),
                "trade_opened": self._opening(order, head["id"], side * opening, price, quote)
                if opening
                else None,
                "trades_closed": closed or None,
                "trade_reduced": reduced[0] if reduced else None,
            }
        )
        batch.book(filled)
        for part in closed:
            self._cancel_exits(batch, part.trade_id)
        if opening and isinstance(order.created, MarketOrderCreated):
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
            half_spread_cost=_half_spread(quote, units),
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
                "half_spread_cost": _half_spread(quote, units),
                "initial_margin_required": self.margin(units, quote),
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
        kept = MarketOrderRejected.model_fields
        asked = {} if fields is None else {name: value for name, value in fields if name in kept}
        rejected = MarketOrderRejected.model_validate({**batch.head(), **asked, "reject_reason": reason})
        batch.book(rejected)
        return Answer(tuple(batch.transactions), rejected=rejected)

    def _taken_order_id(self, extensions: ClientExtensions | None) -> RejectReason | None:
        """An id is taken only while an order with it is pending; a market order never is."""
        if extensions is None or extensions.id is None:
            return None
        ids = {
            order.client_extensions.id for order in self.account.pending.values() if order.client_extensions
        }
        return RejectReason.CLIENT_ORDER_ID_ALREADY_EXISTS if extensions.id in ids else None

    # -- money ---------------------------------------------------------------------------------------

    def margin(self, units: Decimal, quote: Quote) -> Decimal:
        """Margin that so many units need at the mid price."""
        return money(abs(units) * (quote.bid + quote.ask) / 2 * self.terms.margin_rate)

    def unrealized_pl(self, quote: Quote) -> Decimal:
        """Profit of closing everything now."""
        return money(
            sum((trade.unrealized_pl(quote.bid, quote.ask) for trade in self.account.open_trades), ZERO)
        )

    def nav(self, quote: Quote) -> Decimal:
        """Net asset value: balance and unrealised profit."""
        return self.account.balance + self.unrealized_pl(quote)

    def price_in_force(self) -> Quote:
        """The newest price.

        Raises:
            BrokerError: there was none yet.
        """
        if self.quote is None:
            raise BrokerError(f"{self.rules.name} has no price yet: the replay has not started")
        return self.quote


def stop_price(stop: StopLossDetails, fill_price: Decimal, side: Decimal) -> Decimal:
    """Price of a stop loss: given, or so far from the fill price that opened the trade."""
    if stop.price is not None:
        return stop.price
    if stop.distance is None:
        raise BrokerError("a stop loss has neither price nor distance")
    return fill_price - side * stop.distance


def _half_spread(quote: Quote, units: Decimal) -> Decimal:
    return money((quote.ask - quote.bid) / 2 * abs(units))
