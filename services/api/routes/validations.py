"""Validation reports: list, detail, page and picture."""

import asyncio
import json
import stat
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Response
from pydantic import JsonValue

from services.api.routes.parameters import FromGateway, Limit, Version
from services.api.views import Page, ValidationDetail
from shared.adapters.files import read_beneath
from shared.adapters.versions.promotions import MAX_REPORT_BYTES, report_path
from shared.messages.schemas import ValidationReported

router = APIRouter(tags=["validations"])

#: A report page contains its styles and its picture, and runs no script.
_PAGE_POLICY = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; frame-ancestors 'self'"


@router.get("/validations")
async def validations(
    gateway: FromGateway,
    limit: Limit = 50,
    before: Annotated[
        int | None, Query(ge=0, le=1_000_000_000, description="return only versions below this one")
    ] = None,
) -> Page[ValidationReported]:
    """The last report of every validated version, newest version first."""
    versions = sorted((v for v in gateway.history.validations if before is None or v < before), reverse=True)
    items = [gateway.history.validations[v] for v in versions[:limit]]
    return Page(items=items, next=str(versions[limit - 1]) if len(versions) > limit else None)


@router.get("/validations/{version}")
async def validation(gateway: FromGateway, version: Version) -> ValidationDetail:
    """The announcement of a version's validation, and the full report."""
    path = report_path(gateway.validation_root, version)
    summary = gateway.history.validations.get(version)
    report = await asyncio.to_thread(_report, path)
    if summary is None and report is None:
        raise HTTPException(
            HTTPStatus.NOT_FOUND, f"version {version} has no validation; GET /validations lists them"
        )
    return ValidationDetail(
        summary=summary,
        report=report,
        has_page=_is_file(path.with_suffix(".html")),
        has_picture=_is_file(path.with_suffix(".png")),
    )


@router.get(
    "/validations/{version}/picture",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}},
)
async def picture(gateway: FromGateway, version: Version) -> Response:
    """The picture of a report (PNG)."""
    data = await asyncio.to_thread(
        _file_of_report, report_path(gateway.validation_root, version), ".png", version
    )
    return Response(data, media_type="image/png", headers={"Cache-Control": "no-cache"})


@router.get(
    "/validations/{version}/page",
    response_class=Response,
    responses={200: {"content": {"text/html": {}}}},
)
async def page(gateway: FromGateway, version: Version) -> Response:
    """The page of a report (HTML)."""
    data = await asyncio.to_thread(
        _file_of_report, report_path(gateway.validation_root, version), ".html", version
    )
    return Response(data, media_type="text/html", headers={"Content-Security-Policy": _PAGE_POLICY})


def _report(path: Path) -> dict[str, JsonValue] | None:
    """The report as a document; None if there is no file.

    Raises:
        HTTPException: 409 if the file is not a readable report.
    """
    data = _contents(path)
    if data is None:
        return None
    try:
        document = json.loads(data, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as damaged:
        raise HTTPException(
            HTTPStatus.CONFLICT, "the report is damaged; validate the version again"
        ) from damaged
    if not isinstance(document, dict):
        raise HTTPException(
            HTTPStatus.CONFLICT, "the report is not a JSON object; validate the version again"
        )
    return document


def _file_of_report(path: Path, suffix: str, version: int) -> bytes:
    data = _contents(path.with_suffix(suffix))
    if data is None:
        raise HTTPException(
            HTTPStatus.NOT_FOUND, f"the validation of version {version} has no {suffix[1:]} file"
        )
    return data


def _contents(path: Path) -> bytes | None:
    """The contents of a file that the validator wrote; None if it is missing or not a regular file.

    Raises:
        HTTPException: 409 if it cannot be read or is too large.
    """
    if not _is_file(path):
        return None
    try:
        return read_beneath(path.parent, path.name, limit=MAX_REPORT_BYTES)
    except FileNotFoundError:
        return None
    except OSError as unreadable:
        raise HTTPException(
            HTTPStatus.CONFLICT, f"{path.name}: {unreadable.strerror}; validate the version again"
        ) from unreadable


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
