"""Parameters that several routes share, each with its bounds."""

from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, HTTPException, Path, Query, Request, Security
from fastapi.security import APIKeyHeader
from pydantic import AfterValidator

from services.api.events import place
from services.api.state import Gateway

#: A version's number; nothing else of a path reaches the file system.
Version = Annotated[int, Path(ge=0, le=999_999_999, description="a checkpoint's version")]

Limit = Annotated[int, Query(ge=1, le=500, description="how many at most")]


def _entry_id(text: str) -> str:
    if place(text) == (0, 0):
        raise ValueError("nothing is older than 0-0")
    return text


Before = Annotated[
    Annotated[str, AfterValidator(_entry_id)] | None,
    Query(max_length=64, description="entry id: only older entries; `next` of the page before"),
]


def _gateway(request: Request) -> Gateway:
    gateway = request.app.state.gateway
    assert isinstance(gateway, Gateway)
    return gateway


FromGateway = Annotated[Gateway, Depends(_gateway)]

_key_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="MM_GATEWAY__API_KEY")


def _require_key(gateway: FromGateway, key: Annotated[str | None, Security(_key_header)]) -> None:
    if not gateway.config.api_key.get_secret_value():
        raise HTTPException(
            HTTPStatus.FORBIDDEN, "changes over HTTP are off: no API key is set (MM_GATEWAY__API_KEY)"
        )
    if key is None or not gateway.key_is_right(key):
        raise HTTPException(
            HTTPStatus.UNAUTHORIZED,
            "this needs the API key in the header X-API-Key",
            headers={"WWW-Authenticate": "ApiKey"},
        )


RequireKey = Depends(_require_key)
