"""The replay itself, outside OANDA's paths: where it stands, acknowledgement of a bar, faults."""

from fastapi import APIRouter, HTTPException, Request
from pydantic import Field

from services.broker.http.requests import (
    BAD_REQUEST,
    OfMarket,
    invalid_value,
    read_body,
    read_time_ns,
)
from services.broker.market.tape import SECOND_NS
from services.broker.wire import Json, WireModel
from shared.errors import BrokerError

router = APIRouter(prefix="/v3/replay")


class Acknowledgement(WireModel):
    """The bar that the client has decided on, by its opening time."""

    time: str = Field(max_length=40)


@router.get("")
async def replay(venue: OfMarket) -> Json:
    """Where the replay stands, in simulated time."""
    return venue.status()


@router.post("/acknowledge")
async def acknowledge(venue: OfMarket, request: Request) -> Json:
    """The bar is decided on: with pacing `acknowledged` the next one may come. Repeating it does nothing."""
    time_ns = read_time_ns((await read_body(request, Acknowledgement)).time, "time")
    if time_ns is None:
        raise invalid_value("time")
    try:
        venue.acknowledge(time_ns // SECOND_NS)
    except BrokerError as early:
        raise HTTPException(BAD_REQUEST, str(early)) from early
    return venue.status()
