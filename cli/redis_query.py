"""Ask a running Redis a question, with a time limit and an error that an operator can act on."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import urlsplit

from redis.exceptions import RedisError

from shared.adapters.streams.bus import Bus
from shared.errors import ServiceError, SettingsError

#: Time limit of each operation.
TIMEOUT_SECONDS = 10.0

R = TypeVar("R")


async def query_redis(url: str, query: Callable[[Bus], Awaitable[R]], advice: str) -> R:
    """Connect to Redis, run a query, and close the connections.

    Args:
        url: URL of the Redis.
        query: runs the operations, each within `in_time`.
        advice: added to the error text when Redis does not answer.
    Raises:
        SettingsError: the URL is invalid.
        ServiceError: Redis does not answer.
    """
    try:
        bus = Bus(url)
    except ValueError as invalid:
        raise SettingsError(f"setting MM_REDIS_URL: {invalid}") from invalid
    try:
        await in_time(bus.ping())
        return await query(bus)
    except (RedisError, OSError) as failure:
        parts = urlsplit(url)
        raise ServiceError(
            f"Redis at {parts.hostname}:{parts.port or 6379}: {str(failure) or 'no answer in time'}; {advice}"
        ) from failure
    finally:
        await bus.close()


async def in_time(operation: Awaitable[R]) -> R:
    """Await one operation for at most `TIMEOUT_SECONDS`.

    Raises:
        TimeoutError: it took longer.
    """
    async with asyncio.timeout(TIMEOUT_SECONDS):
        return await operation
