"""A process's connection to Redis, and the retries of every operation.

redis-py's own retries are off, because a hidden retry of XADD duplicates the entry. Operations are retried
only here, with capped exponential backoff and jitter, until Redis answers. The socket time-out is longer than
a blocking read.
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

#: Errors to retry: Redis is unreachable, loading, out of memory, or has just failed over.
TRANSIENT = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.BusyLoadingError,
    redis_errors.OutOfMemoryError,
    redis_errors.ReadOnlyError,
    OSError,
    asyncio.IncompleteReadError,
)

#: Error replies to retry for which the client has no class: a script is running, a snapshot failed, too few
#: replicas. In a pipeline the client prefixes the command to the reply.
TRANSIENT_REFUSAL = re.compile(r"(^|caused error: )(BUSY|MISCONF|NOREPLICAS) ")

#: Errors that a retry cannot resolve, although the client classifies them as connection errors.
REFUSED = (redis_errors.AuthenticationError, redis_errors.AuthorizationError)

#: Text in an error reply → advice. Redis 6 reports a script's flags as a syntax error.
HINTS = {
    "WRONGTYPE": "; another program uses this key: give the system a database of its own",
    "compiling script": "; the system needs Redis 7.0 or Valkey",
}

R = TypeVar("R")


def client_of(url: str, *, answer_seconds: float, connect_seconds: float) -> Redis:
    """A client without retries that speaks RESP2 and parses replies accordingly."""
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
    """A client with retries, and its health."""

    def __init__(self, url: str) -> None:
        self.client = client_of(url, answer_seconds=SOCKET_TIMEOUT_SECONDS, connect_seconds=5.0)
        self.degraded = False  # true while Redis does not answer
        self.failures = 0  # failed attempts of any operation

    async def retried(self, what: str, operation: Callable[[], Awaitable[R]]) -> R:
        """Try an operation until Redis answers, or the task is cancelled.

        Args:
            what: the operation in words, for logs and errors, such as "append to mm:alerts".
            operation: makes one attempt.

        Raises:
            SettingsError: Redis rejects the password.
            ServiceError: Redis rejects the operation permanently, for example because a key has another type.
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
                        "put the user name in the URL and the password in MM_REDIS_PASSWORD"
                    ) from refused
                except Exception as failure:
                    if not _is_transient(failure):
                        _raise_rejection(what, failure)
                        raise
                    if not self.degraded:
                        log.warning("redis_unavailable", during=what, error=str(failure))
                    self.degraded = True
                    self.failures += 1
                    raise
                if self.degraded:
                    log.info("redis_back", during=what)
                self.degraded = False
                return result
        raise AssertionError("an endless retry loop ended")


async def cancellable(operation: Awaitable[R]) -> R:
    """Await a Redis operation, and raise CancelledError if the task was cancelled during it.

    The client loses cancellations. It polls its socket under `asyncio.timeout(0)`, which turns a cancellation
    at that moment into a time-out (CPython's `Timeout.__aexit__` cannot distinguish the two), and it turns a
    cancellation during a connect into a connection error. The task would continue as if it had not been
    cancelled.
    """
    task = asyncio.current_task()
    cancelling_before = task.cancelling() if task else 0
    try:
        return await operation
    finally:
        if task and task.cancelling() > cancelling_before:
            raise asyncio.CancelledError


def _is_transient(error: Exception) -> bool:
    if isinstance(error, redis_errors.ResponseError) and TRANSIENT_REFUSAL.search(str(error)):
        return True
    return isinstance(error, TRANSIENT) and not isinstance(error, REFUSED)


def _raise_rejection(what: str, error: Exception) -> None:
    """Raise ServiceError for an error reply; return for any other error."""
    if not isinstance(error, redis_errors.ResponseError):
        return
    hint = next((hint for text, hint in HINTS.items() if text in str(error)), "")
    raise ServiceError(f"Redis refuses to {what}: {error}{hint}") from error
