"""A consumer of a consumer group: reads new entries, claims abandoned ones, and acknowledges.

An entry leaves the stream only when it is acknowledged, or when it becomes a dead letter: because it cannot
be decoded, or because its consumers crashed repeatedly. One script moves it to the dead letters atomically.

New entries are delivered in batches. After a crash each pending entry is redelivered alone, so that a poison
entry does not raise the delivery count of its neighbours. This module sets the delivery count that Redis
keeps, and raises it only when a process receives the entry. XREADGROUP and XAUTOCLAIM would raise it for all
pending entries at every read, even if the connection broke and nobody received them (ADR 23).
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
from shared.adapters.streams.scripts import CLAIM, CREATE_GROUP, REMOVE, SET_DELIVERY_COUNT
from shared.errors import MessageError
from shared.messages.codec import encode
from shared.messages.schemas import AlertRaised, Message
from shared.messages.streams import ALERTS, Stream

log = structlog.get_logger()

ENTRIES_GONE = Counter("mm_entries_gone", "Entries removed from a stream while they were pending")

#: Likely cause of a pending entry that is missing from the stream.
REMOVED_HINT = (
    "it was removed from the stream before it was acknowledged; find out which program trims or deletes it"
)

#: Searches for abandoned entries per reclaim time.
SWEEPS_PER_RECLAIM = 10

#: An entry that was delivered more often without an acknowledgement is poison and becomes a dead letter.
MAX_DELIVERIES = 3

#: Error replies if the group is missing. UNBLOCKED (Redis 7.0): the stream was deleted during a read.
NO_GROUP = ("NOGROUP", "UNBLOCKED")

#: Entry id → deliveries before this process, for the entries that this process found pending.
Deliveries = MutableMapping[bytes, int]

M = TypeVar("M", bound=Message)


class GroupConsumer(Generic[M]):
    """A named consumer of a stream's group.

    `deliveries` outlives the consumer: within one process an entry counts as delivered once, even if a
    consumer with this name starts several times.
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
        """Pending entries of this consumer first, then abandoned and new ones; see `Bus.consume`."""
        claim_from, next_sweep = "0-0", 0.0
        while True:
            pending_from = "-"
            while pending := await self._pending(pending_from):
                for entry_id in pending:
                    yield await self._redeliver(entry_id)
                pending_from = f"({pending[-1].decode()}"
            failures = self._connection.failures
            while self._connection.failures == failures:  # a failed read may have left pending entries
                if claim_from != "0-0" or time.monotonic() >= next_sweep:
                    claim_from, claimed = await self._claim(claim_from)
                    next_sweep = time.monotonic() + self._reclaim_after_ms / 1_000 / SWEEPS_PER_RECLAIM
                    for entry_id in claimed:
                        yield await self._redeliver(entry_id)
                yield await self._batch(await self._read_new())

    async def _read_new(self) -> list[RawEntry]:
        return rows_of(
            await self._run(
                f"consume {self._stream.key}",
                lambda: self._redis.xreadgroup(
                    self._group, self._name, {self._stream.key: ">"}, count=READ_COUNT, block=BLOCK_MS
                ),
            )
        )

    async def _run(self, what: str, command: Callable[[], Awaitable[Any]]) -> Any:
        """Run a group command and return its reply; if the group is missing, create it and return None."""

        async def attempt() -> Any:
            try:
                return await command()
            except redis_errors.ResponseError as refused:
                await self._create_group_or_raise(refused)
                return None

        return await self._connection.retried(what, attempt)

    async def _create_group_or_raise(self, refused: redis_errors.ResponseError) -> None:
        """Create the missing group: this is the first consumer, or Redis restarted without its data."""
        if not any(words in str(refused) for words in NO_GROUP):
            raise refused
        try:
            await cast("Awaitable[bytes]", self._redis.eval(CREATE_GROUP, 1, self._stream.key, self._group))
        except redis_errors.ResponseError as exists:
            if "BUSYGROUP" not in str(exists):
                raise

    async def _pending(self, start: str) -> list[bytes]:
        """Ids of this consumer's pending entries, beginning at `start`."""
        pending = await self._run(
            f"list pending entries of {self._stream.key}",
            lambda: self._redis.xpending_range(
                self._stream.key, self._group, min=start, max="+", count=READ_COUNT, consumername=self._name
            ),
        )
        return [self._remember(each["message_id"], int(each["times_delivered"])) for each in pending or ()]

    async def _claim(self, start: str) -> tuple[str, list[bytes]]:
        """Claim abandoned entries; returns the id at which to continue the search, and the claimed ids."""
        key = self._stream.key
        arguments = [self._group, self._name, str(self._reclaim_after_ms), start, str(READ_COUNT)]
        reply = await self._run(f"claim from {key}", lambda: self._redis.eval(CLAIM, 1, key, *arguments))
        claim_from, claimed, missing = reply or (b"0-0", [], [])
        if missing:
            await self._report_missing(missing)
        return claim_from.decode(), [self._remember(entry_id, int(times)) for entry_id, times in claimed]

    def _remember(self, entry_id: bytes, delivered: int) -> bytes:
        """Remember an entry's delivery count before this process received it; returns the id."""
        before = self._deliveries.get(entry_id)
        if before is None or delivered > before + 1:  # otherwise this process itself set the count
            self._deliveries[entry_id] = delivered
        return entry_id

    async def _redeliver(self, entry_id: bytes) -> Batch[M]:
        """A batch of one pending entry; an empty batch if the entry is poison, missing or acknowledged."""
        before = self._deliveries.get(entry_id)
        if before is None:  # this process has acknowledged it since, from an earlier batch
            return await self._batch([])
        key, delivery = self._stream.key, before + 1
        reply = await self._run(
            f"redeliver from {key}",
            lambda: set_delivery_count(self._connection, key, self._group, self._name, entry_id, delivery),
        )
        rows = [(found, dict(zip(words[::2], words[1::2], strict=True))) for found, words in reply or ()]
        if reply is not None and not rows:
            await self._report_missing([entry_id])
        if not rows:
            self._forget([entry_id])
        elif delivery > MAX_DELIVERIES:
            reason = f"delivered more than {MAX_DELIVERIES} times and never acknowledged"
            await self._dead_letter(rows[0], reason)
            rows = []
        return await self._batch(rows)

    async def _report_missing(self, missing: Sequence[bytes]) -> None:
        """Count, log and alert pending entries that are missing from the stream."""
        key, ids = self._stream.key, [entry_id.decode() for entry_id in missing]
        ENTRIES_GONE.inc(len(ids))
        for entry_id in ids:
            log.error("entry_gone", stream=key, entry_id=entry_id, hint=REMOVED_HINT)
        detail = f"{len(ids)} of {key}, the first {ids[0]}: {REMOVED_HINT}"
        alert = encode(AlertRaised(source=self._group, name="entries_gone", detail=detail))
        await self._connection.retried("raise an alert", lambda: add_entry(self._redis, ALERTS, alert))

    async def _dead_letter(self, raw: RawEntry, reason: str) -> None:
        await self._dead.move(self._stream, self._group, raw, reason)
        self._forget([raw[0]])

    async def _batch(self, rows: Sequence[RawEntry]) -> Batch[M]:
        entries = []
        for raw in rows:
            try:
                entries.append(Entry.of(self._stream, raw))
            except MessageError as unreadable:
                await self._dead_letter(raw, str(unreadable))

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


async def set_delivery_count(
    connection: RedisConnection, key: str, group: str, consumer: str, entry_id: bytes, count: int
) -> Sequence[tuple[bytes, Sequence[bytes]]] | None:
    """Set the delivery count of a consumer's pending entry.

    Returns:
        The entry, with names and values of its fields alternating; an empty list if it was removed from the
        stream; None if it is not pending with this consumer, because it was acknowledged or claimed.
    """
    arguments = cast("list[str]", [group, consumer, entry_id, count])
    reply = connection.client.eval(SET_DELIVERY_COUNT, 1, key, *arguments)
    return await cast("Awaitable[Sequence[tuple[bytes, Sequence[bytes]]] | None]", reply)
