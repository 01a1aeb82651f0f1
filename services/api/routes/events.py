"""What happens, as it happens (server-sent events)."""

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
            "every place for a listener is taken, or every place for this address",
            {"Retry-After": "10"},
        ) from full


@router.get("/events", response_class=EventSourceResponse)
async def events(
    happenings: Annotated[AsyncIterator[Event], Depends(_listen)],
) -> AsyncIterator[ServerSentEvent]:
    """Every entry of the small streams from now on, or after `Last-Event-ID`.

    Names: checkpoint, validation, promotion, trade, decision, control, alert, dead; the data is the
    message. `reset` says that too much was missed: read everything anew.
    """
    yield ServerSentEvent(comment="listening", retry=_RETRY_MS)
    async for event in happenings:
        yield ServerSentEvent(raw_data=event.data, event=event.name, id=event.event_id)
