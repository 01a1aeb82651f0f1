"""One consumer of a group: reads, reclaims what others left, acknowledges.

Only what is acknowledged leaves the stream. What cannot be read, or ended its reader again and again, goes to
the dead letters in the same script that takes it off its stream.

An entry's number of deliveries is Redis' own, but it is set here, and grows only when a process is handed
the entry: first among others; once it is found pending, its reader having ended, alone, so that one entry's
harm is not counted against the others of its batch. XREADGROUP and XAUTOCLAIM would count each reading of
what is pending, for all at once, also where a connection broke and nobody was handed anything (ADR 23).
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Generic, TypeVar, cast

import structlog
from prometheus_client import Counter
from redis import exceptions as redis_errors

from shared.adapters.streams.connection import RedisConnection
from shared.adapters.streams.dead_letters import DeadLetters
from shared.adapters.streams.entries import BLOCK_MS, READ_COUNT, Batch, Entry, RawEntry, add_entry, rows_of
from shared.adapters.streams.scripts import CLAIM, CREATE_GROUP, DELIVER, REMOVE
from shared.errors import MessageError
from shared.messages.codec import encode
from shared.messages.schemas import AlertRaised, Message
from shared.messages.streams import ALERTS, Stream

log = structlog.get_logger()

ENTRIES_GONE = Counter("mm_entries_gone", "Entries removed from a stream while they were pending")

#: What may be behind an entry that was delivered, never acknowledged, and is no longer there.
REMOVED_HINT = "it was removed from the stream before anyone finished with it: who trims or deletes there?"

#: A reader looks for abandoned entries so often in the time after which one counts as abandoned.
SWEEPS_PER_RECLAIM = 10

#: An entry that was delivered this often and never acknowledged is poison.
MAX_DELIVERIES = 3

#: What Redis answers where there is no group: to whom asks, and (7.0) to whom waits while the stream goes.
NO_GROUP = ("NOGROUP", "UNBLOCKED")

#: How often each entry that this process found pending had been delivered before, by its id.
Deliveries = MutableMapping[bytes, int]

M = TypeVar("M", bound=Message)


class GroupConsumer(Generic[M]):
    """A named consumer of a stream's group.

    `deliveries` outlives it: within one process an entry counts as delivered once, however often a consumer
    of this name is begun again.
    """

    def __init__(
        self,
        connection: RedisConnection,
        dead: DeadLetters,
        stream: Stream[M],
        group: str,
        name: str,
        *,
        reclaim_after_ms: int,
        deliveries: Deliveries,
    ) -> None:
        self._connection, self._redis, self._dead = connection, connection.client, dead
        self._stream, self._group, self._name = stream, group, name
        self._reclaim_after_ms = reclaim_after_ms
        self._deliveries = deliveries

    async def batches(self) -> AsyncIterator[Batch[M]]:
        """Its own pending entries first, then abandoned and new ones; `Bus.consume` tells the rest."""
        claim_from, next_sweep = "0-0", 0.0
        while True:
            pending_from = "-"
            while pending := await self._pending(pending_from):
                for entry_id in pending:
                    yield await self._alone(entry_id)
                pending_from = f"({pending[-1].decode()}"
            breaks = self._connection.breaks
            while self._connection.breaks == breaks:
                if claim_from != "0-0" or time.monotonic() >= next_sweep:
                    claim_from, claimed = await self._claim(claim_from)
                    next_sweep = time.monotonic() + self._reclaim_after_ms / 1_000 / SWEEPS_PER_RECLAIM
                    for entry_id in claimed:
                        yield await self._alone(entry_id)
                yield await self._batch(await self._read_new())

    async def _read_new(self) -> list[RawEntry]:
        return rows_of(
            await self._ask(
                f"consume {self._stream.key}",
                lambda: self._redis.xreadgroup(
                    self._group, self._name, {self._stream.key: ">"}, count=READ_COUNT, block=BLOCK_MS
                ),
            )
        )

    async def _ask(self, what: str, question: Callable[[], Awaitable[Any]]) -> Any:
        """The group's answer; None where there was no group: then there is one."""

        async def ask() -> Any:
            try:
                return await question()
            except redis_errors.ResponseError as refused:
                await self._make_group_or_raise(refused)
                return None

        return await self._connection.retried(what, ask)

    async def _make_group_or_raise(self, refused: redis_errors.ResponseError) -> None:
        """Make the group where there is none: it is the first reader, or Redis came back without its data."""
        if not any(words in str(refused) for words in NO_GROUP):
            raise refused
        try:
            await cast("Awaitable[bytes]", self._redis.eval(CREATE_GROUP, 1, self._stream.key, self._group))
        except redis_errors.ResponseError as there:
            if "BUSYGROUP" not in str(there):
                raise

    async def _pending(self, start: str) -> list[bytes]:
        """Ids of what is pending with this consumer, from one on."""
        pending = await self._ask(
            f"tell what is pending of {self._stream.key}",
            lambda: self._redis.xpending_range(
                self._stream.key, self._group, min=start, max="+", count=READ_COUNT, consumername=self._name
            ),
        )
        return [self._found(each["message_id"], int(each["times_delivered"])) for each in pending or ()]

    async def _claim(self, start: str) -> tuple[str, list[bytes]]:
        """Ids of entries that others left alone for long, now this consumer's, and where to look on."""
        key = self._stream.key
        arguments = [self._group, self._name, str(self._reclaim_after_ms), start, str(READ_COUNT)]
        reply = await self._ask(f"reclaim {key}", lambda: self._redis.eval(CLAIM, 1, key, *arguments))
        claim_from, claimed, gone = reply or (b"0-0", [], [])
        if gone:
            await self._tell_gone(gone)
        return claim_from.decode(), [self._found(entry_id, int(times)) for entry_id, times in claimed]

    def _found(self, entry_id: bytes, delivered: int) -> bytes:
        """Remember how often an entry was delivered before this process was handed it; its id."""
        before = self._deliveries.get(entry_id)
        if before is None or delivered > before + 1:  # else it is what this process made of it
            self._deliveries[entry_id] = delivered
        return entry_id

    async def _alone(self, entry_id: bytes) -> Batch[M]:
        """Deliver one pending entry once more, unless it is poison or no longer there."""
        before = self._deliveries.get(entry_id)
        if before is None:  # acknowledged since it was found, by who had it from an earlier reading
            return await self._batch([])
        key, delivery = self._stream.key, before + 1
        reply = await self._ask(
            f"read again from {key}",
            lambda: deliver(self._connection, key, self._group, self._name, entry_id, delivery),
        )
        rows = [(found, dict(zip(words[::2], words[1::2], strict=True))) for found, words in reply or ()]
        if reply is not None and not rows:
            await self._tell_gone([entry_id])
        if not rows:
            self._forget([entry_id])
        elif delivery > MAX_DELIVERIES:
            reason = f"delivered more than {MAX_DELIVERIES} times and never acknowledged"
            await self._bury(rows[0], reason)
            rows = []
        return await self._batch(rows)

    async def _tell_gone(self, gone: Sequence[bytes]) -> None:
        """Count and tell of entries that were delivered, never acknowledged, and are no longer there."""
        key, ids = self._stream.key, [entry_id.decode() for entry_id in gone]
        ENTRIES_GONE.inc(len(ids))
        for entry_id in ids:
            log.error("entry_gone", stream=key, entry_id=entry_id, hint=REMOVED_HINT)
        detail = f"{len(ids)} of {key}, the first {ids[0]}: {REMOVED_HINT}"
        alert = encode(AlertRaised(source=self._group, name="entries_gone", detail=detail))
        await self._connection.retried("raise an alert", lambda: add_entry(self._redis, ALERTS, alert))

    async def _bury(self, raw: RawEntry, reason: str) -> None:
        await self._dead.bury(self._stream, self._group, raw, reason)
        self._forget([raw[0]])

    async def _batch(self, rows: Sequence[RawEntry]) -> Batch[M]:
        entries = []
        for raw in rows:
            try:
                entries.append(Entry.of(self._stream, raw))
            except MessageError as unreadable:
                await self._bury(raw, str(unreadable))

        async def ack() -> None:
            ids = [entry.entry_id for entry in entries]
            if ids:
                await self._connection.retried(f"acknowledge {self._stream.key}", lambda: self._remove(ids))
                self._forget([entry_id.encode() for entry_id in ids])

        return Batch(entries, ack)

    async def _remove(self, ids: Sequence[str]) -> None:
        await cast("Awaitable[int]", self._redis.eval(REMOVE, 1, self._stream.key, self._group, *ids))

    def _forget(self, ids: Sequence[bytes]) -> None:
        for entry_id in ids:
            self._deliveries.pop(entry_id, None)


async def deliver(
    connection: RedisConnection, key: str, group: str, consumer: str, entry_id: bytes, delivery: int
) -> Sequence[tuple[bytes, Sequence[bytes]]] | None:
    """Set how often a consumer's pending entry was delivered.

    Returns:
        The entry, its fields' names and values in turn; an empty list where it was removed; None where it is
        not pending with this consumer: acknowledged, or another one's now.
    """
    arguments = cast("list[str]", [group, consumer, entry_id, delivery])
    reply = connection.client.eval(DELIVER, 1, key, *arguments)
    return await cast("Awaitable[Sequence[tuple[bytes, Sequence[bytes]]] | None]", reply)
