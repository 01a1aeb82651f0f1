"""An HTTP connection with limits on the size of a request and on the time that a client takes.

The HTTP server that the services use (uvicorn with httptools) limits neither the size of a request's head nor
the time to receive a request. `BoundedConnection` adds both limits, and closes connections whose client does
not read the response. A periodic `sweep` enforces the deadlines, so that requests need no timers.

A response may be complete while its request is still being sent. Closing such a connection at once would
reset it, and the client would lose the response. `_LingeringTransport` closes it in two steps.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from shared.runtime.problems import problem

#: Received data is parsed in slices of this many bytes; limits are checked after each of them.
_SLICE_BYTES = 8_192


@dataclass(frozen=True)
class Limits:
    """Limits of one port."""

    max_head_bytes: int = 16_384  # request line and headers; also trailers and chunk framing of a body
    max_headers: int = 100
    max_pipelined: int = 16  # requests that wait for the response to an earlier one on the same connection
    head_seconds: float = 10.0  # from the connection, or a request's first byte, to the end of its headers
    body_seconds: float = 10.0  # from the end of the headers to the end of the body
    unread_seconds: float = 30.0  # a client that reads nothing of a response for this long is disconnected
    keep_alive_seconds: float = 30.0
    linger_seconds: float = 2.0  # longest time to read from a client that still sends after the last response
    max_lingering_bytes: int = 8_000_000  # most bytes to read in that time
    max_connections: int = 256
    max_connections_per_peer: int = 128  # per client address


class _Awaiting(Enum):
    """What the client of a connection is expected to send."""

    HEAD = auto()
    BODY = auto()
    REQUEST = auto()  # the connection is kept alive and idle
    NOTHING = auto()  # a request was received completely and has no response yet


class _LingeringTransport:
    """A transport that closes as RFC 9112, section 9.6, advises.

    While the client still sends, `close` only closes the server's side. The connection then discards the data
    that it receives, and is aborted after a while. Everything else is delegated to the wrapped transport.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        is_client_sending: Callable[[], bool],
    ) -> None:
        self._transport, self._loop = transport, loop
        self._is_client_sending = is_client_sending
        self.since: float | None = None  # the loop's time at which lingering began

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """True when nothing more may be written."""
        return self.since is not None or self._transport.is_closing()

    def close(self) -> None:
        """Close the connection, or begin to linger."""
        if self._transport.is_closing() or not self._is_client_sending():
            self._transport.close()
        elif self.since is None:
            self.since = self._loop.time()
            self._transport.write_eof()
            self._transport.resume_reading()


