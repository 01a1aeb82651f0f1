"""One process's connection to Redis, and the one place where what failed is tried again.

redis-py's own retries are off, since a hidden retry of XADD repeats the entry. Every operation is retried
here, with capped exponential back-off and jitter, for as long as Redis is away; a socket waits longer than
a blocking read blocks.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

import stamina
import structlog
from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from shared.errors import ServiceError, SettingsError

log = structlog.get_logger()

SOCKET_TIMEOUT_SECONDS = 10.0

#: What is worth waiting for: Redis is away, starting, full, or was just failed over.
TRANSIENT = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.BusyLoadingError,
    redis_errors.OutOfMemoryError,
    redis_errors.ReadOnlyError,
    OSError,
    asyncio.IncompleteReadError,
)

#: Refusals worth waiting for that the client has no class for: a script runs, a snapshot failed, too few
#: replicas. Within a pipeline the client writes the command before them.
TRANSIENT_REFUSAL = re.compile(r"(^|caused error: )(BUSY|MISCONF|NOREPLICAS) ")

#: Kinds of a lost connection, to the client, that no waiting mends.
REFUSED = (redis_errors.AuthenticationError, redis_errors.AuthorizationError)

#: What would be right, by a refusal's words. A script's flags are a syntax error to Redis 6.
HINTS = {
    "WRONGTYPE": "; another program keeps something else there: give the system a database of its own",
    "compiling script": "; the system needs Redis 7.0 or Valkey",
}

R = TypeVar("R")


def client_of(url: str, *, answer_seconds: float, connect_seconds: float) -> Redis:
    """A client that tries once, in RESP2 and with the shapes of replies that come with it."""
    return Redis.from_url(
        url,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        socket_timeout=answer_seconds,
        socket_connect_timeout=connect_seconds,
        health_check_interval=15,
        protocol=2,
        legacy_responses=True,
        decode_responses=False,
    )


class RedisConnection:
    """A client, and whether it gets answers."""

    def __init__(self, url: str) -> None:
        self.client = client_of(url, answer_seconds=SOCKET_TIMEOUT_SECONDS, connect_seconds=5.0)
        self.degraded = False  # true while Redis does not answer
        self.breaks = 0  # tries that failed, of whatever was asked

    async def retried(self, what: str, operation: Callable[[], Awaitable[R]]) -> R:
        """Try until Redis answers; a cancelled task stops trying.

        Args:
            what: is asked, for logs and errors: "append to mm:alerts".
            operation: makes one try.

        Raises:
            SettingsError: Redis refuses the password.
            ServiceError: it refuses what is asked, and always will: a key holds something else, say.
        """
        async for attempt in stamina.retry_context(
            on=_is_transient, attempts=None, timeout=None, wait_initial=0.05, wait_max=5.0, wait_jitter=0.5
        ):
            with attempt:
                try:
                    result = await cancellable(operation())
                except REFUSED as refused:
                    raise SettingsError(
                        f"setting MM_REDIS_URL: Redis refuses to {what}: {refused}; "
                        "give the server's user in the URL and its password in MM_REDIS_PASSWORD"
                    ) from refused
                except Exception as away:
                    if not _is_transient(away):
                        _tell_refusal(what, away)
                        raise
                    if not self.degraded:
                        log.warning("redis_away", during=what, error=str(away))
                    self.degraded = True
                    self.breaks += 1
                    raise
                if self.degraded:
                    log.info("redis_back", during=what)
                self.degraded = False
                return result
        raise AssertionError("a retry loop without an end came to its end")


async def cancellable(operation: Awaitable[R]) -> R:
    """The result of an operation, or its error, unless the task was cancelled during it.

    The client looks at its socket under `asyncio.timeout(0)`, which turns a cancellation that arrives
    at that moment into its own time-out (CPython's `Timeout.__aexit__` cannot tell the two apart), and one
    that arrives while it connects into a broken connection: the task would go on as if nothing had been
    asked of it.
    """
    task = asyncio.current_task()
    asked_before = task.cancelling() if task else 0
    try:
        return await operation
    finally:
        if task and task.cancelling() > asked_before:
            raise asyncio.CancelledError


def _is_transient(error: Exception) -> bool:
    if isinstance(error, redis_errors.ResponseError) and TRANSIENT_REFUSAL.search(str(error)):
        return True
    return isinstance(error, TRANSIENT) and not isinstance(error, REFUSED)


def _tell_refusal(what: str, error: Exception) -> None:
    """Raise a refusal that stays one as an error of ours; anything else is left to the caller."""
    if not isinstance(error, redis_errors.ResponseError):
        return
    hint = next((hint for refusal, hint in HINTS.items() if refusal in str(error)), "")
    raise ServiceError(f"Redis refuses to {what}: {error}{hint}") from error
