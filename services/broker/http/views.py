"""Read-only views of the account in OANDA's JSON."""

from collections.abc import Iterable, Sequence
from decimal import Decimal

from services.broker.exchange.account import Account, Order, OrderState, Trade
from services.broker.exchange.exchange import Exchange
from services.broker.exchange.planning import ZERO, Quote, margin, nav, unrealized_pl
from services.broker.exchange.transactions import (
    MarketOrderCreated,
    OrderCancelled,
    OrderFilled,
    StopLossCreated,
    TakeProfitCreated,
)
from services.broker.wire import Json, money
from shared.adapters.oanda.records import format_time

#: Fields of a transaction that are not part of an order.
_HEAD = {
    "type",
    "id",
    "time",
    "accountID",
    "userID",
    "batchID",
    "requestID",
    "reason",
    "orderFillTransactionID",
}


def price_json(exchange: Exchange, quote: Quote) -> Json:
    """Fields of a polled or streamed price. The caller adds `type`."""
    bid, ask = f"{quote.bid:f}", f"{quote.ask:f}"
    return {
        "instrument": exchange.rules.name,
        "time": format_time(quote.time),
        "status": "tradeable" if quote.tradeable else "non-tradeable",
        "tradeable": quote.tradeable,
        "bids": [{"price": bid, "liquidity": quote.liquidity}],
        "asks": [{"price": ask, "liquidity": quote.liquidity}],
        "closeoutBid": bid,
        "closeoutAsk": ask,
        "quoteHomeConversionFactors": {"positiveUnits": "1", "negativeUnits": "1"},
    }


def state_json(exchange: Exchange) -> Json:
    """Values that depend on the price: profit, net asset value and margin."""
    quote = exchange.newest_price()
    worth, units = nav(exchange.account, quote), exchange.account.units
    used = margin(units, quote, exchange.terms)
    free = _text(max(ZERO, worth - used))
    value = _text(abs(units) * (quote.bid + quote.ask) / 2)
    share = f"{(used / worth / 2 if worth > 0 else ZERO):.4f}"
    return {
        "unrealizedPL": _text(unrealized_pl(exchange.account, quote)),
        "NAV": _text(worth),
        "marginUsed": _text(used),
        "marginAvailable": free,
        "positionValue": value,
        "marginCloseoutUnrealizedPL": _text(unrealized_pl(exchange.account, quote)),
        "marginCloseoutNAV": _text(worth),
        "marginCloseoutMarginUsed": _text(used),
        "marginCloseoutPercent": share,
        "marginCloseoutPositionValue": value,
        "withdrawalLimit": free,
        "marginCallMarginUsed": _text(used),
        "marginCallPercent": share,
    }


def summary_json(exchange: Exchange) -> Json:
    """Field `account` of a summary."""
    account, terms = exchange.account, exchange.terms
    summary = {
        "id": terms.account_id,
        "alias": "paper",
        "currency": account.currency,
        "balance": _text(account.balance),
        "createdByUserID": terms.user_id,
        "createdTime": format_time(account.created_time),
        "guaranteedStopLossOrderMode": "DISABLED",
        "pl": _text(account.realized_pl),
        "resettablePL": _text(account.realized_pl),
        "financing": _text(ZERO),
        "commission": _text(ZERO),
        "guaranteedExecutionFees": _text(ZERO),
        "marginRate": f"{terms.margin_rate:f}",
        "openTradeCount": len(account.open_ids),
        "openPositionCount": 1 if account.open_ids else 0,
        "pendingOrderCount": len(account.pending),
        "hedgingEnabled": False,
        "lastTransactionID": str(account.last_id),
        **state_json(exchange),
    }
    if account.last_fill_time is not None:
        summary["lastOrderFillTimestamp"] = format_time(account.last_fill_time)
    return summary


