"""The event stream (server-sent events)."""

from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Header, HTTPException, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from services.api.events import Event, TooManyListenersError
from services.api.routes.parameters import FromGateway

router = APIRouter(tags=["events"])

_RETRY_MS = 2_000


async def _listen(
    gateway: FromGateway,
    request: Request,
    last_event_id: Annotated[str | None, Header(max_length=512)] = None,
) -> AsyncIterator[AsyncIterator[Event]]:
    try:
        listening = gateway.events.listen(last_event_id, request.client.host if request.client else "")
        with listening as events:
            yield events
    except TooManyListenersError as full:
        raise HTTPException(
            HTTPStatus.TOO_MANY_REQUESTS,
            "too many event streams are open, in total or from this address; try again later",
            {"Retry-After": "10"},
        ) from full


@router.get("/events", response_class=EventSourceResponse)
async def events(
    events_to_send: Annotated[AsyncIterator[Event], Depends(_listen)],
) -> AsyncIterator[ServerSentEvent]:
    """Every new entry of the small streams, from now on or after `Last-Event-ID`.

    Event names: checkpoint, validation, promotion, trade, decision, control, alert, dead; the data is the
    message. `reset` means that missed events are no longer kept: read everything again.
    """
    yield ServerSentEvent(comment="listening", retry=_RETRY_MS)
    async for event in events_to_send:
        yield ServerSentEvent(raw_data=event.data, event=event.name, id=event.event_id)