class BoundedConnection(HttpToolsProtocol):
    """A connection that enforces `limits`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
    ) -> None:
        """The server calls this for each connection, with `limits` bound beforehand."""
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._awaiting, self._since = _Awaiting.HEAD, 0.0
        self._head_bytes = self._num_headers = 0
        self._silent_bytes = 0  # received since the last callback of the parser
        self._reported = False
        self._refusal: tuple[HTTPStatus, str] | None = None
        self._lingering_bytes = 0  # discarded since the connection began to linger
        self._upgraded = False  # the following data is not HTTP/1.1
        self._unsent, self._unsent_since = 0, 0.0

    # -- connections ---------------------------------------------------------------------------------

    @property
    def peer(self) -> str:
        """Address of the client."""
        return self.client[0] if self.client else ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection; if there are too many, close one that is waiting for its client."""
        self._lingering = _LingeringTransport(transport, self.loop, self._is_client_sending)
        super().connection_made(cast("asyncio.Transport", self._lingering))
        self._await(_Awaiting.HEAD)
        self._unsent_since = self._since
        everyone = cast("set[BoundedConnection]", self.connections)
        if len(everyone) > self._limits.max_connections_per_peer:
            mine = [other for other in everyone if other.peer == self.peer]
            if len(mine) > self._limits.max_connections_per_peer:
                self._make_room(mine)
        if len(everyone) > self._limits.max_connections:
            self._make_room(list(everyone))

    def _make_room(self, others: Iterable["BoundedConnection"]) -> None:
        """Abort the connection that has waited longest for its client, or refuse this one.

        Idle clients therefore cannot keep others from connecting.
        """
        waiting = [
            other for other in others if other is not self and other._awaiting is not _Awaiting.NOTHING
        ]
        if waiting:
            oldest = min(waiting, key=lambda other: other._since)
            self.connections.discard(oldest)
            oldest.transport.abort()
        else:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections are open; try again soon")

    # -- received data ----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse the data slice by slice, and stop at the first limit that it exceeds."""
        self._unset_keepalive_if_required()
        if self._lingering.since is not None:
            self._lingering_bytes += len(data)
            if self._lingering_bytes > self._limits.max_lingering_bytes:
                self.transport.abort()
            return
        if self._awaiting is _Awaiting.REQUEST:
            self._await(_Awaiting.HEAD)
        for start in range(0, len(data), _SLICE_BYTES):
            if self._upgraded or self.transport.is_closing():
                return
            self._parse(data[start : start + _SLICE_BYTES])

    def _parse(self, data: bytes) -> None:
        self._reported = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._upgraded = True
        except httptools.HttpParserError:
            self._refuse(*(self._refusal or (HTTPStatus.BAD_REQUEST, "this is not a valid HTTP/1.1 request")))
        self._silent_bytes = 0 if self._reported else self._silent_bytes + len(data)
        known = self._head_bytes if self._awaiting is _Awaiting.HEAD else 0
        if known + self._silent_bytes > self._limits.max_head_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, self._head_too_large)

    @property
    def _head_too_large(self) -> str:
        return (
            f"the request line and headers are larger than {self._limits.max_head_bytes} bytes, "
            f"or more than {self._limits.max_headers} headers"
        )

    def _await(self, awaiting: _Awaiting) -> None:
        self._awaiting, self._since = awaiting, self.loop.time()

    # -- callbacks of the parser ------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin to count the bytes of a request's head."""
        super().on_message_begin()
        self._reported = True
        self._head_bytes = self._num_headers = 0
        self._await(_Awaiting.HEAD)

    def on_url(self, url: bytes) -> None:
        """Count a part of the request's target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header or a trailer."""
        self._num_headers += 1
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, unless it asks for websockets or too many requests wait."""
        self._reported = True
        if len(self.pipeline) >= self._limits.max_pipelined:
            self._reject(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests are waiting on this connection")
        if self.parser.should_upgrade() and self._get_upgrade() == b"websocket":
            self._reject(HTTPStatus.BAD_REQUEST, "websockets are not supported; GET /events sends events")
        super().on_headers_complete()
        self._await(_Awaiting.BODY)
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body, whose size the application limits."""
        self._reported = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request was received completely."""
        self._reported = True
        self._await(_Awaiting.REQUEST if self.cycle.response_complete else _Awaiting.NOTHING)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, unless the body of this one is still incomplete."""
        if self._awaiting is _Awaiting.NOTHING and not self.pipeline:
            self._await(_Awaiting.REQUEST)
        super().on_response_complete()

    def _count(self, num_bytes: int) -> None:
        self._reported = True
        self._head_bytes += num_bytes
        if self._head_bytes > self._limits.max_head_bytes or self._num_headers > self._limits.max_headers:
            self._reject(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, self._head_too_large)

    def _reject(self, status: HTTPStatus, detail: str) -> None:
        """Stop parsing from inside a callback of the parser."""
        self._refusal = (status, detail)
        raise ValueError(detail)

    def _is_client_sending(self) -> bool:
        return self._awaiting in (_Awaiting.HEAD, _Awaiting.BODY)

    # -- deadlines and closing -----------------------------------------------------------------------

    def shutdown(self) -> None:
        """Close at the server's shutdown, which completes responses but does not wait for requests."""
        super().shutdown()
        if self._lingering.since is not None:
            self.transport.abort()

    def sweep(self, now: float) -> None:
        """Close the connection if its client has exceeded a deadline; called about once a second."""
        if self._lingering.since is not None:
            if now - self._lingering.since > self._limits.linger_seconds:
                self.transport.abort()
            return
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent < self._unsent:
            self._unsent_since = now
        elif now - self._unsent_since > self._limits.unread_seconds:
            self.transport.abort()
        self._unsent = unsent
        waited = now - self._since
        if self._awaiting is _Awaiting.HEAD and waited > self._limits.head_seconds:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the request's headers did not arrive in time")
        elif self._awaiting is _Awaiting.BODY and waited > self._limits.body_seconds:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the request's body did not arrive in time")
        elif self._awaiting is _Awaiting.REQUEST and waited > self._limits.keep_alive_seconds:
            self.transport.close()

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Close the connection, with a problem document if no response has begun."""
        if self.transport.is_closing():
            return
        if self._may_answer():
            answer = problem(status, detail, headers={"Connection": "close"})
            head = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers)
            self.transport.write(STATUS_LINE[status] + head + b"\r\n" + bytes(answer.body))
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()

    def _may_answer(self) -> bool:
        """True if the next bytes would be the response to the request that the client is sending."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        if self._awaiting is _Awaiting.BODY:
            return cycle is not None and not cycle.response_started and not self.pipeline
        return cycle is None or cycle.response_complete
