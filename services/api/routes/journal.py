"""Pages of the audit streams: trades, decisions, alerts, dead letters."""

from functools import partial
from typing import TypeVar

from fastapi import APIRouter

from services.api.routes.parameters import Before, FromGateway, Limit
from services.api.state import Gateway
from services.api.views import Item, Page
from shared.messages.schemas import AlertRaised, DeadLettered, DecisionMade, Message, TradeClosed
from shared.messages.streams import ALERTS, DEAD, DECISIONS, TRADES, Stream

router = APIRouter(tags=["journal"])

M = TypeVar("M", bound=Message)

#: Maximum bytes of the messages in a page of several entries; `next` gives the entries after them.
MAX_PAGE_BYTES = 1_000_000

#: Number of entries in the first read; their mean size determines the number in the next.
_FIRST_READ = 16


@router.get("/trades")
async def trades(gateway: FromGateway, limit: Limit = 50, before: Before = None) -> Page[Item[TradeClosed]]:
    """Closed trades, newest first."""
    return await _page(gateway, TRADES, limit, before)


@router.get("/decisions")
async def decisions(
    gateway: FromGateway, limit: Limit = 50, before: Before = None
) -> Page[Item[DecisionMade]]:
    """The trader's decisions, newest first."""
    return await _page(gateway, DECISIONS, limit, before)


@router.get("/alerts")
async def alerts(gateway: FromGateway, limit: Limit = 50, before: Before = None) -> Page[Item[AlertRaised]]:
    """Raised alerts, newest first."""
    return await _page(gateway, ALERTS, limit, before)


@router.get("/dead")
async def dead(gateway: FromGateway, limit: Limit = 50, before: Before = None) -> Page[Item[DeadLettered]]:
    """Entries that could not be processed, with the reason, newest first."""
    return await _page(gateway, DEAD, limit, before)


async def _page(gateway: Gateway, stream: Stream[M], limit: int, before: str | None) -> Page[Item[M]]:
    """A page of at most `limit` entries and `MAX_PAGE_BYTES`; a larger first entry is a page of its own."""
    items: list[Item[M]] = []
    page_bytes = read_bytes = 0
    position = before or "+"
    while True:
        room = limit + 1 - len(items)  # one more than the page holds, to see whether there is another page
        mean_bytes = max(1, read_bytes // max(1, len(items)))
        count = min(room, max(1, MAX_PAGE_BYTES // mean_bytes) if items else _FIRST_READ)
        entries = await gateway.ask(partial(gateway.bus.recent, stream, count=count, before=position))
        for entry in entries:
            size = len(entry.fields[b"body"])
            if len(items) == limit or (items and page_bytes + size > MAX_PAGE_BYTES):
                return Page(items=items, next=items[-1].entry_id)
            items.append(Item(entry_id=entry.entry_id, message=entry.message))
            page_bytes += size
            read_bytes += sum(map(len, entry.fields.values()))
        if len(entries) < count:
            return Page(items=items, next=None)
        position = entries[-1].entry_id
