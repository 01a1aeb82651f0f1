"""Reads requests: bounded bodies, strict JSON, and OANDA's error texts."""

import re
from decimal import Decimal
from typing import Annotated, Literal, TypeVar

from fastapi import Depends, HTTPException, Query, Request
from pydantic import BaseModel, Field, ValidationError

from services.broker.exchange.transactions import (
    ClientExtensions,
    MarketOrderFields,
    StopLossDetails,
    TakeProfitDetails,
)
from services.broker.venue import Venue
from services.broker.wire import Number, WireModel
from shared.adapters.oanda.records import NANOSECONDS, parse_time
from shared.messages.validation import first_fault

MAX_BODY_BYTES = 64 * 1024

BAD_REQUEST, FORBIDDEN, NOT_FOUND, TOO_LARGE, OUT_OF_RANGE = 400, 403, 404, 413, 416

_UNIX_TIME = re.compile(r"([0-9]{1,11})(?:\.([0-9]{1,9}))?")
_LAST_TIME_NS = 4_102_444_800 * NANOSECONDS  # 2100-01-01

_M = TypeVar("_M", bound=BaseModel)


async def venue_of(request: Request) -> Venue:
    """The application's running market."""
    venue: Venue = request.app.state.venue
    return venue


async def known_account(account: str, request: Request) -> Venue:
    """The market, if the path contains its account.

    Raises:
        HTTPException: 403, the path contains another account.
    """
    venue = await venue_of(request)
    if account != venue.exchange.terms.account_id:
        raise HTTPException(FORBIDDEN, "The provided request was forbidden.")
    return venue


OfAccount = Annotated[Venue, Depends(known_account)]
OfMarket = Annotated[Venue, Depends(venue_of)]


class MarketOrderRequest(WireModel):
    """Field `order` of `POST /orders`."""

    type: Literal["MARKET"]
    instrument: str = Field(max_length=32)
    units: Number
    time_in_force: str = Field("FOK", max_length=8)
    price_bound: Number | None = None
    position_fill: Literal["DEFAULT", "OPEN_ONLY", "REDUCE_FIRST", "REDUCE_ONLY"] = "DEFAULT"
    client_extensions: ClientExtensions | None = None
    take_profit_on_fill: TakeProfitDetails | None = None
    stop_loss_on_fill: StopLossDetails | None = None
    trade_client_extensions: ClientExtensions | None = None

    def fields(self) -> MarketOrderFields:
        """The order for the exchange."""
        return MarketOrderFields.model_validate({name: value for name, value in self if name != "type"})


class OrderBody(WireModel):
    """Body of `POST /orders`."""

    order: MarketOrderRequest


class PositionCloseBody(WireModel):
    """Body of `PUT /positions/{instrument}/close`: ALL, NONE or a number of units for each side."""

    long_units: str | None = Field(None, max_length=40)
    long_client_extensions: ClientExtensions | None = None
    short_units: str | None = Field(None, max_length=40)
    short_client_extensions: ClientExtensions | None = None


class TradeCloseBody(WireModel):
    """Body of `PUT /trades/{id}/close`; an empty body closes the complete trade."""

    units: str = Field("ALL", max_length=40)


async def read_body(request: Request, model: type[_M]) -> _M:
    """The JSON body as a model.

    Raises:
        HTTPException: 413 if the body is larger than 64 KiB; 400 if it is invalid. The text names the field.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(TOO_LARGE, f"The request body is larger than {MAX_BODY_BYTES} bytes")
    try:
        return model.model_validate_json(bytes(body) or b"{}")
    except ValidationError as invalid:
        raise HTTPException(BAD_REQUEST, invalid_text(invalid)) from invalid


def invalid_text(invalid: ValidationError) -> str:
    """OANDA's text for an invalid value, with the reason."""
    fault = first_fault(invalid)
    if not fault.where:
        return f"Invalid JSON: {fault.message}"
    return f"Invalid value specified for '{fault.where}': {fault.message}"


def invalid_value(name: str, hint: str = "") -> HTTPException:
    """An error 400 with OANDA's text."""
    return HTTPException(BAD_REQUEST, f"Invalid value specified for '{name}'{'. ' if hint else ''}{hint}")


def closing_units(text: str | None, name: str) -> Decimal | None:
    """Units to close: None for ALL, 0 for NONE.

    Raises:
        HTTPException: 400, the text is neither of these words nor a number above 0.
    """
    if text is None or text == "NONE":
        return Decimal(0)
    if text == "ALL":
        return None
    if re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,10})?", text, re.ASCII) and Decimal(text) > 0:
        return Decimal(text)
    raise invalid_value(name, "Expected ALL, NONE or a number of units above 0")


def read_time_ns(text: str | None, name: str) -> int | None:
    """A time in RFC 3339 or in UNIX seconds.

    Raises:
        HTTPException: 400, the text is neither, or the time is not from 1970 to 2099.
    """
    if text is None:
        return None
    unix = _UNIX_TIME.fullmatch(text)
    try:
        time_ns = (
            int(unix[1]) * NANOSECONDS + int((unix[2] or "").ljust(9, "0")) if unix else parse_time(text)
        )
    except ValueError as broken:
        raise invalid_value(name) from broken
    if not 0 <= time_ns < _LAST_TIME_NS:
        raise invalid_value(name)
    return time_ns


def read_id(text: str, name: str) -> int:
    """A numeric id.

    Raises:
        HTTPException: 400, the text is not an id.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise invalid_value(name)
    return int(text)


def read_ids(text: str | None) -> set[int] | None:
    """A comma-separated list of ids, or None."""
    return None if text is None else {read_id(part, "ids") for part in text.split(",")}


Count = Annotated[int, Query(ge=1, le=500)]
