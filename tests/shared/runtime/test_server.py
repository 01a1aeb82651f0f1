"""The limits of every port: request sizes, deadlines, number of connections, and host names."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter
from pydantic import SecretStr
from starlette.types import Receive, Scope, Send

from shared.errors import MuZeroError
from shared.runtime.connection import Limits
from shared.runtime.lifecycle import Lifecycle
from shared.runtime.ports import free_port
from shared.runtime.server import host_names, metrics_served, serve_app
from shared.runtime.settings import ServiceSettings
from tests.waiting import PATIENCE_SECONDS

DEFAULT = Limits()
SHORT_DEADLINES = Limits(head_seconds=0.5, body_seconds=0.5, unread_seconds=1.0, keep_alive_seconds=0.5)

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"

#: The application responds to this request before it reads the body; the server then disconnects.
EARLY = b"POST /early HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 9000000\r\n\r\n"


class Echo:
    """Responds with the path and body of a request.

    /large responds with 30 MB, /wait after `released` is set, and /early before it reads the body.
    """

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.num_waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                await send({"type": f"{(await receive())['type']}.complete"})
            return
        body, more = b"", scope["path"] != "/early"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if scope["path"] == "/wait":
            self.num_waiting += 1
            await self.released.wait()
        text = b"x" * 30_000_000 if scope["path"] == "/large" else scope["path"].encode() + b" " + body
        headers = [(b"content-length", str(len(text)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text})


def lifecycle_of(name: str = "probe") -> Lifecycle:
    return Lifecycle(name, ServiceSettings(redis_url=SecretStr("redis://127.0.0.1:1/0")))


@asynccontextmanager
async def serving(
    app: Echo | None = None, limits: Limits = DEFAULT, allowed_hosts: str = ""
) -> AsyncIterator[int]:
    lifecycle, port = lifecycle_of(), free_port()
    task = asyncio.create_task(
        serve_app(
            app or Echo(),
            lifecycle,
            host="127.0.0.1",
            port=port,
            allowed_hosts=allowed_hosts,
            limits=limits,
        )
    )
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await answers(port):  # noqa: ASYNC110  no event shows an open port
                await asyncio.sleep(0.01)
        yield port
    finally:
        lifecycle.stop()
        await task
        await lifecycle.bus.close()


async def answers(port: int) -> bool:
    try:
        return (await exchange(port, HEAD + b"Connection: close\r\n\r\n")).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


async def exchange(port: int, sent: bytes) -> bytes:
    """Send, and read until the server closes or resets the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        writer.write(sent)
        await writer.drain()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while chunk := await reader.read(65_536):
                received += chunk
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return received


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def problem_of(answer: bytes) -> int:
    """Check that an answer is a problem document, and return its status."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head.lower()
    assert json.loads(body)["status"] == status_of(answer)
    return status_of(answer)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4_096


CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"

ENDLESS = {
    "a header's value": (HEAD + b"X-A: ", b"a" * 65_536),
    "a header's name": (HEAD, b"a" * 65_536),
    "headers": (HEAD, b"X-A: b\r\n" * 8_192),
    "target": (b"GET /", b"a" * 65_536),
    "blank lines": (b"", b"\r\n" * 32_768),
    "chunk extension": (CHUNKED + b"1;a=", b"a" * 65_536),
    "trailer's value": (CHUNKED + b"0\r\nX-A: ", b"a" * 65_536),
    "trailers": (CHUNKED + b"0\r\n", b"X-A: b\r\n" * 8_192),
}


async def test_endless_heads_are_cut_off_and_use_little_memory() -> None:
    async with serving() as port:
        before = resident_bytes()
        for name, (start, more) in ENDLESS.items():
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            sent = 0
            writer.write(start)
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while sent < 20_000_000:
                        writer.write(more)
                        await writer.drain()
                        sent += len(more)
                        await asyncio.sleep(0)
            except ConnectionError:
                pass
            writer.transport.abort()
            assert sent < 20_000_000, name
        assert resident_bytes() - before < 10_000_000
        assert await answers(port)


@pytest.mark.parametrize(
    "request_bytes",
    [
        HEAD + b"X-A: " + b"a" * 17_000 + b"\r\n\r\n",
        HEAD + b"X-A: b\r\n" * 101 + b"\r\n",
        b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["bytes", "count", "target"],
)
async def test_a_head_over_a_limit_is_refused_with_431(request_bytes: bytes) -> None:
    async with serving() as port:
        assert problem_of(await exchange(port, request_bytes)) == 431


async def test_a_head_within_the_limits_is_served() -> None:
    request = HEAD + b"X-A: b\r\n" * 97 + b"X-B: " + b"a" * 14_000 + b"\r\nConnection: close\r\n\r\n"
    async with serving() as port:
        assert status_of(await exchange(port, request)) == 200


async def test_invalid_http_and_websockets_get_problem_documents() -> None:
    websocket = HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n\r\n"
    h2c = HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n"
    async with serving() as port:
        assert problem_of(await exchange(port, b"\x16\x03\x01 this is not HTTP\r\n\r\n")) == 400
        assert problem_of(await exchange(port, websocket)) == 400
        assert status_of(await exchange(port, h2c)) == 200  # the server may continue with HTTP/1.1


async def test_clients_that_exceed_a_deadline_are_disconnected() -> None:
    post = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12345"
    early = b"POST /early HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12345"
    async with serving(limits=SHORT_DEADLINES) as port:
        cut_off = asyncio.create_task(unread(port))
        async with asyncio.timeout(15):
            half = [exchange(port, HEAD) for _ in range(60)]
            *halves, nothing, body, unread_body, idle, blank = await asyncio.gather(
                *half,
                exchange(port, b""),
                exchange(port, post),
                exchange(port, early),
                exchange(port, HEAD + b"\r\n"),
                exchange(port, HEAD + b"\r\n\r\n\r\n"),
            )
            await cut_off
        assert {problem_of(answer) for answer in halves} == {408}
        assert problem_of(nothing) == 408
        assert problem_of(body) == 408
        assert list(bodies_of(unread_body)) == [b"/early "]  # the response came at once, the close later
        assert [status_of(idle), status_of(blank)] == [200, 200]
        assert await answers(port)


async def test_a_client_that_still_sends_gets_the_complete_response() -> None:
    for start, status in ((EARLY, 200), (HEAD + b"X-A: " + b"a" * 40_000, 431), (b"\x16\x03\x01", 400)):
        async with serving() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(start)
                async with asyncio.timeout(PATIENCE_SECONDS):
                    begun = await reader.readexactly(1)  # the response is complete before the request
                    writer.write(b"x" * 1_000_000)
                    await writer.drain()
                    answer = begun + await reader.read()  # raises if the connection was reset
            finally:
                writer.transport.abort()
            assert status_of(answer) == status


async def test_a_client_that_sends_for_ever_is_disconnected() -> None:
    for limits, size, pause in (
        (Limits(linger_seconds=0.2), 1_000, 0.01),
        (Limits(linger_seconds=600.0, max_lingering_bytes=100_000), 100_000, 0.0),
    ):
        async with serving(limits=limits) as port, asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(ConnectionError):
                await send_for_ever(port, size, pause)


async def send_for_ever(port: int, size: int, pause: float) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(EARLY)
        while True:
            writer.write(b"x" * size)
            await writer.drain()
            await asyncio.sleep(pause)
    finally:
        writer.transport.abort()


async def unread(port: int) -> None:
    """Request a large response, read nothing for 3.5 s, and check that the server has disconnected."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await asyncio.sleep(3.5)  # the deadline of 1 s, and two of the server's checks
        received = 0
        with contextlib.suppress(ConnectionError):
            while chunk := await loop.sock_recv(client, 1_000_000):
                received += len(chunk)
        assert received < 30_000_000


