"""Versions: list, detail, weights, promotion and roll-back."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated

import structlog
from fastapi import APIRouter, Body, Header, HTTPException, Query, Response
from pydantic import BaseModel, ConfigDict

from services.api.routes.parameters import FromGateway, KeyedRoute, Limit, RequireKey, Version
from services.api.state import Gateway, RedisUnavailableError
from services.api.views import Accepted, CheckpointDetail, CheckpointSummary, Page
from shared.adapters.versions.manifest import WEIGHTS
from shared.adapters.versions.promotions import GatedStage, promote, roll_back
from shared.errors import CheckpointError
from shared.messages.schemas import VersionPromoted
from shared.messages.streams import PROMOTIONS

log = structlog.get_logger()

router = APIRouter(tags=["checkpoints"], route_class=KeyedRoute)

_BY = "gateway"


class PromotionRequest(BaseModel):
    """The stage to promote to."""

    model_config = ConfigDict(extra="forbid")

    stage: GatedStage = "paper"


@router.get("/checkpoints")
async def checkpoints(
    gateway: FromGateway,
    limit: Limit = 50,
    before: Annotated[
        int | None, Query(ge=0, le=1_000_000_000, description="return only versions below this one")
    ] = None,
) -> Page[CheckpointSummary]:
    """Every version that is stored or was ever announced, newest first."""

    def read() -> Page[CheckpointSummary]:
        snapshot = gateway.snapshot()
        known = sorted({*gateway.history.checkpoints, *snapshot.versions}, reverse=True)
        versions = [v for v in known if before is None or v < before]
        items = [summary for v in versions[:limit] if (summary := gateway.checkpoint(v, snapshot))]
        more = len(versions) > limit
        return Page(items=items, next=str(versions[limit - 1]) if more else None)

    return await asyncio.to_thread(read)


@router.get("/checkpoints/{version}")
async def checkpoint(gateway: FromGateway, version: Version) -> CheckpointDetail:
    """One version, with its manifest unless its files were removed."""

    def read() -> CheckpointDetail:
        summary = gateway.checkpoint(version, gateway.snapshot())
        if summary is None:
            raise _unknown(version)
        if not summary.stored:
            return CheckpointDetail(summary=summary, manifest=None)
        try:
            manifest = gateway.store.manifest(version)
        except CheckpointError:  # the summary reports the fault
            return CheckpointDetail(summary=summary, manifest=None)
        return CheckpointDetail(summary=summary, manifest=json.loads(manifest.model_dump_json()))

    return await asyncio.to_thread(read)


@router.get(
    "/checkpoints/{version}/weights",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {}}},
        304: {"description": "The client already has these weights"},
    },
)
async def weights(
    gateway: FromGateway,
    version: Version,
    if_none_match: Annotated[str, Header(max_length=1_024, description="ETag of the client's copy")] = "",
) -> Response:
    """The network's weights (safetensors), verified against the manifest before the first byte is sent.

    304 if the client already has them. Version numbers are not unique across runs, so a client must
    revalidate its copy.
    """

    def read() -> tuple[bytes | None, str]:
        try:
            declared = gateway.store.manifest(version).files.get(WEIGHTS)
            if declared is not None and f'"{declared.sha256}"' in if_none_match:
                return None, declared.sha256
            data = gateway.store.file_bytes(version, WEIGHTS)
        except CheckpointError as refused:
            if version not in gateway.store.versions():
                raise _unknown(version) from refused
            raise HTTPException(HTTPStatus.CONFLICT, f"version {version} is damaged: {refused}") from refused
        return data, hashlib.sha256(data).hexdigest()

    data, sha256 = await asyncio.to_thread(read)
    caching = {"ETag": f'"{sha256}"', "Cache-Control": "no-cache"}
    if data is None:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=caching)
    return Response(
        data,
        media_type="application/octet-stream",
        headers={
            **caching,
            "Content-Disposition": f'attachment; filename="v{version:06d}-{WEIGHTS}"',
        },
    )


@router.post("/checkpoints/{version}/promote", dependencies=[RequireKey])
async def promote_version(
    gateway: FromGateway,
    version: Version,
    request: Annotated[PromotionRequest, Body()] = PromotionRequest(),  # noqa: B008  never modified
) -> Accepted:
    """Promote a version whose report passed the gate of the stage."""
    if version not in await asyncio.to_thread(gateway.store.versions):
        raise _unknown(version)
    return await _change(
        gateway,
        lambda: promote(gateway.store, gateway.validation_root, version, request.stage, by=_BY),
    )


@router.post("/checkpoints/rollback", dependencies=[RequireKey])
async def rollback(gateway: FromGateway) -> Accepted:
    """Promote the previous version again, or the newest one before it whose files are intact."""

    def roll_back_and_log() -> VersionPromoted:
        rolled_back = roll_back(gateway.store, gateway.validation_root, by=_BY)
        for damaged in rolled_back.passed_over:
            log.warning("version_passed_over", error=damaged)
        return rolled_back.promotion

    return await _change(gateway, roll_back_and_log)


async def _change(gateway: Gateway, move_pointer: Callable[[], VersionPromoted]) -> Accepted:
    """Move the pointer and announce it; do neither while Redis is unavailable.

    Raises:
        HTTPException: 409 if the version may not be promoted, 503 if Redis does not answer.
    """
    try:
        await gateway.ask(gateway.bus.ping)
        promotion = await asyncio.to_thread(move_pointer)
    except RedisUnavailableError as unavailable:
        raise HTTPException(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "Redis does not answer; nothing was changed: try again when it does",
        ) from unavailable
    except CheckpointError as refused:
        raise HTTPException(HTTPStatus.CONFLICT, str(refused)) from refused
    try:
        await gateway.ask(lambda: gateway.bus.announce(PROMOTIONS, promotion))
    except RedisUnavailableError as unavailable:
        raise HTTPException(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"version {promotion.version} is promoted but could not be announced: Redis does not answer; "
            "repeat this request when it does",
        ) from unavailable
    log.info("version_promoted", **promotion.model_dump(mode="json"))
    return Accepted(promotion=promotion)


def _unknown(version: int) -> HTTPException:
    return HTTPException(HTTPStatus.NOT_FOUND, f"there is no version {version}; GET /checkpoints lists them")
