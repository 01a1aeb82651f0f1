"""Leases: one holder at a time, growing tokens, and expiry at the holder before expiry in Redis."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
from redis.asyncio import Redis
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.adapters.streams.bus import Bus
from shared.adapters.streams.lease import Lease
from shared.errors import ServiceError
from shared.runtime.ports import free_port
from shared.runtime.redis_server import RedisServer
from tests.waiting import PATIENCE_SECONDS


@asynccontextmanager
async def kept(url: str, holder: str, seconds: float = 2.0) -> AsyncIterator[Lease]:
    lease = Lease(url, "test", holder, seconds=seconds)
    keeping = asyncio.create_task(lease.keep())
    try:
        yield lease
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await lease.release()


async def test_a_cancelled_holder_stops_even_if_the_client_swallows_the_cancellation(
    bus: Bus, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = asyncio.Event()

    async def swallow(*_: object) -> None:
        sent.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise RedisTimeoutError from None

    monkeypatch.setattr(Redis, "eval", swallow)
    lease = Lease(redis_server.url, "test", "one", seconds=2.0)
    keeping = asyncio.create_task(lease.keep())
    await sent.wait()
    keeping.cancel()
    done, _ = await asyncio.wait({keeping}, timeout=5)
    keeping.cancel()  # in case the first cancellation was lost
    assert done
    assert keeping.cancelled()


async def test_a_second_process_waits_until_the_holder_releases_the_lease(
    bus: Bus, redis_server: RedisServer
) -> None:
    async with kept(redis_server.url, "two") as second:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await second.acquired()
            first_token = second.token
            async with kept(redis_server.url, "one") as first:
                await asyncio.sleep(1.2)
                assert first.token is None
                assert second.token == first_token
    async with kept(redis_server.url, "one") as first, asyncio.timeout(PATIENCE_SECONDS):
        await first.acquired()
        assert first.token is not None
        assert first_token is not None
        assert first.token > first_token


async def test_the_lease_of_a_dead_holder_expires(bus: Bus, redis_server: RedisServer) -> None:
    dead = Lease(redis_server.url, "test", "dead", seconds=1.0)
    keeping = asyncio.create_task(dead.keep())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await dead.acquired()
        keeping.cancel()
        async with kept(redis_server.url, "heir") as heir:
            assert heir.token is None
            await heir.acquired()
            assert dead.token is None, "the holder considers the lease expired before Redis does"
            with pytest.raises(ServiceError, match="acquired by another holder"):
                await dead.keep()
            await dead.release()
            await asyncio.sleep(0.6)
            assert heir.token is not None, "the lease of another holder is not released"


async def test_the_token_grows_even_if_redis_lost_its_data(bus: Bus, redis_server: RedisServer) -> None:
    async with kept(redis_server.url, "one") as first, asyncio.timeout(PATIENCE_SECONDS):
        await first.acquired()
        token = first.token
    assert token is not None
    async with Redis.from_url(redis_server.url) as client:
        await client.flushall()
    await asyncio.sleep(1.1)
    async with kept(redis_server.url, "one") as again, asyncio.timeout(PATIENCE_SECONDS):
        await again.acquired()
        assert again.token is not None
        assert again.token > token


async def test_a_lease_that_cannot_be_renewed_is_logged_once() -> None:
    with structlog.testing.capture_logs() as logged:
        async with kept(f"redis://127.0.0.1:{free_port()}", "one", seconds=0.4):
            await asyncio.sleep(1.0)  # ten attempts
    refused = [line for line in logged if line["event"] == "lease_not_renewed"]
    assert [line["log_level"] for line in refused] == ["warning"]


async def test_a_lease_expires_while_redis_is_unavailable(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, free_port())
    server.start()
    async with kept(server.url, "one", seconds=1.0) as lease, asyncio.timeout(PATIENCE_SECONDS):
        await lease.acquired()
        server.stop(kill=True)
        while lease.token is not None:  # noqa: ASYNC110  it expires by the local clock
            await asyncio.sleep(0.02)
        server.start()
        await lease.acquired()
    server.stop()
