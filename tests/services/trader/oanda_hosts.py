"""A broker that poses as OANDA's hosts: the trader reaches it over TLS by OANDA's own names.

Environment variables give the trader an HTTPS proxy and a certificate authority, as an operator could. The
proxy accepts requests for OANDA's four hosts, presents the certificate of the requested host, and forwards
the bytes to a paper broker. A request for any other host is refused.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from tests.services.trader.parts import Broker

PRACTICE = ("api-fxpractice.oanda.com", "stream-fxpractice.oanda.com")
LIVE = ("api-fxtrade.oanda.com", "stream-fxtrade.oanda.com")


@asynccontextmanager
async def posing_as_oanda(
    broker: Broker, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[str]]:
    """Let the trader reach this broker at OANDA's hosts; yields the hosts that it connected to."""
    authority = trustme.CA()
    contexts = {}
    for host in (*PRACTICE, *LIVE):
        contexts[host] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(host).configure_cert(contexts[host])
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    connected: list[str] = []
    serving: set[asyncio.Task[None]] = set()
    port = int(broker.url.rsplit(":", 1)[1])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, target, _ = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)
        host, _, asked_port = target.decode().partition(":")
        assert (method, asked_port) == (b"CONNECT", "443")
        connected.append(host)
        if host not in contexts:
            writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            writer.close()
            return
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await writer.start_tls(contexts[host])
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
        ways = {asyncio.create_task(_pipe(reader, to_writer)), asyncio.create_task(_pipe(to_reader, writer))}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, to_writer):
                end.close()
                with contextlib.suppress(OSError):
                    await end.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    proxy = await asyncio.start_server(accept, "127.0.0.1", 0)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "authority.pem"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    try:
        yield connected
    finally:
        proxy.close()
        for task in set(serving):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await proxy.wait_closed()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
