"""Candles and prices, polled and streamed."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query
from starlette.responses import Response

from services.broker.http.requests import (
    BAD_REQUEST,
    NOT_FOUND,
    OfAccount,
    OfMarket,
    invalid_value,
    read_time_ns,
)
from services.broker.http.streams import LineStream
from services.broker.http.views import price_json
from services.broker.market.candles import GRANULARITIES, MAX_CANDLES, CandleQuery, candles
from services.broker.market.tape import SECOND_NS
from services.broker.venue import Venue
from services.broker.wire import Json
from shared.adapters.oanda.records import format_time

router = APIRouter(prefix="/v3")

LATEST_CANDLES = 2


@router.get("/instruments/{instrument}/candles")
async def instrument_candles(
    venue: OfMarket,
    instrument: str,
    price: str = "M",
    granularity: str = "S5",
    count: int | None = None,
    from_time: Annotated[str | None, Query(alias="from")] = None,
    to_time: Annotated[str | None, Query(alias="to")] = None,
    include_first: Annotated[bool, Query(alias="includeFirst")] = True,
) -> Json:
    """Candles of the instrument."""
    query = _query(venue, price, granularity, count, from_time, to_time, include_first)
    _check_instrument(venue, instrument)
    return {"instrument": instrument, "granularity": granularity, "candles": _candles(venue, query)}


@router.get("/accounts/{account}/instruments/{instrument}/candles")
async def account_candles(
    venue: OfAccount,
    instrument: str,
    price: str = "M",
    granularity: str = "S5",
    count: int | None = None,
    from_time: Annotated[str | None, Query(alias="from")] = None,
    to_time: Annotated[str | None, Query(alias="to")] = None,
    include_first: Annotated[bool, Query(alias="includeFirst")] = True,
) -> Json:
    """Candles of the instrument, which are the same for every account."""
    return await instrument_candles(
        venue, instrument, price, granularity, count, from_time, to_time, include_first
    )


@router.get("/accounts/{account}/candles/latest")
async def latest_candles(
    venue: OfAccount, specifications: Annotated[str, Query(alias="candleSpecifications", max_length=1_000)]
) -> Json:
    """The newest two candles for each specification, such as GBP_JPY:M1:BM."""
    found = []
    for specification in specifications.split(","):
        parts = specification.split(":")
        if len(parts) != 3:
            raise invalid_value("candleSpecifications")
        instrument, granularity, price = parts
        query = _query(venue, price, granularity, LATEST_CANDLES, None, None, True)
        _check_instrument(venue, instrument)
        found.append(
            {"instrument": instrument, "granularity": granularity, "candles": _candles(venue, query)}
        )
    return {"latestCandles": found}


@router.get("/accounts/{account}/pricing")
async def pricing(
    venue: OfAccount, instruments: Annotated[str, Query(max_length=1_000)], since: str | None = None
) -> Json:
    """The newest price; empty if it is not newer than `since`."""
    _check_instruments(venue, instruments)
    quote = venue.exchange.newest_price()
    since_ns = read_time_ns(since, "since")
    is_newer = since_ns is None or quote.time > since_ns
    return {
        "prices": [{"type": "PRICE", **price_json(venue.exchange, quote)}] if is_newer else [],
        "time": format_time(venue.now_ns),
    }


@router.get("/accounts/{account}/pricing/stream")
async def pricing_stream(
    venue: OfAccount, instruments: Annotated[str, Query(max_length=1_000)], snapshot: bool = True
) -> Response:
    """Prices as they change, one per line, and heartbeats."""
    _check_instruments(venue, instruments)
    first = [{"type": "PRICE", **price_json(venue.exchange, venue.exchange.newest_price())}]
    return LineStream(
        venue,
        venue.price_lines(),
        first=first if snapshot else [],
        heartbeat=lambda: {"type": "HEARTBEAT", "time": format_time(venue.now_ns)},
    )


def _query(
    venue: Venue,
    price: str,
    granularity: str,
    count: int | None,
    from_time: str | None,
    to_time: str | None,
    include_first: bool,
) -> CandleQuery:
    if granularity not in GRANULARITIES:
        raise invalid_value("granularity", f"The paper broker supports {', '.join(GRANULARITIES)}")
    if not 1 <= len(price) <= 3 or set(price) - set("MBA"):
        raise invalid_value("price")
    if count is not None and count > MAX_CANDLES:
        raise HTTPException(BAD_REQUEST, "Maximum value for 'count' exceeded")
    if count is not None and count < 1:
        raise invalid_value("count")
    from_ns, to_ns = read_time_ns(from_time, "from"), read_time_ns(to_time, "to")
    for name, moment in (("from", from_ns), ("to", to_ns)):
        if moment is not None and moment > venue.now_ns:
            raise invalid_value(name, "Time is in the future")
    if from_ns is not None and to_ns is not None:
        if count is not None:
            raise HTTPException(BAD_REQUEST, "'count' cannot be given with both 'from' and 'to'")
        if to_ns < from_ns:
            raise invalid_value("to", "Time is before 'from'")
        if (to_ns - from_ns) // SECOND_NS > MAX_CANDLES * GRANULARITIES[granularity]:
            raise HTTPException(BAD_REQUEST, "Maximum value for 'count' exceeded")
    return CandleQuery(granularity, price, count, from_ns, to_ns, include_first)


def _candles(venue: Venue, query: CandleQuery) -> list[Json]:
    complete = venue.newest_complete_bar()
    ticks = venue.ticks_of_bar(complete + 1)
    return candles(venue.tape, query, complete=complete, ticks=ticks, now_ns=venue.now_ns)


def _check_instrument(venue: Venue, instrument: str) -> None:
    if instrument != venue.exchange.rules.name:
        raise HTTPException(NOT_FOUND, f"The instrument {instrument[:32]!r} is not traded here")


def _check_instruments(venue: Venue, instruments: str) -> None:
    if any(name != venue.exchange.rules.name for name in instruments.split(",")):
        raise invalid_value("instruments")
