"""Redis streams (append, consume, follow, announce) and heartbeats.

Guarantees (docs/messages.md):
- Every operation is retried until Redis answers (connection.py).
- Trajectories leave their stream only when they are acknowledged or become dead letters (consumer_group.py).
- Entries that cannot be decoded are kept as dead letters (dead_letters.py).
- While Redis is out of memory, only trajectories wait (scripts.py).
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from functools import partial
from typing import TypeVar, cast

import structlog
from prometheus_client import Counter
from pydantic import ValidationError
from redis import exceptions as redis_errors

from shared.adapters.streams.condition import RedisCondition, read_condition
from shared.adapters.streams.connection import RedisConnection, cancellable
from shared.adapters.streams.consumer_group import Deliveries, GroupConsumer, set_delivery_count
from shared.adapters.streams.dead_letters import DeadLetters
from shared.adapters.streams.entries import (
    BLOCK_MS,
    READ_COUNT,
    Batch,
    Entry,
    RawEntry,
    add_entry,
    add_phase,
    rows_of,
)
from shared.adapters.streams.scripts import BEAT
from shared.errors import MessageError
from shared.messages.codec import decode, encode
from shared.messages.conditions import Condition
from shared.messages.schemas import AlertRaised, Heartbeat, Message
from shared.messages.streams import (
    ALERTS,
    CONDITIONS_KEY,
    HEARTBEAT_PREFIX,
    HEARTBEAT_TTL_SECONDS,
    Stream,
    heartbeat_key,
)
from shared.messages.validation import first_fault

log = structlog.get_logger()

HEARTBEATS_UNREADABLE = Counter("mm_heartbeats_unreadable", "Heartbeats read that have another schema")

#: Entries appended in one round trip.
PIPELINE = 8

#: Entries per read after the newest ones of a stream could not be decoded.
FURTHER_COUNT = 500

M = TypeVar("M", bound=Message)


class Bus:
    """A process's access to the streams."""

    def __init__(self, url: str) -> None:
        self._connection = RedisConnection(url)
        self._redis = self._connection.client
        self.dead = DeadLetters(self._connection)
        self._deliveries: dict[tuple[str, str, str], Deliveries] = {}  # by stream, group and consumer
        self._unreadable: set[bytes] = set()  # keys of heartbeats that were logged as unreadable

    @property
    def degraded(self) -> bool:
        """True while Redis does not answer."""
        return self._connection.degraded

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def ping(self) -> None:
        """Send one PING, without retries.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.
        """
        await cancellable(self._redis.ping())

    async def append(self, stream: Stream[M], message: M, arrays: bytes = b"") -> str:
        """Append one message at least once, retrying until Redis answers.

        A lost reply duplicates the entry, so consumers must deduplicate by the message's own id.

        Returns:
            The entry id.
        """
        fields = encode(message, arrays)

        entry_id = await self._connection.retried(
            f"append to {stream.key}", lambda: add_entry(self._redis, stream, fields)
        )
        return entry_id.decode()

    async def append_all(self, stream: Stream[M], messages: Sequence[tuple[M, bytes]]) -> int:
        """Append several messages with their arrays, a few per round trip, with the retries of `append`.

        Entries that Redis rejected are sent again, so they may follow later entries of their round trip.
        After a broken connection all entries of the round trip are sent again.

        Returns:
            Number of entries in the stream afterwards.
        """
        entries = [encode(message, arrays) for message, arrays in messages]
        length = 0
        for first in range(0, max(len(entries), 1), PIPELINE):
            add = partial(self._add, stream, entries[first : first + PIPELINE])
            length = await self._connection.retried(f"append to {stream.key}", add)
        return length

    async def _add(self, stream: Stream[Message], left: list[dict[str, bytes]]) -> int:
        """Append in one round trip and leave the rejected entries in `left`; returns the stream's length."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for fields in left:
                add_entry(pipe, stream, fields)
            pipe.xlen(stream.key)
            replies = await pipe.execute(raise_on_error=False)
        left[:] = [fields for fields, reply in zip(left, replies[:-1], strict=True) if _refused(reply)]
        for reply in filter(_refused, replies):
            raise reply
        return int(replies[-1])

    async def announce(self, stream: Stream[M], message: M, *, name: str = "latest") -> None:
        """Append a message and store it under `<key>:<name>` too, atomically.

        A reader that starts later finds the newest message without reading the history.
        """
        fields, latest_key = encode(message), f"{stream.key}:{name}"
        await self._connection.retried(
            f"announce on {stream.key}", lambda: add_entry(self._redis, stream, fields, latest_key)
        )

    async def append_phase(self, alert: AlertRaised) -> bool:
        """Append an alert that a condition began or ended, unless its last alert had the same phase.

        Redis keeps the phase of each condition, so a restarted or second gateway repeats no alert.

        Returns:
            True if the alert was appended.
        """
        entry_id = await self._connection.retried(
            f"append to {ALERTS.key}", lambda: add_phase(self._redis, alert, encode(alert))
        )
        return entry_id is not None

    async def begun_conditions(self) -> dict[Condition, str]:
        """Conditions whose last phase is `began`, each with its detail."""
        phases = await self._connection.retried(
            f"read {CONDITIONS_KEY}",
            lambda: cast("Awaitable[Mapping[bytes, bytes]]", self._redis.hgetall(CONDITIONS_KEY)),
        )
        begun = {}
        for name, value in phases.items():
            phase, _, detail = value.decode("utf-8", "replace").partition(" ")
            if phase == "began":
                begun[Condition(*name.decode("utf-8", "replace").split("\0", 1))] = detail
        return begun

    async def newest(self, stream: Stream[M], *, name: str = "latest") -> M | None:
        """The last message announced under a name, or None."""
        fields = await self._connection.retried(
            f"read {stream.key}:{name}",
            lambda: cast("Awaitable[Mapping[bytes, bytes]]", self._redis.hgetall(f"{stream.key}:{name}")),
        )
        return decode(stream, fields)[0] if fields else None

    async def length(self, stream: Stream[Message]) -> int:
        """Number of entries in a stream."""
        return int(
            await self._connection.retried(
                f"read the length of {stream.key}", lambda: self._redis.xlen(stream.key)
            )
        )

    async def condition(self, stream: Stream[Message], group: str) -> RedisCondition:
        """State of the Redis server, and backlog of a consumer group."""
        return await self._connection.retried(
            "read the state of the server", lambda: read_condition(self._redis, stream.key, group)
        )

    async def last_id(self, stream: Stream[Message]) -> str:
        """Id of a stream's last entry, or "0-0" if it is empty; `follow` from here yields only new ones."""
        rows = await self._connection.retried(
            f"read {stream.key}", lambda: self._redis.xrevrange(stream.key, count=1)
        )
        return cast("list[RawEntry]", rows)[0][0].decode() if rows else "0-0"

    async def recent(self, stream: Stream[M], *, count: int, before: str = "+") -> list[Entry[M]]:
        """Up to `count` messages, newest first; only messages older than the entry id `before`.

        Entries that cannot be decoded are skipped. The stream's consumers make dead letters of them.
        """
        upper, size = before if before == "+" else f"({before}", count
        entries: list[Entry[M]] = []
        while True:
            rows = await self._newest_rows(stream, upper, size)
            for raw in rows:
                with contextlib.suppress(MessageError):
                    entries.append(Entry.of(stream, raw))
            if len(entries) >= count or len(rows) < size:
                return entries[:count]
            upper, size = f"({rows[-1][0].decode()}", max(count, FURTHER_COUNT)

    async def id_before_newest(self, stream: Stream[Message], *, count: int) -> str:
        """Id of the entry before the newest `count`, or "0-0" if there are no more than `count` entries."""
        rows = await self._newest_rows(stream, "+", count + 1)
        return rows[-1][0].decode() if len(rows) > count else "0-0"

    async def _newest_rows(self, stream: Stream[Message], upper: str, count: int) -> list[RawEntry]:
        rows = await self._connection.retried(
            f"read {stream.key}", lambda: self._redis.xrevrange(stream.key, max=upper, count=count)
        )
        return cast("list[RawEntry]", rows)

    async def follow(
        self, stream: Stream[M], after: str = "0-0", *, block_ms: int = BLOCK_MS
    ) -> AsyncIterator[list[Entry[M]]]:
        """New messages after an entry id, for a reader without a consumer group.

        Yields an empty list whenever nothing arrived for `block_ms`, so that the reader can do other work.
        Entries that cannot be decoded are copied to the dead letters.
        """
        while True:
            rows = await self._connection.retried(
                f"follow {stream.key}",
                lambda: self._redis.xread({stream.key: after}, count=READ_COUNT, block=block_ms),  # noqa: B023
            )
            entries = []
            for raw in rows_of(rows):
                after = raw[0].decode()
                try:
                    entries.append(Entry.of(stream, raw))
                except MessageError as unreadable:
                    await self.dead.copy(stream, raw, str(unreadable))
            yield entries

    def consume(
        self, stream: Stream[M], group: str, consumer: str, *, reclaim_after_ms: int = 60_000
    ) -> AsyncIterator[Batch[M]]:
        """Batches for one consumer of a group: first its pending entries, then abandoned and new ones.

        Entries of an interrupted reply are pending with this consumer, so it reads its pending entries again
        after each failed attempt. Entries that were idle for `reclaim_after_ms` are claimed by another
        consumer within a further tenth of that time. Pending entries are redelivered one by one, and become
        dead letters if too many processes crashed while processing them (consumer_group.py).

        Yields an empty batch whenever nothing arrived for a while. The group begins at the start of the
        stream, so entries from before the first consumer are delivered too.
        """
        reader = GroupConsumer(
            self._connection,
            self.dead,
            stream,
            group,
            consumer,
            reclaim_after_ms=reclaim_after_ms,
            deliveries=self._deliveries.setdefault((stream.key, group, consumer), {}),
        )
        return reader.batches()

    async def release_pending(self) -> None:
        """Reset the delivery counts of pending entries, because a graceful shutdown is not their fault.

        Makes one attempt. Call it when no `consume` is running any more.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.
        """
        for (key, group, consumer), deliveries in tuple(self._deliveries.items()):
            with contextlib.suppress(redis_errors.ResponseError):  # the group no longer exists
                for entry_id, before in tuple(deliveries.items()):
                    await cancellable(
                        set_delivery_count(self._connection, key, group, consumer, entry_id, before)
                    )

    async def dead_letter(self, stream: Stream[M], group: str, entry: Entry[M], reason: str) -> None:
        """Move one pending entry to the dead letters, atomically."""
        await self.dead.move(stream, group, (entry.entry_id.encode(), entry.fields), reason)

    async def beat(self, heartbeat: Heartbeat) -> None:
        """Send one heartbeat, without retries, because the next one follows soon.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.
        """
        key = heartbeat_key(heartbeat.service, heartbeat.instance)
        text = heartbeat.model_dump_json()
        reply = self._redis.eval(BEAT, 1, key, text, cast("str", HEARTBEAT_TTL_SECONDS))
        await cancellable(cast("Awaitable[bytes]", reply))

    async def clear_heartbeat(self, service: str, instance: str) -> None:
        """Delete the heartbeat of an instance that shuts down gracefully."""
        await cancellable(self._redis.delete(heartbeat_key(service, instance)))

    async def heartbeats(self) -> list[Heartbeat]:
        """Heartbeats of all live instances, sorted by service and instance.

        A heartbeat with another schema, from an older or newer release, is skipped, counted and logged once.
        """

        async def read() -> dict[bytes, bytes | None]:
            keys = [key async for key in self._redis.scan_iter(f"{HEARTBEAT_PREFIX}:*", count=500)]
            values = cast("list[bytes | None]", await self._redis.mget(keys)) if keys else []
            return dict(zip(keys, values, strict=True))

        beats = await self._connection.retried("read heartbeats", read)
        self._unreadable.intersection_update(beats)
        found = [self._read_heartbeat(key, value) for key, value in beats.items() if value is not None]
        return sorted(filter(None, found), key=lambda beat: (beat.service, beat.instance))

    def _read_heartbeat(self, key: bytes, value: bytes) -> Heartbeat | None:
        try:
            return Heartbeat.model_validate_json(value)
        except ValidationError as invalid:
            HEARTBEATS_UNREADABLE.inc()
            if key not in self._unreadable:
                fault, named = first_fault(invalid), key.decode("utf-8", "replace")
                log.warning("heartbeat_unreadable", key=named, where=fault.where, error=fault.message)
            self._unreadable.add(key)
            return None


def _refused(reply: object) -> bool:
    return isinstance(reply, Exception)
