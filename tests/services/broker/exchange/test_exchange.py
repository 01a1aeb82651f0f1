"""The exchange, compared with hand-worked accounts."""

from decimal import Decimal

import pytest

from services.broker.exchange.account import OrderState
from services.broker.exchange.exchange import Answer, Exchange
from services.broker.exchange.planning import nav, unrealized_pl
from services.broker.exchange.transactions import (
    CancelReason,
    ClientExtensions,
    MarketOrderFields,
    RejectReason,
    StopLossDetails,
    TakeProfitDetails,
)
from tests.services.broker.markets import quote

D = Decimal


def order(units: str, **fields: object) -> MarketOrderFields:
    return MarketOrderFields.model_validate({"instrument": "GBP_JPY", "units": units, **fields})


def ids(answer: Answer) -> list[int]:
    return [item.id for item in answer.transactions]


def test_a_new_account_has_its_creation_and_its_first_balance(exchange: Exchange) -> None:
    assert [item.type for item in exchange.account.transactions] == ["CREATE", "TRANSFER_FUNDS"]
    assert exchange.account.balance == 1_000_000
    assert exchange.open(5) == ()


def test_orders_buy_at_the_ask_and_sell_at_the_bid(exchange: Exchange) -> None:
    exchange.on_quote(quote("188.000", "188.040"))
    bought = exchange.market_order(order("1"), 1)
    assert ids(bought) == [3, 4]
    assert {item.batch_id for item in bought.transactions} == {3}
    assert bought.filled is not None
    assert bought.filled.trade_opened is not None
    assert bought.filled.trade_opened.price == D("188.040")
    assert unrealized_pl(exchange.account, quote("188.000", "188.040")) == D("-0.0400")

    exchange.on_quote(quote("188.140", "188.180"))
    sold = exchange.market_order(order("-1", positionFill="REDUCE_ONLY"), 2)
    assert sold.filled is not None
    assert sold.filled.trades_closed is not None
    assert sold.filled.trades_closed[0].realized_pl == D("0.1000")
    assert exchange.account.balance == D("1000000.1000")
    assert exchange.account.units == 0


def test_a_short_earns_when_the_ask_falls(exchange: Exchange) -> None:
    exchange.on_quote(quote("188.000", "188.040"))
    exchange.market_order(order("-2"), 1)
    falling = quote("187.900", "187.940")
    exchange.on_quote(falling)
    assert nav(exchange.account, falling) == D("1000000.1200")  # 2 x (188.000 - 187.940)


def test_an_opposite_order_closes_the_oldest_trade_first_and_opens_the_rest(exchange: Exchange) -> None:
    exchange.on_quote(quote("100.000", "100.000"))
    exchange.market_order(order("2"), 1)  # trade 4
    exchange.on_quote(quote("110.000", "110.000"))
    exchange.market_order(order("3"), 2)  # trade 6
    exchange.on_quote(quote("120.000", "120.000"))
    flipped = exchange.market_order(order("-7"), 3).filled
    assert flipped is not None
    assert flipped.trades_closed is not None
    assert [(part.trade_id, part.units, part.realized_pl) for part in flipped.trades_closed] == [
        (4, D(-2), D(40)),
        (6, D(-3), D(30)),
    ]
    assert flipped.trade_opened is not None
    assert flipped.trade_opened.units == -2
    assert flipped.pl == 70
    assert exchange.account.units == -2


def test_a_trade_closed_in_part_stays_open(exchange: Exchange) -> None:
    exchange.on_quote(quote("100.000", "100.000"))
    exchange.market_order(order("5"), 1)
    filled = exchange.market_order(order("-2"), 2).filled
    assert filled is not None
    assert filled.trades_closed is None
    assert filled.trade_reduced is not None
    trade = exchange.account.open_trades[0]
    assert (trade.units, trade.average_close_price, trade.close_time) == (D(3), D(100), None)


