"""How the system is doing."""

from http import HTTPStatus

from fastapi import APIRouter, HTTPException, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from services.api.metrics import exposition
from services.api.routes.parameters import FromGateway
from services.api.state import RedisAwayError
from services.api.views import Positions, Status

router = APIRouter(tags=["status"])


class Health(BaseModel):
    """The process answers."""

    status: str = "ok"


@router.get("/status")
async def status(gateway: FromGateway) -> Status:
    """The whole system at this moment; answers, degraded, also while Redis is away."""
    return await gateway.status()


@router.get("/positions")
async def positions(gateway: FromGateway) -> Positions:
    """What the trader holds."""
    now = await gateway.status()
    return Positions(
        time=now.trader.heard_at if now.trader.detail else None,
        state=now.trader.state,
        detail=now.trader.detail,
        last_decision=now.trader.last_decision,
    )


@router.get("/healthz")
async def healthz() -> Health:
    """The process answers."""
    return Health()


@router.get("/readyz", responses={503: {"description": "Redis is away"}})
async def readyz(gateway: FromGateway) -> Health:
    """Redis answers too; 503 when it does not."""

    async def nothing() -> None:
        return None

    try:
        await gateway.ask(nothing)
    except RedisAwayError as away:
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "Redis does not answer") from away
    return Health()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(gateway: FromGateway) -> Response:
    """Prometheus metrics: the gateway's own, and what the heartbeats and streams say of the others."""
    return Response(exposition(await gateway.status()), media_type=CONTENT_TYPE_LATEST)
