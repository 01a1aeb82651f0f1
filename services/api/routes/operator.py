"""Orders of an operator: pause training, stop trading."""

from http import HTTPStatus
from typing import Annotated, Literal

import structlog
from fastapi import APIRouter, Body, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from services.api.routes.parameters import FromGateway, KeyedRoute, RequireKey
from services.api.state import ControlState, Gateway, RedisUnavailableError
from services.api.views import Accepted
from shared.messages.schemas import ControlIssued
from shared.messages.streams import CONTROL

log = structlog.get_logger()

#: How to stop trading while Redis is unavailable.
_KILL_WITHOUT_REDIS = ". To stop the trader now, run ./run kill on its host; it does not need Redis"

router = APIRouter(tags=["operator"], route_class=KeyedRoute, dependencies=[RequireKey])


class Reason(BaseModel):
    """The reason of an order, for the audit."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field("", max_length=1024)


WithReason = Annotated[Reason, Body()]


@router.post("/trader/kill")
async def kill_trader(gateway: FromGateway, why: WithReason = Reason()) -> Accepted:  # noqa: B008  never modified
    """Close the position and stop trading until it is resumed; the order survives restarts."""
    return await _issue(gateway, "trader", "killed", why)


@router.post("/trader/resume")
async def resume_trader(gateway: FromGateway, why: WithReason = Reason()) -> Accepted:  # noqa: B008
    """Lift the kill switch."""
    return await _issue(gateway, "trader", "running", why)


@router.post("/training/pause")
async def pause_training(gateway: FromGateway, why: WithReason = Reason()) -> Accepted:  # noqa: B008
    """Pause training; self-play continues up to the high-water mark of trajectories."""
    return await _issue(gateway, "training", "paused", why)


@router.post("/training/resume")
async def resume_training(gateway: FromGateway, why: WithReason = Reason()) -> Accepted:  # noqa: B008
    """Resume training."""
    return await _issue(gateway, "training", "running", why)


async def _issue(
    gateway: Gateway, target: Literal["training", "trader"], state: ControlState, why: Reason
) -> Accepted:
    control = ControlIssued(target=target, state=state, by="gateway", reason=why.reason)
    try:
        await gateway.ask(lambda: gateway.bus.announce(CONTROL, control, name=target))
    except RedisUnavailableError as unavailable:
        raise HTTPException(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"Redis does not answer; it is not known whether {target} is {state}: repeat the request later"
            + (_KILL_WITHOUT_REDIS if state == "killed" else ""),
        ) from unavailable
    log.info("control_issued", **control.model_dump(mode="json"))
    return Accepted(control=control)