def account_json(exchange: Exchange) -> Json:
    """Field `account` of a full snapshot."""
    return {
        **summary_json(exchange),
        "trades": [trade_json(exchange, trade) for trade in exchange.account.open_trades],
        "positions": positions_json(exchange),
        "orders": [order_json(exchange.account.orders[number]) for number in exchange.account.pending],
    }


def changes_json(exchange: Exchange, since: int) -> Json:
    """Changes after a transaction id, and the present values that depend on the price."""
    account = exchange.account
    new = account.transactions[since:]
    fills = [item for item in new if isinstance(item, OrderFilled)]
    parts = [part for fill in fills for part in (*(fill.trades_closed or ()), fill.trade_reduced) if part]
    touched = [account.trades[number] for number in dict.fromkeys(part.trade_id for part in parts)]
    opened = [account.trades[fill.trade_opened.trade_id] for fill in fills if fill.trade_opened]
    cancelled = [item.order_id for item in new if isinstance(item, OrderCancelled)]
    created = [
        item.id for item in new if isinstance(item, MarketOrderCreated | StopLossCreated | TakeProfitCreated)
    ]

    def orders(numbers: Iterable[int]) -> list[Json]:
        return [order_json(account.orders[number]) for number in numbers]

    def trades(found: Iterable[Trade]) -> list[Json]:
        return [trade_json(exchange, trade) for trade in found]

    quote = exchange.newest_price()
    return {
        "changes": {
            "ordersCreated": orders(created),
            "ordersCancelled": orders(cancelled),
            "ordersFilled": orders(fill.order_id for fill in fills),
            "ordersTriggered": [],
            "tradesOpened": trades(opened),
            "tradesReduced": trades(trade for trade in touched if trade.is_open),
            "tradesClosed": trades(trade for trade in touched if not trade.is_open),
            "positions": positions_json(exchange) if fills else [],
            "transactions": [item.json_object() for item in new],
        },
        "state": {
            **state_json(exchange),
            "orders": [],
            "trades": [
                {
                    "id": str(trade.id),
                    "unrealizedPL": _text(trade.unrealized_pl(quote.bid, quote.ask)),
                    "marginUsed": _text(margin(trade.units, quote, exchange.terms)),
                }
                for trade in account.open_trades
            ],
            "positions": [
                {"instrument": item["instrument"], "netUnrealizedPL": item["unrealizedPL"]}
                for item in positions_json(exchange)
                if account.open_ids
            ],
        },
        "lastTransactionID": str(account.last_id),
    }


def positions_json(exchange: Exchange) -> list[Json]:
    """Positions of all instruments ever traded: here, at most one."""
    return [position_json(exchange)] if exchange.account.trades else []


def position_json(exchange: Exchange) -> Json:
    """The position with both sides; at most one of them has units."""
    account, quote = exchange.account, exchange.newest_price()
    trades = list(account.trades.values())
    longs = [trade for trade in trades if trade.initial_units > 0]
    shorts = [trade for trade in trades if trade.initial_units < 0]
    zero = _text(ZERO)
    return {
        "instrument": exchange.rules.name,
        "pl": _text(account.realized_pl),
        "unrealizedPL": _text(unrealized_pl(exchange.account, quote)),
        "marginUsed": _text(margin(account.units, quote, exchange.terms)),
        "resettablePL": _text(account.realized_pl),
        "financing": zero,
        "commission": zero,
        "guaranteedExecutionFees": zero,
        "long": _side_json(longs, exchange, quote),
        "short": _side_json(shorts, exchange, quote),
    }


def _side_json(trades: Sequence[Trade], exchange: Exchange, quote: Quote) -> Json:
    held = [trade for trade in trades if trade.is_open]
    units = sum((trade.units for trade in held), ZERO)
    realized = sum((trade.realized_pl for trade in trades), ZERO)
    unrealized = sum((trade.unrealized_pl(quote.bid, quote.ask) for trade in held), ZERO)
    side: Json = {
        "units": f"{units:f}",
        "pl": _text(realized),
        "unrealizedPL": _text(unrealized),
        "resettablePL": _text(realized),
        "financing": _text(ZERO),
        "guaranteedExecutionFees": _text(ZERO),
    }
    if held:
        value = sum((trade.units * trade.price for trade in held), ZERO)
        # An average price may need one more decimal than a price.
        side["averagePrice"] = f"{value / units:.{exchange.rules.display_precision + 1}f}"
        side["tradeIDs"] = [str(trade.id) for trade in held]
    return side


