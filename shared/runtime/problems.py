"""Errors over HTTP: every response that is not a success is a problem document (RFC 9457).

Every HTTP service uses these handlers. FastAPI's own handlers repeat the refused input. If the input contains
NaN, which JSON cannot represent, a bad request becomes a server error. These handlers name only the field and
its error.
"""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MEDIA_TYPE = "application/problem+json"

#: Larger bodies are refused with 413 before they are held in memory.
MAX_BODY_BYTES = 1_000_000

_MAX_ERRORS = 16
_MAX_TEXT = 500


class FieldError(BaseModel):
    """An invalid field of a request, and its error."""

    where: str
    problem: str


class Problem(BaseModel):
    """Problem details as RFC 9457 defines them."""

    type: str = "about:blank"
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    errors: list[FieldError] = []


def _schema() -> dict[str, Any]:
    """JSON schema of `Problem` without references, since a response's schema has no definitions."""
    schema = Problem.model_json_schema()
    schema["properties"]["errors"]["items"] = schema.pop("$defs")["FieldError"]
    return schema


#: Describes errors in an application's OpenAPI document: `FastAPI(responses=PROBLEM_RESPONSES)`.
PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "Problem details", "content": {MEDIA_TYPE: {"schema": _schema()}}},
}


def install_problem_handlers(app: FastAPI, *, max_body_bytes: int = MAX_BODY_BYTES) -> None:
    """Make every error of an application a problem document, and limit the size of its request bodies."""
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(Exception, _on_failure)
    app.add_middleware(_BodyLimit, max_bytes=max_body_bytes)


def problem(
    status: int,
    detail: str,
    *,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem document as a response; its title is the status's reason phrase."""
    document = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, errors=list(errors))
    # Escaped to ASCII: a lone surrogate in a field's name cannot be written as UTF-8.
    body = json.dumps(document.model_dump()).encode("ascii")
    return Response(body, status_code=status, media_type=MEDIA_TYPE, headers=headers)


async def _on_http_exception(_request: Request, failure: Exception) -> Response:
    assert isinstance(failure, HTTPException)
    return problem(failure.status_code, str(failure.detail), headers=failure.headers)


async def _on_invalid_request(_request: Request, failure: Exception) -> Response:
    assert isinstance(failure, RequestValidationError)
    errors = [
        FieldError(where=".".join(str(part) for part in error["loc"])[:_MAX_TEXT], problem=str(error["msg"]))
        for error in failure.errors()[:_MAX_ERRORS]
    ]
    first = f"{errors[0].where}: {errors[0].problem}" if errors else "the request is invalid"
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, first, errors=errors)


async def _on_failure(_request: Request, _failure: Exception) -> Response:
    """Do not send the cause to the client; the server logs it."""
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the service failed to handle this request; see its log")


class _BodyLimit:
    """Refuses a request whose body is declared larger than allowed, or becomes larger."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        detail = f"the body is larger than {self._max_bytes} bytes"
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or int(declared[:20]) > self._max_bytes:
            too_large = problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, headers={"Connection": "close"})
            await too_large(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, headers={"Connection": "close"}
                )
            return message

        await self._app(scope, counted, send)
