"""A TCP proxy before Redis that a test tells what to do to every piece of a request or a reply."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import TracebackType

from shared.runtime.redis_server import RedisServer

#: What to pass on of a piece; None passes nothing on and cuts the connection.
Hook = Callable[[bytes], Awaitable[bytes | None]]


class Cut(Exception):
    """Pass on these bytes and cut the connection then."""

    def __init__(self, passed_on: bytes) -> None:
        super().__init__()
        self.passed_on = passed_on


async def pass_on(piece: bytes) -> bytes | None:
    """Do nothing to it."""
    return piece


class Proxy:
    """Listens on a port of its own and passes on to a server what its hooks give back."""

    def __init__(self, server: RedisServer, *, request: Hook = pass_on, reply: Hook = pass_on) -> None:
        self._server, self._request, self._reply = server, request, reply
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """URL of the server through this proxy."""
        port = self._listener.sockets[0].getsockname()[1]
        return f"redis://:{self._server.password}@127.0.0.1:{port}/0"

    async def __aenter__(self) -> "Proxy":
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        self.cut_all()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut_all(self) -> None:
        """Cut every connection that is open."""
        for task in self._tasks:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        upstream: asyncio.StreamWriter | None = None
        try:
            replies, upstream = await asyncio.open_connection("127.0.0.1", self._server.port)
            ways = [
                asyncio.create_task(_pump(reader, upstream, self._request)),
                asyncio.create_task(_pump(replies, writer, self._reply)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            return  # the server is away, or the test cuts
        finally:
            for end in (writer, upstream):
                if end is not None:
                    end.close()
                    with contextlib.suppress(OSError):
                        await end.wait_closed()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, hook: Hook) -> None:
    while piece := await source.read(1 << 16):
        try:
            passed = await hook(piece)
        except Cut as cut:
            sink.write(cut.passed_on)
            await sink.drain()
            return
        if passed is None:
            return
        sink.write(passed)
        await sink.drain()
