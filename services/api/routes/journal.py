"""The audit streams, page by page: trades, decisions, alerts, dead letters."""

from typing import TypeVar

from fastapi import APIRouter

from services.api.routes.parameters import Before, FromGateway, Limit
from services.api.state import Gateway
from services.api.views import Item, Page
from shared.adapters.entries import Entry
from shared.messages.schemas import AlertRaised, DeadLettered, DecisionMade, Message, TradeClosed
from shared.messages.streams import ALERTS, DEAD, DECISIONS, TRADES, Stream

router = APIRouter(tags=["journal"])

M = TypeVar("M", bound=Message)


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
    """Alerts that were raised, newest first."""
    return await _page(gateway, ALERTS, limit, before)


@router.get("/dead")
async def dead(gateway: FromGateway, limit: Limit = 50, before: Before = None) -> Page[Item[DeadLettered]]:
    """Entries that could not be processed, with the reason, newest first."""
    return await _page(gateway, DEAD, limit, before)


async def _page(gateway: Gateway, stream: Stream[M], limit: int, before: str | None) -> Page[Item[M]]:
    async def read() -> list[Entry[M]]:
        return await gateway.bus.recent(stream, count=limit + 1, before=before or "+")

    entries = await gateway.ask(read)
    items: list[Item[M]] = [Item(entry_id=entry.entry_id, message=entry.message) for entry in entries[:limit]]
    return Page(items=items, next=items[-1].entry_id if len(entries) > limit else None)
