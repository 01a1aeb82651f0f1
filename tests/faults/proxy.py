"""A TCP proxy in front of Redis; hooks of a test handle each chunk of a request or reply."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import TracebackType

from shared.runtime.redis_server import RedisServer

#: Returns the bytes to pass on for a chunk; None passes nothing on and cuts the connection.
Hook = Callable[[bytes], Awaitable[bytes | None]]


class Cut(Exception):
    """Pass on these bytes, then cut the connection."""

    def __init__(self, passed_on: bytes) -> None:
        super().__init__()
        self.passed_on = passed_on


async def pass_on(chunk: bytes) -> bytes | None:
    """Pass the chunk on unchanged."""
    return chunk


class Proxy:
    """Listens on its own port and passes chunks to and from a server through its hooks."""

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
        """Cut all open connections."""
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
            directions = [
                asyncio.create_task(_pump(reader, upstream, self._request)),
                asyncio.create_task(_pump(replies, writer, self._reply)),
            ]
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for direction in directions:
                    direction.cancel()
                await asyncio.gather(*directions, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            return  # the server is down, or the test cut the connection
        finally:
            for end in (writer, upstream):
                if end is not None:
                    end.close()
                    with contextlib.suppress(OSError):
                        await end.wait_closed()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, hook: Hook) -> None:
    while chunk := await source.read(1 << 16):
        try:
            passed = await hook(chunk)
        except Cut as cut:
            sink.write(cut.passed_on)
            await sink.drain()
            return
        if passed is None:
            return
        sink.write(passed)
        await sink.drain()