@pytest.mark.parametrize(
    ("fields", "price", "reason"),
    [
        (order("1"), quote("1.000", "1.010", tradeable=False), CancelReason.MARKET_HALTED),
        (order("11"), quote("1.000", "1.010", liquidity=10), CancelReason.INSUFFICIENT_LIQUIDITY),
        (
            order("1", timeInForce="IOC"),
            quote("1.000", "1.010", liquidity=0),
            CancelReason.INSUFFICIENT_LIQUIDITY,
        ),
        (order("1", priceBound="1.009"), quote("1.000", "1.010"), CancelReason.BOUNDS_VIOLATION),
        (order("-1", priceBound="1.001"), quote("1.000", "1.010"), CancelReason.BOUNDS_VIOLATION),
        (
            order("1", positionFill="REDUCE_ONLY"),
            quote("1.000", "1.010"),
            CancelReason.POSITION_CLOSEOUT_FAILED,
        ),
        (order("100000000"), quote("1.000", "1.010", liquidity=10**9), CancelReason.INSUFFICIENT_MARGIN),
        (
            order("1", stopLossOnFill={"price": "1.000"}),
            quote("1.000", "1.010"),
            CancelReason.STOP_LOSS_ON_FILL_LOSS,
        ),
        (
            order("1", takeProfitOnFill={"price": "0.999"}),
            quote("1.000", "1.010"),
            CancelReason.TAKE_PROFIT_ON_FILL_LOSS,
        ),
    ],
)
def test_an_accepted_order_may_be_cancelled_instead_of_filled(
    exchange: Exchange, fields: MarketOrderFields, price: object, reason: CancelReason
) -> None:
    exchange.on_quote(price)  # type: ignore[arg-type]
    answer = exchange.market_order(fields, 1)
    assert answer.created is not None
    assert answer.filled is None
    assert answer.cancelled is not None
    assert answer.cancelled.reason is reason
    assert ids(answer) == [3, 4]
    assert exchange.account.orders[3].state is OrderState.CANCELLED
    assert exchange.account.units == 0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (order("0"), RejectReason.UNITS_INVALID),
        (order("1.0"), RejectReason.UNITS_PRECISION_EXCEEDED),
        (order("100000001"), RejectReason.UNITS_LIMIT_EXCEEDED),
        (order("1", instrument="EUR_USD"), RejectReason.INSTRUMENT_UNKNOWN),
        (order("1", timeInForce="GTC"), RejectReason.TIME_IN_FORCE_INVALID),
        (order("1", priceBound="188.0000"), RejectReason.PRICE_BOUND_PRECISION_EXCEEDED),
        (order("1", priceBound="0"), RejectReason.PRICE_BOUND_INVALID),
        (
            order("1", stopLossOnFill={"price": "188.12247999999999"}),
            RejectReason.STOP_LOSS_ON_FILL_PRICE_PRECISION_EXCEEDED,
        ),
        (
            order("1", stopLossOnFill={"price": "188.1", "distance": "0.1"}),
            RejectReason.STOP_LOSS_ON_FILL_PRICE_AND_DISTANCE_BOTH_SPECIFIED,
        ),
        (order("1", stopLossOnFill={}), RejectReason.STOP_LOSS_ON_FILL_PRICE_AND_DISTANCE_BOTH_MISSING),
        (
            order("1", takeProfitOnFill={"price": "188.1234"}),
            RejectReason.TAKE_PROFIT_ON_FILL_PRICE_PRECISION_EXCEEDED,
        ),
    ],
)
def test_an_invalid_order_is_rejected_and_takes_an_id(
    exchange: Exchange, fields: MarketOrderFields, reason: RejectReason
) -> None:
    exchange.on_quote(quote("188.000", "188.040"))
    answer = exchange.market_order(fields, 1)
    assert answer.rejected is not None
    assert answer.rejected.reject_reason is reason
    assert ids(answer) == [3]
    assert exchange.account.orders == {}


def test_an_ioc_order_fills_the_available_liquidity(exchange: Exchange) -> None:
    exchange.on_quote(quote("1.000", "1.010", liquidity=3))
    filled = exchange.market_order(order("5", timeInForce="IOC"), 1).filled
    assert filled is not None
    assert filled.units == 3
    assert exchange.account.units == 3


def test_reduce_only_never_opens(exchange: Exchange) -> None:
    exchange.on_quote(quote("1.000", "1.010"))
    exchange.market_order(order("2"), 1)
    assert exchange.market_order(order("-3", positionFill="REDUCE_ONLY"), 2).filled is None
    ioc = exchange.market_order(order("-3", positionFill="REDUCE_ONLY", timeInForce="IOC"), 3)
    assert ioc.filled is not None
    assert ioc.filled.units == -2
    assert exchange.account.units == 0


def test_open_only_refuses_an_opposite_position(exchange: Exchange) -> None:
    exchange.on_quote(quote("1.000", "1.010"))
    exchange.market_order(order("2"), 1)
    answer = exchange.market_order(order("-1", positionFill="OPEN_ONLY"), 2)
    assert answer.cancelled is not None
    assert answer.cancelled.reason is CancelReason.FIFO_VIOLATION


def test_a_market_order_with_a_used_client_id_is_executed_again(exchange: Exchange) -> None:
    exchange.on_quote(quote("1.000", "1.010"))
    for _ in range(2):
        assert exchange.market_order(order("1", clientExtensions={"id": "intent"}), 1).filled is not None
    assert exchange.account.units == 2


def test_the_client_id_of_an_open_trade_cancels_a_second_opening(exchange: Exchange) -> None:
    exchange.on_quote(quote("1.000", "1.010"))
    fields = order("1", tradeClientExtensions={"id": "intent"})
    exchange.market_order(fields, 1)
    second = exchange.market_order(fields, 2)
    assert second.cancelled is not None
    assert second.cancelled.reason is CancelReason.CLIENT_TRADE_ID_ALREADY_EXISTS
    exchange.close_position(long=True, units=None, extensions=None, time=3)
    assert exchange.market_order(fields, 4).filled is not None  # free again once the trade is closed


