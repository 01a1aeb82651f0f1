"""A lease in Redis: at most one holder at a time, with a fencing token that increases with each new holder.

The holder renews the lease well before it expires. It measures the lease time with its own monotonic clock,
starting before it sends the request, so it always considers the lease expired before Redis does. Only orders
that open a position need the lease. Closing a position is idempotent at the broker and needs no lease.
"""

import asyncio
import time
from collections.abc import Awaitable
from typing import cast

import structlog
from redis.exceptions import RedisError

from shared.adapters.streams.connection import cancellable, client_of
from shared.adapters.streams.scripts import ACQUIRE_LEASE, RELEASE_LEASE
from shared.errors import ServiceError

log = structlog.get_logger()

#: Fraction of the lease time by which the holder considers the lease expired early. It allows for clocks that
#: run at different rates.
MARGIN = 0.2


class Lease:
    """A named lease. While `keep` runs, this process tries to acquire the lease and renews it."""

    def __init__(self, url: str, name: str, holder: str, *, seconds: float) -> None:
        self._redis = client_of(url, answer_seconds=2.0, connect_seconds=2.0)
        self._key, self._token_key = f"mm:lease:{name}", f"mm:lease:{name}:token"
        self._holder, self._seconds = holder, seconds
        self._token = 0
        self._expires_at = 0.0  # on the monotonic clock, margin included
        self._renewed = asyncio.Event()
        self._is_failing = False

    @property
    def token(self) -> int | None:
        """The fencing token while this process holds the lease, otherwise None."""
        return self._token if time.monotonic() < self._expires_at else None

    async def keep(self) -> None:
        """Acquire the lease as soon as it is free, and renew it until cancelled.

        Raises:
            ServiceError: the lease expired and another holder acquired it.
        """
        while True:
            await self._renew()
            await asyncio.sleep(self._seconds / 4)

    async def acquired(self) -> None:
        """Wait until this process holds the lease; `keep` must be running."""
        while self.token is None:
            self._renewed.clear()
            await self._renewed.wait()

    async def release(self) -> None:
        """Release the lease, so that the next holder need not wait for its expiry."""
        held, self._expires_at = self._token, 0.0
        try:
            await self._redis.eval(RELEASE_LEASE, 1, self._key, f"{held} {self._holder}")
        except (RedisError, OSError) as failure:
            log.debug("lease_not_released", error=str(failure))
        await self._redis.aclose()

    async def _renew(self) -> None:
        sent_at = time.monotonic()
        before = self.token
        try:
            request = self._redis.eval(
                ACQUIRE_LEASE,
                2,
                self._key,
                self._token_key,
                self._holder,
                str(int(self._seconds * 1e3)),
            )
            token = int(await cancellable(cast("Awaitable[int]", request)))
        except (RedisError, OSError) as failure:
            if not self._is_failing:
                log.warning("lease_not_renewed", key=self._key, error=str(failure))
            self._is_failing = True
            return
        self._is_failing = False
        if token == 0:
            self._expires_at = 0.0
            if self._token:
                raise ServiceError(f"lease {self._key} expired and was acquired by another holder")
            return
        self._token = token
        self._expires_at = sent_at + self._seconds * (1.0 - MARGIN)
        if before is None:
            log.info("lease_acquired", key=self._key, fence=token)
        self._renewed.set()
