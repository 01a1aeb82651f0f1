"""Streams with one JSON object per line, heartbeats, and injected disconnects and stalls."""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.broker.venue import Subscription, Venue
from services.broker.wire import Json


class LineStream(Response):
    """Sends the lines of a subscription until the client disconnects, the broker stops, or a fault happens.

    An injected disconnect cuts the stream inside a line, without ending the HTTP body. An injected stall
    keeps the connection open and sends nothing, not even heartbeats.
    """

    media_type = "application/octet-stream"

    def __init__(
        self,
        venue: Venue,
        subscribed: AbstractContextManager[Subscription],
        *,
        first: Sequence[Json],
        heartbeat: Callable[[], Json],
    ) -> None:
        """`first` are lines to send before those of the subscription."""
        super().__init__()
        del self.headers["content-length"]
        self._venue, self._subscribed = venue, subscribed
        self._first, self._heartbeat = first, heartbeat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, as an ASGI application."""
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        with self._subscribed as subscription:
            await send(start)
            sending = asyncio.create_task(self._send_lines(subscription, send))
            disconnected = asyncio.create_task(_until_disconnected(receive))
            stopping = asyncio.create_task(self._venue.stopping.wait())
            try:
                await asyncio.wait({sending, disconnected, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    sending.result()
                elif stopping.done():
                    await send({"type": "http.response.body", "body": b""})
            finally:
                for task in (sending, disconnected, stopping):
                    task.cancel()
                await asyncio.gather(sending, disconnected, stopping, return_exceptions=True)

    async def _send_lines(self, subscription: Subscription, send: Send) -> None:
        """Send lines until an injected disconnect, or until the reader is too far behind."""
        for line in self._first:
            await _send(send, _encode(line))
        seconds = self._venue.config.heartbeat_seconds
        loop = asyncio.get_running_loop()
        next_heartbeat = loop.time() + seconds
        faults = self._venue.faults
        while not subscription.overrun:
            try:
                async with asyncio.timeout_at(next_heartbeat):
                    text = _encode(await subscription.lines.get())
            except TimeoutError:
                text = _encode(self._heartbeat())
                next_heartbeat = loop.time() + seconds
            if faults.occurs(faults.config.stall_probability):
                await asyncio.sleep(faults.config.stall_seconds)
            if faults.occurs(faults.config.disconnect_probability):
                await _send(send, text[: len(text) // 2])
                return
            await _send(send, text)


async def _send(send: Send, text: bytes) -> None:
    await send({"type": "http.response.body", "body": text, "more_body": True})


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _encode(line: Json) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"
