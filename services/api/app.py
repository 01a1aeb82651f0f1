"""The gateway's ASGI application: routes, errors, headers."""

import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import structlog
from fastapi import FastAPI, Request, Response
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.keys import WrongKeys
from services.api.metrics import REQUESTS, SECONDS
from services.api.routes import checkpoints, events, journal, operator, pages, status, validations
from services.api.state import Gateway, RedisUnavailableError
from shared.errors import RecordsUnavailableError, StoreUnavailableError
from shared.runtime.problems import PROBLEM_RESPONSES, install_problem_handlers, problem

log = structlog.get_logger()

#: Maximum size of a request body; routes accept only a reason or a stage.
MAX_BODY_BYTES = 16_384

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def create_app(gateway: Gateway) -> FastAPI:
    """Build the application."""
    app = FastAPI(
        title="Micro Stochastic MuZero gateway",
        description="Shows the system; an operator can promote versions, pause training and stop trading.",
        version="1",
        docs_url=None,  # the framework's pages load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
        responses=PROBLEM_RESPONSES,
    )
    app.state.gateway = gateway
    app.state.wrong_keys = WrongKeys()
    install_problem_handlers(app, max_body_bytes=MAX_BODY_BYTES)
    app.add_exception_handler(RedisUnavailableError, _on_redis_unavailable)
    app.add_exception_handler(StoreUnavailableError, _unavailable("the checkpoint store does not answer"))
    app.add_exception_handler(
        RecordsUnavailableError, _unavailable("the validator's database is in use, or its disk is full")
    )
    app.add_middleware(RequestMetricsMiddleware)
    for module in (status, checkpoints, validations, journal, events, operator, pages):
        app.include_router(module.router)
    return app


async def _on_redis_unavailable(_request: Request, _failure: Exception) -> Response:
    return problem(
        HTTPStatus.SERVICE_UNAVAILABLE, "Redis does not answer; try again soon", headers={"Retry-After": "2"}
    )


def _unavailable(reason: str) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Make a handler that answers 503 with a reason."""

    async def answer(_request: Request, failure: Exception) -> Response:
        log.warning("store_unavailable", error=str(failure))
        return problem(
            HTTPStatus.SERVICE_UNAVAILABLE, f"{reason}; try again soon", headers={"Retry-After": "5"}
        )

    return answer


class RequestMetricsMiddleware:
    """Counts and times requests, and sets the headers of every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                _count(scope, message["status"], time.perf_counter() - started)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _count(scope: Scope, status: int, seconds: float) -> None:
    """Count a request by its route; unknown paths share one label, so that clients cannot add labels."""
    path = getattr(scope.get("route"), "path", None)
    method = scope["method"] if path and status != HTTPStatus.METHOD_NOT_ALLOWED else "other"
    REQUESTS.labels(path or "other", method, str(status)).inc()
    SECONDS.labels(path or "other").observe(seconds)
