"""Parameters that several routes share, with their limits."""

import math
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Annotated, Any

import structlog
from fastapi import Depends, HTTPException, Path, Query, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader
from pydantic import AfterValidator

from services.api.keys import WrongKeys
from services.api.metrics import WRONG_KEYS
from services.api.state import Gateway
from shared.messages.entry_id import EntryId

log = structlog.get_logger()

#: A version number. It is the only part of a request path that is used in file names.
Version = Annotated[int, Path(ge=0, le=999_999_999, description="version of a checkpoint")]

Limit = Annotated[int, Query(ge=1, le=500, description="maximum number of items per page")]


def _entry_id(text: str) -> str:
    if EntryId.parse(text) == (0, 0):
        raise ValueError("0-0 is the lowest possible entry id, so no entry is older")
    return text


Before = Annotated[
    Annotated[str, AfterValidator(_entry_id)] | None,
    Query(
        max_length=64,
        description="return only entries older than this one; for the next page, pass `next`",
    ),
]


def _gateway(request: Request) -> Gateway:
    gateway = request.app.state.gateway
    assert isinstance(gateway, Gateway)
    return gateway


FromGateway = Annotated[Gateway, Depends(_gateway)]

_key_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="MM_GATEWAY__API_KEY")

#: Dependency of a route that needs the API key. `KeyedRoute` enforces it, and OpenAPI shows it.
RequireKey = Security(_key_header)


class KeyedRoute(APIRoute):
    """Checks the API key, if the route needs it, before it receives the request body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler: check the key first."""
        handle = super().get_route_handler()
        if RequireKey not in self.dependencies:
            return handle

        async def check_then_handle(request: Request) -> Response:
            _check_key(request)
            return await handle(request)

        return check_then_handle


def _check_key(request: Request) -> None:
    """Check the API key. The limit on wrong keys never blocks the right key, so no operator is locked out.

    Raises:
        HTTPException: 403 if no key is configured, 401 if it is missing or wrong, 429 after many wrong keys.
    """
    gateway = _gateway(request)
    if not gateway.config.api_key.get_secret_value():
        raise HTTPException(
            HTTPStatus.FORBIDDEN, "changes over HTTP are disabled: no API key is set (MM_GATEWAY__API_KEY)"
        )
    key = request.headers.get(_key_header.model.name, "")
    if key and gateway.key_is_right(key):
        return
    if key:
        _note_wrong_key(request)
    raise HTTPException(
        HTTPStatus.UNAUTHORIZED,
        "the API key is wrong" if key else "this request needs the API key in the header X-API-Key",
        headers={"WWW-Authenticate": "ApiKey"},
    )


def _note_wrong_key(request: Request) -> None:
    wrong_keys = request.app.state.wrong_keys
    assert isinstance(wrong_keys, WrongKeys)
    WRONG_KEYS.inc()
    peer = request.client.host if request.client else ""
    wait_seconds = wrong_keys.note(peer)
    if wait_seconds:
        raise HTTPException(
            HTTPStatus.TOO_MANY_REQUESTS,
            "too many wrong API keys came from this address; wait before the next attempt",
            headers={"Retry-After": str(math.ceil(wait_seconds))},
        )
    log.warning("wrong_api_key", peer=peer, path=request.url.path)
