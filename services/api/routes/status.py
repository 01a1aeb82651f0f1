"""The state of the system: status, positions, health, metrics."""

from http import HTTPStatus

from fastapi import APIRouter, HTTPException, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from services.api.metrics import exposition
from services.api.routes.parameters import FromGateway
from services.api.state import RedisUnavailableError
from services.api.views import Positions, Status

router = APIRouter(tags=["status"])


class Health(BaseModel):
    """The process answers."""

    status: str = "ok"


@router.get("/status")
async def status(gateway: FromGateway) -> Status:
    """The state of the system at this moment; also answers, degraded, while Redis is unavailable."""
    return await gateway.status()


@router.get("/positions")
async def positions(gateway: FromGateway) -> Positions:
    """The position of the trader."""
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


@router.get("/readyz", responses={503: {"description": "Redis does not answer"}})
async def readyz(gateway: FromGateway) -> Health:
    """The process and Redis answer; 503 if Redis does not."""

    async def nothing() -> None:
        return None

    try:
        await gateway.ask(nothing)
    except RedisUnavailableError as unavailable:
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "Redis does not answer") from unavailable
    return Health()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(gateway: FromGateway) -> Response:
    """Prometheus metrics: those of the gateway, and those of all services from heartbeats and streams."""
    return Response(exposition(await gateway.status()), media_type=CONTENT_TYPE_LATEST)
