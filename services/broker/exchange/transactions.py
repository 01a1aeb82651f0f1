"""The transactions of an account, with OANDA's names and reasons."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from services.broker.wire import Id, Number, TimeNs, WireModel


class CancelReason(StrEnum):
    """Reason why an accepted order was cancelled (the part of OANDA's list that this exchange uses)."""

    MARKET_HALTED = "MARKET_HALTED"
    INSUFFICIENT_LIQUIDITY = "INSUFFICIENT_LIQUIDITY"
    INSUFFICIENT_MARGIN = "INSUFFICIENT_MARGIN"
    BOUNDS_VIOLATION = "BOUNDS_VIOLATION"
    FIFO_VIOLATION = "FIFO_VIOLATION"
    POSITION_CLOSEOUT_FAILED = "POSITION_CLOSEOUT_FAILED"
    STOP_LOSS_ON_FILL_LOSS = "STOP_LOSS_ON_FILL_LOSS"
    TAKE_PROFIT_ON_FILL_LOSS = "TAKE_PROFIT_ON_FILL_LOSS"
    CLIENT_TRADE_ID_ALREADY_EXISTS = "CLIENT_TRADE_ID_ALREADY_EXISTS"
    LINKED_TRADE_CLOSED = "LINKED_TRADE_CLOSED"
    CLIENT_REQUEST = "CLIENT_REQUEST"


class RejectReason(StrEnum):
    """Reason why a request was rejected (the part of OANDA's list that this exchange uses)."""

    INTERNAL_SERVER_ERROR = "INTERNAL_SERVER_ERROR"
    INSTRUMENT_UNKNOWN = "INSTRUMENT_UNKNOWN"
    UNITS_INVALID = "UNITS_INVALID"
    UNITS_PRECISION_EXCEEDED = "UNITS_PRECISION_EXCEEDED"
    UNITS_LIMIT_EXCEEDED = "UNITS_LIMIT_EXCEEDED"
    TIME_IN_FORCE_INVALID = "TIME_IN_FORCE_INVALID"
    PRICE_BOUND_INVALID = "PRICE_BOUND_INVALID"
    PRICE_BOUND_PRECISION_EXCEEDED = "PRICE_BOUND_PRECISION_EXCEEDED"
    STOP_LOSS_ON_FILL_PRICE_INVALID = "STOP_LOSS_ON_FILL_PRICE_INVALID"
    STOP_LOSS_ON_FILL_PRICE_PRECISION_EXCEEDED = "STOP_LOSS_ON_FILL_PRICE_PRECISION_EXCEEDED"
    STOP_LOSS_ON_FILL_DISTANCE_INVALID = "STOP_LOSS_ON_FILL_DISTANCE_INVALID"
    STOP_LOSS_ON_FILL_DISTANCE_PRECISION_EXCEEDED = "STOP_LOSS_ON_FILL_DISTANCE_PRECISION_EXCEEDED"
    STOP_LOSS_ON_FILL_PRICE_AND_DISTANCE_BOTH_SPECIFIED = (
        "STOP_LOSS_ON_FILL_PRICE_AND_DISTANCE_BOTH_SPECIFIED"
    )
    STOP_LOSS_ON_FILL_PRICE_AND_DISTANCE_BOTH_MISSING = "STOP_LOSS_ON_FILL_PRICE_AND_DISTANCE_BOTH_MISSING"
    STOP_LOSS_ON_FILL_TIME_IN_FORCE_INVALID = "STOP_LOSS_ON_FILL_TIME_IN_FORCE_INVALID"
    TAKE_PROFIT_ON_FILL_PRICE_INVALID = "TAKE_PROFIT_ON_FILL_PRICE_INVALID"
    TAKE_PROFIT_ON_FILL_PRICE_PRECISION_EXCEEDED = "TAKE_PROFIT_ON_FILL_PRICE_PRECISION_EXCEEDED"
    TAKE_PROFIT_ON_FILL_TIME_IN_FORCE_INVALID = "TAKE_PROFIT_ON_FILL_TIME_IN_FORCE_INVALID"
    TRAILING_STOP_LOSS_ORDERS_NOT_SUPPORTED = "TRAILING_STOP_LOSS_ORDERS_NOT_SUPPORTED"
    CLIENT_ORDER_ID_ALREADY_EXISTS = "CLIENT_ORDER_ID_ALREADY_EXISTS"
    CLOSEOUT_POSITION_DOESNT_EXIST = "CLOSEOUT_POSITION_DOESNT_EXIST"
    CLOSEOUT_POSITION_UNITS_EXCEED_POSITION_SIZE = "CLOSEOUT_POSITION_UNITS_EXCEED_POSITION_SIZE"
    TRADE_DOESNT_EXIST = "TRADE_DOESNT_EXIST"
    CLOSE_TRADE_UNITS_EXCEED_TRADE_SIZE = "CLOSE_TRADE_UNITS_EXCEED_TRADE_SIZE"
    ORDER_DOESNT_EXIST = "ORDER_DOESNT_EXIST"


class ClientExtensions(WireModel):
    """A client's labels for an order or a trade. The id is a look-up key."""

    id: str | None = Field(None, min_length=1, max_length=128)
    tag: str | None = Field(None, max_length=128)
    comment: str | None = Field(None, max_length=128)


class TakeProfitDetails(WireModel):
    """A take profit for the trade that a fill opens."""

    price: Number
    time_in_force: str = "GTC"
    client_extensions: ClientExtensions | None = None


class StopLossDetails(WireModel):
    """A stop loss for the trade that a fill opens; a distance is measured from the fill price."""

    price: Number | None = None
    distance: Number | None = None
    time_in_force: str = "GTC"
    client_extensions: ClientExtensions | None = None


class PositionCloseout(WireModel):
    """The part of a position that a market order closes: ALL, or a number of units."""

    instrument: str
    units: str


class TradeClose(WireModel):
    """The part of a trade that a market order closes: ALL, or a number of units."""

    trade_id: Id
    units: str


class TransactionBase(WireModel):
    """Common fields of all transactions; a batch has the id of its first transaction."""

    id: Id
    time: TimeNs
    account_id: str
    user_id: int
    batch_id: Id
    request_id: str


class Created(TransactionBase):
    """The account was opened."""

    type: Literal["CREATE"] = "CREATE"
    home_currency: str


class FundsTransferred(TransactionBase):
    """Money was paid in."""

    type: Literal["TRANSFER_FUNDS"] = "TRANSFER_FUNDS"
    amount: Number
    funding_reason: str = "CLIENT_FUNDING"
    account_balance: Number


class MarketOrderFields(WireModel):
    """A market order as requested."""

    instrument: str
    units: Number
    time_in_force: str = "FOK"
    price_bound: Number | None = None
    position_fill: str = "DEFAULT"
    reason: str = "CLIENT_ORDER"
    trade_close: TradeClose | None = None
    long_position_closeout: PositionCloseout | None = None
    short_position_closeout: PositionCloseout | None = None
    client_extensions: ClientExtensions | None = None
    take_profit_on_fill: TakeProfitDetails | None = None
    stop_loss_on_fill: StopLossDetails | None = None
    trade_client_extensions: ClientExtensions | None = None


class MarketOrderCreated(TransactionBase, MarketOrderFields):
    """A market order was accepted; the next transaction of the batch fills or cancels it."""

    type: Literal["MARKET_ORDER"] = "MARKET_ORDER"


class MarketOrderRejected(TransactionBase):
    """A market order was rejected; a rejected close-out may lack instrument and units."""

    type: Literal["MARKET_ORDER_REJECT"] = "MARKET_ORDER_REJECT"
    instrument: str | None = None
    units: Number | None = None
    time_in_force: str = "FOK"
    price_bound: Number | None = None
    position_fill: str = "DEFAULT"
    reason: str = "CLIENT_ORDER"
    client_extensions: ClientExtensions | None = None
    reject_reason: RejectReason


class TradeOpened(WireModel):
    """The trade that a fill opened; it has the fill's id."""

    trade_id: Id
    units: Number
    price: Number
    guaranteed_execution_fee: Number
    half_spread_cost: Number
    initial_margin_required: Number
    client_extensions: ClientExtensions | None = None


class TradeReduced(WireModel):
    """A trade that a fill closed, completely or in part; the units have the sign of the fill."""

    trade_id: Id
    units: Number
    price: Number
    realized_pl: Number
    financing: Number
    guaranteed_execution_fee: Number
    half_spread_cost: Number


class OrderFilled(TransactionBase):
    """An order was filled; pl and balance are in the home currency."""

    type: Literal["ORDER_FILL"] = "ORDER_FILL"
    order_id: Id
    client_order_id: str | None = None
    instrument: str
    units: Number
    gain_quote_home_conversion_factor: Number
    loss_quote_home_conversion_factor: Number
    price: Number
    full_vwap: Annotated[Number, Field(alias="fullVWAP")]
    reason: str
    pl: Number
    financing: Number
    commission: Number
    guaranteed_execution_fee: Number
    account_balance: Number
    half_spread_cost: Number
    trade_opened: TradeOpened | None = None
    trades_closed: tuple[TradeReduced, ...] | None = None
    trade_reduced: TradeReduced | None = None


class OrderCancelled(TransactionBase):
    """An order, or the unfilled rest of one, was cancelled."""

    type: Literal["ORDER_CANCEL"] = "ORDER_CANCEL"
    order_id: Id
    client_order_id: str | None = None
    reason: CancelReason


class OrderCancelRejected(TransactionBase):
    """A cancellation was rejected."""

    type: Literal["ORDER_CANCEL_REJECT"] = "ORDER_CANCEL_REJECT"
    order_id: Id | None = None
    client_order_id: str | None = None
    reject_reason: RejectReason


class ExitOrderFields(WireModel):
    """A pending order that closes one trade when the market reaches its price."""

    trade_id: Id
    price: Number
    time_in_force: str = "GTC"
    trigger_condition: str = "DEFAULT"
    client_extensions: ClientExtensions | None = None


class StopLossCreated(TransactionBase, ExitOrderFields):
    """A stop loss was added to a trade."""

    type: Literal["STOP_LOSS_ORDER"] = "STOP_LOSS_ORDER"
    distance: Number | None = None
    guaranteed: bool = False
    reason: str = "ON_FILL"
    order_fill_transaction_id: Id


class TakeProfitCreated(TransactionBase, ExitOrderFields):
    """A take profit was added to a trade."""

    type: Literal["TAKE_PROFIT_ORDER"] = "TAKE_PROFIT_ORDER"
    reason: str = "ON_FILL"
    order_fill_transaction_id: Id


Transaction = Annotated[
    Created
    | FundsTransferred
    | MarketOrderCreated
    | MarketOrderRejected
    | OrderFilled
    | OrderCancelled
    | OrderCancelRejected
    | StopLossCreated
    | TakeProfitCreated,
    Field(discriminator="type"),
]

TRANSACTION: TypeAdapter[Transaction] = TypeAdapter(Transaction)