def test_an_order_with_the_client_id_of_a_pending_order_is_rejected(exchange: Exchange) -> None:
    exchange.on_quote(quote("1.000", "1.010"))
    stop = {"price": "0.900", "clientExtensions": {"id": "stop"}}
    exchange.market_order(order("1", stopLossOnFill=stop), 1)
    answer = exchange.market_order(order("1", clientExtensions={"id": "stop"}), 2)
    assert answer.rejected is not None
    assert answer.rejected.reject_reason is RejectReason.CLIENT_ORDER_ID_ALREADY_EXISTS


def guarded(exchange: Exchange) -> None:
    """A long unit at 188.040 with stop 187.900 and target 188.200: orders 5 (target) and 6 (stop)."""
    exchange.on_quote(quote("188.000", "188.040"))
    fields = order("1").model_copy(
        update={
            "stop_loss_on_fill": StopLossDetails(distance=D("0.140")),
            "take_profit_on_fill": TakeProfitDetails(price=D("188.200")),
        }
    )
    answer = exchange.market_order(fields, 1)
    assert [item.type for item in answer.transactions[2:]] == ["TAKE_PROFIT_ORDER", "STOP_LOSS_ORDER"]


def test_a_stop_loss_fills_at_the_price_of_the_gap_that_passed_it(exchange: Exchange) -> None:
    guarded(exchange)
    assert exchange.on_quote(quote("187.901", "187.941")) == ()
    booked = exchange.on_quote(quote("186.000", "186.040", time=9))
    assert [item.type for item in booked] == ["ORDER_FILL", "ORDER_CANCEL"]
    fill = exchange.account.orders[6].filled
    assert fill is not None
    assert (fill.reason, fill.price, fill.pl, fill.time) == ("STOP_LOSS_ORDER", D("186.000"), D("-2.0400"), 9)
    cancelled = exchange.account.orders[5].cancelled
    assert cancelled is not None
    assert cancelled.reason is CancelReason.LINKED_TRADE_CLOSED
    assert exchange.account.pending == {}


def test_a_take_profit_fills_when_the_bid_reaches_it(exchange: Exchange) -> None:
    guarded(exchange)
    assert exchange.on_quote(quote("188.199", "188.239")) == ()
    exchange.on_quote(quote("188.200", "188.240"))
    assert exchange.account.orders[5].state is OrderState.FILLED
    assert exchange.account.orders[6].state is OrderState.CANCELLED
    assert exchange.account.balance == D("1000000.1600")


def test_no_stop_triggers_while_the_market_is_closed(exchange: Exchange) -> None:
    guarded(exchange)
    assert exchange.on_quote(quote("180.000", "180.040", tradeable=False)) == ()
    assert exchange.account.units == 1


def test_closing_the_position_cancels_its_exits(exchange: Exchange) -> None:
    guarded(exchange)
    answer = exchange.close_position(long=True, units=None, extensions=ClientExtensions(id="out"), time=5)
    assert [item.type for item in answer.transactions] == [
        "MARKET_ORDER",
        "ORDER_FILL",
        "ORDER_CANCEL",
        "ORDER_CANCEL",
    ]
    assert answer.filled is not None
    assert answer.filled.reason == "MARKET_ORDER_POSITION_CLOSEOUT"
    found = exchange.account.order_by_client_id("out")
    assert found is not None
    assert found.filled == answer.filled


def test_closing_a_position_or_trade_that_does_not_exist_is_rejected(exchange: Exchange) -> None:
    exchange.on_quote(quote("1.000", "1.010"))
    flat = exchange.close_position(long=False, units=None, extensions=None, time=1)
    assert flat.rejected is not None
    assert flat.rejected.reject_reason is RejectReason.CLOSEOUT_POSITION_DOESNT_EXIST
    exchange.market_order(order("2"), 2)
    more = exchange.close_position(long=True, units=D(3), extensions=None, time=3)
    assert more.rejected is not None
    assert more.rejected.reject_reason is RejectReason.CLOSEOUT_POSITION_UNITS_EXCEED_POSITION_SIZE
    assert exchange.close_trade(None, None, 4).rejected is not None


def test_a_trade_can_be_closed_out_of_order(exchange: Exchange) -> None:
    exchange.on_quote(quote("1.000", "1.010"))
    exchange.market_order(order("1"), 1)
    exchange.market_order(order("1"), 2)
    younger = exchange.account.open_trades[1]
    closed = exchange.close_trade(younger, None, 3).filled
    assert closed is not None
    assert closed.reason == "MARKET_ORDER_TRADE_CLOSE"
    assert [trade.id for trade in exchange.account.open_trades] == [4]


def test_a_pending_order_is_cancelled_once(exchange: Exchange) -> None:
    guarded(exchange)
    first = exchange.cancel_order(exchange.account.orders[6], 2)
    assert first.cancelled is not None
    assert first.cancelled.reason is CancelReason.CLIENT_REQUEST
    assert exchange.account.trades[4].stop_loss is None
    second = exchange.cancel_order(exchange.account.orders[6], 3)
    assert second.rejected is not None
    assert second.rejected.reject_reason is RejectReason.ORDER_DOESNT_EXIST
