"""One HTTP connection with bounds: how long a client may take, and how much it may send before it is known.

The HTTP server that the services use (uvicorn with httptools) has no limit on the size of a request's
head and no deadline for a request's receipt. `BoundedConnection` adds both, and closes connections whose
client does not read what it is sent. A periodic `sweep` enforces the deadlines, so a request costs no timer.

An answer may be complete while its request is still being sent. Closing such a connection at once would reset
it, and the client would lose the answer. `_LingeringTransport` closes it in two steps.
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
    """Bounds of one port."""

    max_head_bytes: int = 16_384  # request line and headers; also trailers and chunk framing of a body
    max_headers: int = 100
    max_pipelined: int = 16  # requests that wait for the answer to an earlier one of their connection
    head_seconds: float = 10.0  # from the connection, or a request's first byte, to the end of its headers
    body_seconds: float = 10.0  # from the end of the headers to the end of the body
    unread_seconds: float = 30.0  # a client that reads nothing of its answer for this long is cut off
    keep_alive_seconds: float = 30.0
    linger_seconds: float = 2.0  # a client that still sends after the last answer is heard for this long
    max_lingering_bytes: int = 8_000_000  # and for this much
    max_connections: int = 256
    max_connections_per_peer: int = 128  # per client address


class _Awaiting(Enum):
    """What the client of a connection is expected to send."""

    HEAD = auto()
    BODY = auto()
    REQUEST = auto()  # the connection is kept alive and idle
    NOTHING = auto()  # a request was received in full and is not answered yet


class _LingeringTransport:
    """A transport that closes as RFC 9112, section 9.6, advises.

    While the client still sends, `close` ends only the server's side. The connection then drops what it
    receives, and aborts after a while. All else is the wrapped transport's.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        is_client_sending: Callable[[], bool],
    ) -> None:
        self._transport, self._loop = transport, loop
        self._is_client_sending = is_client_sending
        self.since: float | None = None  # the loop's time at which it began to linger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """No more is to be written."""
        return self.since is not None or self._transport.is_closing()

    def close(self) -> None:
        """Close, or begin to linger."""
        if self._transport.is_closing() or not self._is_client_sending():
            self._transport.close()
        elif self.since is None:
            self.since = self._loop.time()
            self._transport.write_eof()
            self._transport.resume_reading()


class BoundedConnection(HttpToolsProtocol):
    """A connection that keeps to `limits`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
    ) -> None:
        """Called by the server for each connection; `limits` is bound beforehand."""
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._awaiting, self._since = _Awaiting.HEAD, 0.0
        self._head_bytes = self._num_headers = 0
        self._silent_bytes = 0  # received since the parser last reported anything
        self._reported = False
        self._refusal: tuple[HTTPStatus, str] | None = None
        self._lingering_bytes = 0  # dropped since the connection began to linger
        self._upgraded = False  # what follows is not HTTP/1.1
        self._unsent, self._unsent_since = 0, 0.0

    # -- connections ---------------------------------------------------------------------------------

    @property
    def peer(self) -> str:
        """Address of the client."""
        return self.client[0] if self.client else ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, in the place of one that waits where there are too many."""
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
        """Drop the connection that has waited for its client the longest, or refuse this one.

        Clients that send nothing can therefore not keep out those that do.
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

    # -- what is received ----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse what came, slice by slice, and stop at the first limit that it passes."""
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

    # -- the parser's reports ------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin the count of a request's head."""
        super().on_message_begin()
        self._reported = True
        self._head_bytes = self._num_headers = 0
        self._await(_Awaiting.HEAD)

    def on_url(self, url: bytes) -> None:
        """Take a part of the request's target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header or a trailer."""
        self._num_headers += 1
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request unless it asks for what is not served."""
        self._reported = True
        if len(self.pipeline) >= self._limits.max_pipelined:
            self._reject(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests wait on this connection")
        if self.parser.should_upgrade() and self._get_upgrade() == b"websocket":
            self._reject(HTTPStatus.BAD_REQUEST, "websockets are not served; events come from GET /events")
        super().on_headers_complete()
        self._await(_Awaiting.BODY)
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Take a part of the body; the application bounds its size."""
        self._reported = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that nothing more of this request is to come."""
        self._reported = True
        self._await(_Awaiting.REQUEST if self.cycle.response_complete else _Awaiting.NOTHING)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, unless the body of this one is still to come."""
        if self._awaiting is _Awaiting.NOTHING and not self.pipeline:
            self._await(_Awaiting.REQUEST)
        super().on_response_complete()

    def _count(self, num_bytes: int) -> None:
        self._reported = True
        self._head_bytes += num_bytes
        if self._head_bytes > self._limits.max_head_bytes or self._num_headers > self._limits.max_headers:
            self._reject(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, self._head_too_large)

    def _reject(self, status: HTTPStatus, detail: str) -> None:
        """End parsing from inside one of the parser's reports."""
        self._refusal = (status, detail)
        raise ValueError(detail)

    def _is_client_sending(self) -> bool:
        return self._awaiting in (_Awaiting.HEAD, _Awaiting.BODY)

    # -- deadlines and the end -----------------------------------------------------------------------

    def shutdown(self) -> None:
        """End with the server, which waits for an answer but for no request."""
        super().shutdown()
        if self._lingering.since is not None:
            self.transport.abort()

    def sweep(self, now: float) -> None:
        """Close the connection if its client has overrun a deadline; called about once a second."""
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
        """Answer with a problem document where no answer was begun, and close the connection."""
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
        """The next bytes that the client reads would be the answer to the request that it is sending."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        if self._awaiting is _Awaiting.BODY:
            return cycle is not None and not cycle.response_started and not self.pipeline
        return cycle is None or cycle.response_complete
