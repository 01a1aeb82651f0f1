"""One consumer of a group: reads, reclaims what others left, acknowledges.

Only what is acknowledged leaves the stream. What cannot be read, or was delivered again and again, goes to
the dead letters in the same script that takes it off its stream.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, Generic, TypeVar, cast

import structlog
from redis import exceptions as redis_errors

from shared.adapters.dead_letters import DeadLetters
from shared.adapters.entries import BLOCK_MS, READ_COUNT, Batch, Entry, RawEntry, rows_of
from shared.adapters.redis_connection import RedisConnection
from shared.adapters.redis_scripts import CREATE_GROUP, REMOVE
from shared.errors import MessageError
from shared.messages.schemas import Message
from shared.messages.streams import Stream

log = structlog.get_logger()

#: What may be behind an entry that was delivered, never acknowledged, and is no longer there.
REMOVED_HINT = "it was removed from the stream before anyone finished with it: who trims or deletes there?"

#: A reader looks for abandoned entries so often in the time after which one counts as abandoned.
SWEEPS_PER_RECLAIM = 10

#: An entry that was delivered this often and never acknowledged is poison.
MAX_DELIVERIES = 3

M = TypeVar("M", bound=Message)


class GroupConsumer(Generic[M]):
    """A named consumer of a stream's group."""

    def __init__(
        self,
        connection: RedisConnection,
        dead: DeadLetters,
        stream: Stream[M],
        group: str,
        name: str,
        *,
        reclaim_after_ms: int,
    ) -> None:
        self._connection, self._redis, self._dead = connection, connection.client, dead
        self._stream, self._group, self._name = stream, group, name
        self._reclaim_after_ms = reclaim_after_ms

    async def batches(self) -> AsyncIterator[Batch[M]]:
        """Its own pending entries first, then abandoned and new ones; `Bus.consume` tells the rest."""
        claim_from, next_sweep = "0-0", 0.0
        while True:
            pending_from = "0-0"
            while pending_from:
                rows = await self._read(pending_from, block_ms=None)
                pending_from = rows[-1][0].decode() if rows else ""
                if rows:
                    yield await self._batch(rows)
            breaks = self._connection.breaks
            while self._connection.breaks == breaks:
                if claim_from != "0-0" or time.monotonic() >= next_sweep:
                    claim_from, claimed = await self._claim(claim_from)
                    next_sweep = time.monotonic() + self._reclaim_after_ms / 1_000 / SWEEPS_PER_RECLAIM
                    if claimed:
                        yield await self._batch(claimed)
                yield await self._batch(await self._read(">", block_ms=BLOCK_MS))

    async def _read(self, start: str, *, block_ms: int | None) -> list[RawEntry]:
        async def read() -> object:
            try:
                return await self._redis.xreadgroup(
                    self._group, self._name, {self._stream.key: start}, count=READ_COUNT, block=block_ms
                )
            except redis_errors.ResponseError as refused:
                await self._make_group_or_raise(refused)
                return []

        return rows_of(await self._connection.retried(f"consume {self._stream.key}", read))

    async def _make_group_or_raise(self, refused: redis_errors.ResponseError) -> None:
        """Make the group where there is none: it is the first reader, or Redis came back without its data."""
        if "NOGROUP" not in str(refused):
            raise refused
        try:
            await cast("Awaitable[bytes]", self._redis.eval(CREATE_GROUP, 1, self._stream.key, self._group))
        except redis_errors.ResponseError as there:
            if "BUSYGROUP" not in str(there):
                raise

    async def _claim(self, start: str) -> tuple[str, list[RawEntry]]:
        """Entries that others left alone for long, and where to look on; without those that are poison."""
        key = self._stream.key

        async def claim() -> Sequence[Any]:
            try:
                reply = await self._redis.xautoclaim(
                    key,
                    self._group,
                    self._name,
                    min_idle_time=self._reclaim_after_ms,
                    start_id=start,
                    count=READ_COUNT,
                )
            except redis_errors.ResponseError as refused:
                await self._make_group_or_raise(refused)
                return (b"0-0", [])
            return cast("Sequence[Any]", reply)

        reply = await self._connection.retried(f"reclaim {key}", claim)
        for gone in reply[2] if len(reply) > 2 else ():  # Redis 7 tells
            log.error("entry_gone", stream=key, entry_id=gone.decode(), hint=REMOVED_HINT)
        rows = [row for row in reply[1] if row[1]]
        poison = await self._poison_among(rows) if rows else set()
        for row in rows:
            if row[0] in poison:
                reason = f"delivered more than {MAX_DELIVERIES} times and never acknowledged"
                await self._dead.bury(self._stream, self._group, row, reason)
        return reply[0].decode(), [row for row in rows if row[0] not in poison]

    async def _poison_among(self, rows: Sequence[RawEntry]) -> set[bytes]:
        """Ids of those that were delivered too often."""
        pending = await self._connection.retried(
            f"tell what is pending of {self._stream.key}",
            lambda: self._redis.xpending_range(
                self._stream.key,
                self._group,
                min=rows[0][0],
                max=rows[-1][0],
                count=READ_COUNT,
                consumername=self._name,
            ),
        )
        often = (each for each in pending if int(each["times_delivered"]) > MAX_DELIVERIES)
        return {cast("bytes", each["message_id"]) for each in often}

    async def _batch(self, rows: Sequence[RawEntry]) -> Batch[M]:
        entries = []
        for raw in rows:
            if not raw[1]:  # deleted while it was pending: nothing is left to read
                continue
            try:
                entries.append(Entry.of(self._stream, raw))
            except MessageError as unreadable:
                await self._dead.bury(self._stream, self._group, raw, str(unreadable))

        async def ack() -> None:
            ids = [entry.entry_id for entry in entries]
            if ids:
                await self._connection.retried(f"acknowledge {self._stream.key}", lambda: self._remove(ids))

        return Batch(entries, ack)

    async def _remove(self, ids: Sequence[str]) -> None:
        await cast("Awaitable[int]", self._redis.eval(REMOVE, 1, self._stream.key, self._group, *ids))