async def test_idle_connections_do_not_block_other_clients() -> None:
    async with serving(limits=Limits(max_connections=8, max_connections_per_peer=6)) as port:
        crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
        for _, writer in crowd:
            writer.write(HEAD)
        assert await answers(port)
        async with asyncio.timeout(5):
            assert [await end_of(reader) for reader, _ in crowd[:30]] == [b""] * 30
        for _, writer in crowd:
            writer.transport.abort()


async def test_a_client_at_its_limit_keeps_its_connections_beside_others() -> None:
    async with serving(limits=Limits(max_connections=8, max_connections_per_peer=3)) as port:
        others = [
            await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
            for address in ("127.0.0.2", "127.0.0.2", "127.0.0.1", "127.0.0.1", "127.0.0.1")
        ]
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        for reader, writer in others:
            writer.write(request)
            async with asyncio.timeout(PATIENCE_SECONDS):
                assert status_of(await reader.read()) == 200
            writer.transport.abort()


async def end_of(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


@pytest.mark.parametrize(
    "limits", [Limits(max_connections=3), Limits(max_connections_per_peer=3)], ids=["all", "peer"]
)
async def test_a_connection_above_the_limit_is_refused_while_all_others_are_busy(limits: Limits) -> None:
    app = Echo()
    async with serving(app, limits) as port:
        request = b"GET /wait HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        busy = [asyncio.create_task(exchange(port, request)) for _ in range(3)]
        async with asyncio.timeout(PATIENCE_SECONDS):
            while app.num_waiting < 3:  # noqa: ASYNC110  the application counts them
                await asyncio.sleep(0.01)
        assert problem_of(await exchange(port, b"")) == 503
        app.released.set()
        assert [status_of(await task) for task in busy] == [200] * 3


async def test_too_many_pipelined_requests_close_the_connection() -> None:
    app = Echo()
    app.released.set()
    one = b"GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with serving(app) as port:
        few = await exchange(port, b"".join(one % n for n in range(10)) + last)
        assert list(bodies_of(few)) == [b"/%d " % n for n in range(10)] + [b"/last "]
        many = await exchange(port, one % 0 * 3_000)
        assert many.count(b"200 OK") < 40


@pytest_asyncio.fixture
async def echo_port() -> AsyncIterator[int]:
    """Port of a server that echoes."""
    async with serving() as port:
        yield port


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bodies=st.lists(st.binary(max_size=300), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 2_000), max_size=8),
    chunked=st.booleans(),
)
async def test_requests_are_read_correctly_however_their_bytes_are_split(
    echo_port: int, bodies: list[bytes], cuts: list[int], chunked: bool
) -> None:
    """The server returns each body unchanged and in order."""
    sent = b"".join(post_of(body, chunked, last=n == len(bodies) - 1) for n, body in enumerate(bodies))
    reader, writer = await asyncio.open_connection("127.0.0.1", echo_port)
    for start, stop in pairwise([0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]):
        writer.write(sent[start:stop])
        await writer.drain()
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_SECONDS):
        received = await reader.read()
    writer.close()
    assert list(bodies_of(received)) == [b"/ " + body for body in bodies]


