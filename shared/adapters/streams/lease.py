"""A lease in Redis: one holder at a time, with a token that grows from holder to holder.

The holder renews it well before it runs out. It counts the lease's time by its own monotonic clock, from
before it asked, so it always considers the lease expired before Redis does. The lease guards entries: a
close is idempotent at the account and is sent without it.
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

#: A holder stops this share of the lease's time before it runs out, for clocks that run unevenly.
MARGIN = 0.2


class Lease:
    """One process's claim to a name; `keep` renews it until it is cancelled."""

    def __init__(self, url: str, name: str, holder: str, *, seconds: float) -> None:
        self._redis = client_of(url, answer_seconds=2.0, connect_seconds=2.0)
        self._key, self._token_key = f"mm:lease:{name}", f"mm:lease:{name}:token"
        self._holder, self._seconds = holder, seconds
        self._token = 0
        self._until = 0.0
        self._renewed = asyncio.Event()

    @property
    def token(self) -> int | None:
        """The fencing token while the lease is held, else None."""
        return self._token if time.monotonic() < self._until else None

    async def keep(self) -> None:
        """Acquire the lease when it is free and renew it, for ever.

        Raises:
            ServiceError: it ran out and another one holds it now.
        """
        while True:
            await self._renew()
            await asyncio.sleep(self._seconds / 4)

    async def acquired(self) -> None:
        """Wait until the lease is held; `keep` must run."""
        while self.token is None:
            self._renewed.clear()
            await self._renewed.wait()

    async def release(self) -> None:
        """Let the lease go, so that the next holder need not wait until it runs out."""
        held, self._until = self._token, 0.0
        try:
            await self._redis.eval(RELEASE_LEASE, 1, self._key, f"{held} {self._holder}")
        except (RedisError, OSError) as away:
            log.debug("lease_not_released", error=str(away))
        await self._redis.aclose()

    async def _renew(self) -> None:
        asked = time.monotonic()
        had = self.token
        try:
            asking = self._redis.eval(
                ACQUIRE_LEASE,
                2,
                self._key,
                self._token_key,
                self._holder,
                str(int(self._seconds * 1e3)),
            )
            token = int(await cancellable(cast("Awaitable[int]", asking)))
        except (RedisError, OSError) as away:
            log.debug("lease_not_renewed", error=str(away))
            return
        if token == 0:
            self._until = 0.0
            if self._token:
                raise ServiceError(f"lease {self._key} was lost to another holder while this one was away")
            return
        self._token = token
        self._until = asked + self._seconds * (1.0 - MARGIN)
        if had is None:
            log.info("lease_acquired", key=self._key, fence=token)
        self._renewed.set()
