"""The paper broker over HTTP: OANDA v20's routes, authentication and errors, and injected faults."""

import hmac
import itertools

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.broker.http.routes import account, market, orders, replay
from services.broker.venue import Venue

BAD_REQUEST = 400
UNAUTHORIZED_TEXT = "Insufficient authorization to perform request."


def create_app(venue: Venue, token: str) -> FastAPI:
    """The web application of one venue. Requests must carry the token."""
    app = FastAPI(title="Paper broker", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.venue = venue
    for router in (market.router, account.router, orders.router, replay.router):
        app.include_router(router)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_middleware(_Faults, venue=venue)
    app.add_middleware(_Authentication, token=token)
    app.add_middleware(_RequestIds)
    return app


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"errorMessage": message}, status)


async def _refused(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return _error(error.status_code, str(error.detail))


async def _invalid(_request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    problem = error.errors()[0]
    return _error(BAD_REQUEST, f"Invalid value specified for '{problem['loc'][-1]}': {problem['msg']}")


class _Authentication:
    """Answers 401 without the token, and 400 if a time format other than RFC3339 is requested."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._wanted = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            received = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(received, self._wanted):
                await _error(401, UNAUTHORIZED_TEXT)(scope, receive, send)
                return
            if dict(scope["headers"]).get(b"accept-datetime-format", b"RFC3339") != b"RFC3339":
                text = "Invalid value specified for 'Accept-Datetime-Format'. Only RFC3339 is supported"
                await _error(BAD_REQUEST, text)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _RequestIds:
    """Adds a RequestID header to each answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._ids = itertools.count(70_000_000_000_000_000)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        number = str(next(self._ids)).encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"requestid", number)]}
            await send(message)

        await self._app(scope, receive, send_with_id)


class _Faults:
    """Injects faults: reads that fail, and executed writes with a truncated or a 504 answer."""

    def __init__(self, app: ASGIApp, venue: Venue) -> None:
        self._app, self._venue = app, venue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v3/accounts"):
            await self._app(scope, receive, send)
            return
        faults, config = self._venue.faults, self._venue.faults.config
        if scope["method"] == "GET":
            if faults.occurs(config.rate_limit_probability):
                await _error(429, "Rate limit exceeded")(scope, receive, send)
            elif faults.occurs(config.read_error_probability):
                await _error(503, "Service unavailable")(scope, receive, send)
            else:
                await self._app(scope, receive, send)
        elif faults.occurs(config.drop_answer_probability):
            await self._app(scope, receive, _discard)
            await send(
                {"type": "http.response.start", "status": 201, "headers": [(b"content-length", b"512")]}
            )
            await send({"type": "http.response.body", "body": b'{"orderCreate', "more_body": True})
        elif faults.occurs(config.gateway_timeout_probability):
            await self._app(scope, receive, _discard)
            await _error(504, "Timeout waiting for response.")(scope, receive, send)
        else:
            await self._app(scope, receive, send)


async def _discard(_message: Message) -> None:
    """Discard a part of an answer."""
