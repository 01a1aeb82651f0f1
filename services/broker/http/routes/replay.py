"""The replay's own routes, which OANDA does not have: its progress, and the acknowledgement of a bar."""

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
    """Opening time of the bar that the client has decided on."""

    time: str = Field(max_length=40)


@router.get("")
async def replay(venue: OfMarket) -> Json:
    """Progress of the replay, in simulated time."""
    return venue.status()


@router.post("/acknowledge")
async def acknowledge(venue: OfMarket, request: Request) -> Json:
    """Acknowledge the bar that the client decided on, so that the replay may continue. Idempotent."""
    time_ns = read_time_ns((await read_body(request, Acknowledgement)).time, "time")
    if time_ns is None:
        raise invalid_value("time")
    try:
        venue.acknowledge(time_ns // SECOND_NS)
    except BrokerError as early:
        raise HTTPException(BAD_REQUEST, str(early)) from early
    return venue.status()