def post_of(body: bytes, chunked: bool, *, last: bool) -> bytes:
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\n" + (b"Connection: close\r\n" if last else b"")
    if chunked:
        part = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + part + b"0\r\n\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def bodies_of(received: bytes) -> Iterator[bytes]:
    """Split a byte stream into the bodies of its responses, by their Content-Length."""
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        yield received[:length]
        received = received[length:]


KNOWN_HOSTS = [
    "127.0.0.1:8000",
    "[::1]:8000",
    "localhost",
    "LOCALHOST.:80",
    "mine.localhost",
    "probe:8001",  # the service's name, as used in compose
    socket.gethostname(),
    "trading.example.org",
    "b.example.org:1",
]
FOREIGN_HOSTS = [
    "evil.test",
    "evil.test:8000",
    "127.0.0.1.evil.test",
    "localhost.evil.test",
    "evil-localhost",
    "sub.trading.example.org",
    "",
    "[evil.test]",
]


async def test_only_known_host_names_are_accepted() -> None:
    async with serving(allowed_hosts="trading.example.org, b.example.org") as port:
        for host in KNOWN_HOSTS + FOREIGN_HOSTS:
            answer = await exchange(
                port, f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            )
            assert (200 if host in KNOWN_HOSTS else problem_of(answer)) == status_of(answer), host
            assert status_of(answer) == (200 if host in KNOWN_HOSTS else 421), host


async def test_an_http_1_1_request_needs_exactly_one_host_header() -> None:
    end = b"Connection: close\r\n\r\n"
    async with serving() as port:
        assert problem_of(await exchange(port, b"GET / HTTP/1.1\r\n" + end)) == 400
        assert problem_of(await exchange(port, HEAD + b"Host: localhost\r\n" + end)) == 400
        assert status_of(await exchange(port, b"GET / HTTP/1.0\r\n\r\n")) == 200


def test_host_names_are_separated_by_commas() -> None:
    assert host_names(" a.example, ,b.example,") == ["a.example", "b.example"]
    assert host_names("") == []


async def test_metrics_are_served_on_the_chosen_interface_with_the_same_limits() -> None:
    registry = CollectorRegistry()
    Counter("probe_things", "Things", registry=registry).inc(3)
    lifecycle, port = lifecycle_of(), free_port()
    async with metrics_served(registry, lifecycle, host="127.0.0.1", port=port):
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    page = await exchange(
                        port, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                    )
                    break
                except OSError:
                    await asyncio.sleep(0.01)
        assert b"probe_things_total 3.0" in page
        assert problem_of(await exchange(port, HEAD + b"Connection: close\r\n\r\n")) == 404
        assert problem_of(await exchange(port, HEAD + b"X-A: " + b"a" * 30_000)) == 431
        taken = lifecycle_of("other")
        with pytest.raises(MuZeroError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with metrics_served(registry, taken, host="127.0.0.1", port=port):
                await taken.stopping.wait()
