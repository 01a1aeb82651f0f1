"""Orders, and closing positions and trades."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from starlette.responses import JSONResponse, Response

from services.broker.exchange.account import Order
from services.broker.exchange.exchange import Answer
from services.broker.http.requests import (
    BAD_REQUEST,
    NOT_FOUND,
    Count,
    OfAccount,
    OrderBody,
    PositionCloseBody,
    TradeCloseBody,
    closing_units,
    invalid_value,
    read_body,
    read_id,
    read_ids,
)
from services.broker.http.routes.account import find_trade
from services.broker.http.views import matching_orders, order_json
from services.broker.venue import Venue
from services.broker.wire import Json

router = APIRouter(prefix="/v3/accounts/{account}")

CREATED, OK = 201, 200


@router.post("/orders")
async def create_order(venue: OfAccount, request: Request) -> Response:
    """Execute a market order: 201 with a fill or a cancellation, 400 with a rejection."""
    body = await read_body(request, OrderBody)
    await venue.faults.delay()
    answer = venue.market_order(body.order.fields())
    return _answer(venue, answer, ok=CREATED, refused=BAD_REQUEST)


@router.get("/orders")
async def list_orders(
    venue: OfAccount,
    ids: str | None = None,
    state: str = "PENDING",
    instrument: str | None = None,
    count: Count = 50,
    before: Annotated[str | None, Query(alias="beforeID")] = None,
) -> Json:
    """Orders, the newest first."""
    if state not in ("PENDING", "FILLED", "CANCELLED", "ALL"):
        raise invalid_value("state")
    before_id = None if before is None else read_id(before, "beforeID")
    found = matching_orders(venue.exchange.account, state, read_ids(ids), before_id, count)
    if instrument not in (None, venue.exchange.rules.name):
        found = []
    return {"orders": [order_json(order) for order in found], **venue.last_transaction}


@router.get("/pendingOrders")
async def pending_orders(venue: OfAccount) -> Json:
    """Every pending order, the newest first."""
    account = venue.exchange.account
    found = matching_orders(account, "PENDING", None, None, len(account.pending))
    return {"orders": [order_json(order) for order in found], **venue.last_transaction}


@router.get("/orders/{specifier}")
async def order_details(venue: OfAccount, specifier: str) -> Json:
    """One order by its id, or by @ and the client's id."""
    found = find_order(venue, specifier)
    if found is None:
        raise HTTPException(NOT_FOUND, "The order ID specified does not exist")
    return {"order": order_json(found), **venue.last_transaction}


@router.put("/orders/{specifier}/cancel")
async def cancel_order(venue: OfAccount, specifier: str) -> Response:
    """Cancel a pending order."""
    answer = venue.cancel_order(find_order(venue, specifier))
    return _answer(venue, answer, ok=OK, refused=NOT_FOUND, reject="orderCancelRejectTransaction")


@router.put("/positions/{instrument}/close")
async def close_position(venue: OfAccount, instrument: str, request: Request) -> Response:
    """Close one side of the position, or both. The account nets trades, so at most one side has units."""
    body = await read_body(request, PositionCloseBody)
    if instrument != venue.exchange.rules.name:
        raise HTTPException(NOT_FOUND, "The position specified does not exist")
    sides = (
        (True, closing_units(body.long_units, "longUnits"), body.long_client_extensions),
        (False, closing_units(body.short_units, "shortUnits"), body.short_client_extensions),
    )
    closes = [(long, units, extensions) for long, units, extensions in sides if units != 0]
    if not closes:
        raise HTTPException(BAD_REQUEST, "Neither longUnits nor shortUnits requests a close")
    await venue.faults.delay()
    merged: Json = {}
    numbers: list[str] = []
    for long, units, extensions in closes:
        answer = venue.close_position(long=long, units=units, extensions=extensions)
        side = "long" if long else "short"
        merged |= _parts(answer, f"{side}Order", f"{side}OrderRejectTransaction")
        numbers += [str(item.id) for item in answer.transactions]
    merged |= {"relatedTransactionIDs": numbers, **venue.last_transaction}
    return JSONResponse(merged, NOT_FOUND if "errorCode" in merged else OK)


@router.put("/trades/{specifier}/close")
async def close_trade(venue: OfAccount, specifier: str, request: Request) -> Response:
    """Close a trade, completely or in part."""
    body = await read_body(request, TradeCloseBody)
    units = closing_units(body.units, "units")
    if units == 0:
        raise invalid_value("units", "Expected ALL or a number of units above 0")
    await venue.faults.delay()
    answer = venue.close_trade(find_trade(venue, specifier), units)
    return _answer(venue, answer, ok=OK, refused=NOT_FOUND)


def find_order(venue: Venue, specifier: str) -> Order | None:
    """The order that a path names by its id, or by @ and the client's id."""
    account = venue.exchange.account
    if specifier.startswith("@"):
        return account.order_by_client_id(specifier[1:])
    return account.orders.get(read_id(specifier, "orderSpecifier"))


def _answer(
    venue: Venue, answer: Answer, *, ok: int, refused: int, reject: str = "orderRejectTransaction"
) -> Response:
    body = _parts(answer, "order", reject)
    body["relatedTransactionIDs"] = [str(item.id) for item in answer.transactions]
    body |= venue.last_transaction
    return JSONResponse(body, refused if answer.rejected else ok)


def _parts(answer: Answer, prefix: str, reject: str) -> Json:
    """The transactions of an answer, named after its request. A rejection adds an error code and a text."""
    named = {
        f"{prefix}CreateTransaction": answer.created,
        f"{prefix}FillTransaction": answer.filled,
        f"{prefix}CancelTransaction": answer.cancelled,
        reject: answer.rejected,
    }
    body: Json = {name: item.json_object() for name, item in named.items() if item is not None}
    if answer.rejected is not None:
        code = answer.rejected.reject_reason.value
        body |= {"errorCode": code, "errorMessage": f"The request was rejected: {code}"}
    return body
