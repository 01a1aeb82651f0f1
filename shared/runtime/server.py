"""The HTTP server of every port: gateway, inference, paper broker and Prometheus metrics.

All of them have the same limits (`Limits`), accept only known host names, and refuse websockets. The host
names protect against DNS rebinding.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator
from functools import lru_cache, partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.errors import MuZeroError
from shared.runtime.connection import BoundedConnection, Limits
from shared.runtime.problems import problem

if TYPE_CHECKING:
    from shared.runtime.lifecycle import Lifecycle

#: Ticks of the server's loop between two checks of the deadlines; a tick takes a tenth of a second.
_SWEEP_TICKS = 10

#: Connections that the kernel queues until the server accepts them.
_BACKLOG = 512


async def serve_app(
    app: ASGIApp,
    lifecycle: "Lifecycle",
    *,
    host: str,
    port: int,
    allowed_hosts: str = "",
    limits: Limits = Limits(),  # noqa: B008  frozen
) -> None:
    """Serve an ASGI application until the service is asked to stop.

    Args:
        app: the application.
        lifecycle: lifecycle of the service, whose name is an accepted host name.
        host: interface to listen on.
        port: port to listen on.
        allowed_hosts: further accepted host names, separated by commas.
        limits: limits of the port.
    Raises:
        MuZeroError: the port cannot be bound.
    """
    sockets = await _listening(lifecycle.service, host, port)
    config = uvicorn.Config(
        KnownHosts(app, [lifecycle.service, socket.gethostname(), *host_names(allowed_hosts)]),
        # uvicorn calls the partial like a protocol class.
        http=cast("type[asyncio.Protocol]", partial(BoundedConnection, limits=limits)),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=cast("int", limits.keep_alive_seconds),
        lifespan="on",
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets))
    stop = asyncio.create_task(lifecycle.stopping.wait())
    try:
        await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        server.should_exit = True
        stop.cancel()
        await asyncio.wait({serving})
    serving.result()


async def _listening(service: str, host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on each address of a host.

    Raises:
        MuZeroError: the port cannot be bound.
    """
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sockets.append(socket.create_server(address[:2], family=family, backlog=_BACKLOG))
    except OSError as refused:
        for opened in sockets:
            opened.close()
        raise MuZeroError(
            f"{service}: cannot listen on {host}:{port}: {refused.strerror or refused}; choose another port, "
            "or stop the program that uses it"
        ) from refused
    return sockets


class _Server(uvicorn.Server):
    """A server that leaves signals to the lifecycle and enforces the deadlines of its connections."""

    async def on_tick(self, counter: int) -> bool:
        """Check the deadlines once a second."""
        if counter % _SWEEP_TICKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, BoundedConnection):
                    connection.sweep(now)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the lifecycle."""
        yield


def host_names(listed: str) -> list[str]:
    """Split a list of host names at its commas."""
    return [name.strip() for name in listed.split(",") if name.strip()]


class KnownHosts:
    """Refuses requests for unknown host names, to prevent DNS rebinding.

    A hostile page can make its own name resolve to 127.0.0.1, and then read a local server through its
    visitor's browser. The Host header still holds the page's name. IP addresses cannot be rebound.
    """

    def __init__(self, app: ASGIApp, names: list[str]) -> None:
        """Accept these names, `localhost` and every IP address."""
        self._app = app
        known = {"localhost", *(name.lower().rstrip(".") for name in names)}

        @lru_cache(maxsize=64)
        def is_known(header: bytes) -> bool:
            name = _name_of(header.decode("latin-1"))
            return name in known or name.endswith(".localhost") or _is_address(name)

        self._is_known = is_known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the Host header, as an ASGI application."""
        if scope["type"] == "http":
            hosts = [value for name, value in scope["headers"] if name == b"host"]
            if len(hosts) > 1 or (not hosts and scope["http_version"] != "1.0"):
                detail = f"expected exactly one Host header, got {len(hosts)}"
                await problem(HTTPStatus.BAD_REQUEST, detail)(scope, receive, send)
                return
            if hosts and not self._is_known(hosts[0]):
                detail = (
                    "the request's host name is not one of this server's: use its IP address, or add the "
                    "name to the service's setting allowed_hosts"
                )
                await problem(HTTPStatus.MISDIRECTED_REQUEST, detail)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _name_of(header: str) -> str:
    """The host of a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@contextlib.asynccontextmanager
async def metrics_served(
    registry: CollectorRegistry, lifecycle: "Lifecycle", *, host: str, port: int
) -> AsyncIterator[None]:
    """Serve a registry to Prometheus inside the block. If the port cannot be bound, the service stops.

    Raises:
        MuZeroError: the port cannot be bound.
    """
    serving = asyncio.create_task(serve_app(_metrics_app(registry), lifecycle, host=host, port=port))
    serving.add_done_callback(lambda _: lifecycle.stop())
    try:
        yield
    finally:
        lifecycle.stop()
        await serving


def _metrics_app(registry: CollectorRegistry) -> ASGIApp:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _confirm_lifespan(receive, send)
            return
        request = Request(scope)
        if request.url.path != "/metrics":
            answer = problem(HTTPStatus.NOT_FOUND, "this port serves only /metrics")
        elif request.method not in ("GET", "HEAD"):
            detail = "use GET to read metrics"
            answer = problem(HTTPStatus.METHOD_NOT_ALLOWED, detail, headers={"Allow": "GET"})
        else:
            answer = Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
        await answer(scope, receive, send)

    return cast("ASGIApp", app)


async def _confirm_lifespan(receive: Receive, send: Send) -> None:
    """Confirm the server's startup and shutdown."""
    while True:
        phase = (await receive())["type"]
        await send({"type": f"{phase}.complete"})
        if phase == "lifespan.shutdown":
            return
