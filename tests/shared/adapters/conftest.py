"""Fixtures of the adapters' tests."""

from collections.abc import AsyncIterator

import pytest_asyncio
from redis.asyncio import Redis

from shared.adapters.streams.bus import Bus
from shared.runtime.redis_server import RedisServer


@pytest_asyncio.fixture
async def redis(redis_server: RedisServer, bus: Bus) -> AsyncIterator[Redis]:
    """A plain client beside the bus, to inspect Redis and to cause damage."""
    async with Redis.from_url(redis_server.url, protocol=2) as client:
        yield client