def trade_json(exchange: Exchange, trade: Trade, *, details: bool = False) -> Json:
    """A trade with the ids of its exit orders, or with the orders themselves."""
    quote = exchange.newest_price()
    view: Json = {
        "id": str(trade.id),
        "instrument": trade.instrument,
        "price": f"{trade.price:f}",
        "openTime": format_time(trade.open_time),
        "state": "OPEN" if trade.is_open else "CLOSED",
        "initialUnits": f"{trade.initial_units:f}",
        "initialMarginRequired": _text(trade.initial_margin),
        "currentUnits": f"{trade.units:f}",
        "realizedPL": _text(trade.realized_pl),
        "financing": _text(ZERO),
    }
    if trade.is_open:
        view["unrealizedPL"] = _text(trade.unrealized_pl(quote.bid, quote.ask))
        view["marginUsed"] = _text(margin(trade.units, quote, exchange.terms))
    if trade.average_close_price is not None:
        view["averageClosePrice"] = f"{trade.average_close_price:.{exchange.rules.display_precision}f}"
        view["closingTransactionIDs"] = [str(number) for number in trade.closing_ids]
    if trade.close_time is not None:
        view["closeTime"] = format_time(trade.close_time)
    if trade.client_extensions is not None:
        view["clientExtensions"] = trade.client_extensions.json_object()
    for name, number in (("takeProfitOrder", trade.take_profit), ("stopLossOrder", trade.stop_loss)):
        if number is not None and details:
            view[name] = order_json(exchange.account.orders[number])
        elif number is not None:
            view[f"{name}ID"] = str(number)
    return view


def order_json(order: Order) -> Json:
    """An order as requested, and its outcome."""
    request = {name: value for name, value in order.created.json_object().items() if name not in _HEAD}
    view: Json = {
        "id": str(order.created.id),
        "createTime": format_time(order.created.time),
        "type": order.created.type.removesuffix("_ORDER"),
        "state": order.state.value,
        **request,
    }
    if order.filled is not None:
        fill = order.filled
        view |= {"fillingTransactionID": str(fill.id), "filledTime": format_time(fill.time)}
        if fill.trade_opened is not None:
            view["tradeOpenedID"] = str(fill.trade_opened.trade_id)
        if fill.trade_reduced is not None:
            view["tradeReducedID"] = str(fill.trade_reduced.trade_id)
        if fill.trades_closed:
            view["tradeClosedIDs"] = [str(part.trade_id) for part in fill.trades_closed]
    if order.cancelled is not None:
        view |= {
            "cancellingTransactionID": str(order.cancelled.id),
            "cancelledTime": format_time(order.cancelled.time),
        }
    return view


def matching_orders(
    account: Account, state: str, ids: set[int] | None, before: int | None, count: int
) -> list[Order]:
    """Orders of a list request, the newest first."""
    wanted = None if state == "ALL" else OrderState(state)
    found = [
        order
        for number, order in account.orders.items()
        if (wanted is None or order.state is wanted)
        and (ids is None or number in ids)
        and (before is None or number < before)
    ]
    return found[::-1][:count]


def matching_trades(
    account: Account, state: str, ids: set[int] | None, before: int | None, count: int
) -> list[Trade]:
    """Trades of a list request, the newest first."""
    found = [
        trade
        for number, trade in account.trades.items()
        if (state == "ALL" or trade.is_open == (state == "OPEN"))
        and (ids is None or number in ids)
        and (before is None or number < before)
    ]
    return found[::-1][:count]


def _text(amount: Decimal) -> str:
    return f"{money(amount):f}"
