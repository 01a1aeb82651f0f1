"""Redis streams (append, consume, follow, announce) and heartbeats.

Guarantees (docs/messages.md):
- Operations are retried until Redis answers (connection.py), unless their docstring rules it out.
- A trajectory leaves its stream only when it is acknowledged or becomes a dead letter (consumer_group.py).
- Entries that cannot be decoded are kept as dead letters (dead_letters.py).
- While Redis is out of memory, only appends of trajectories are rejected and retried (scripts.py).
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

HEARTBEATS_UNREADABLE = Counter(
    "mm_heartbeats_unreadable", "Heartbeats read whose schema this release does not know"
)

#: Largest number of entries appended in one round trip.
ENTRIES_PER_APPEND = 8

#: `recent` reads at least this many entries at a time if its first read had too few decodable ones.
REREAD_COUNT = 500

M = TypeVar("M", bound=Message)


class Bus:
    """Reads and writes the streams and heartbeats of one Redis server."""

    def __init__(self, url: str) -> None:
        self._connection = RedisConnection(url)
        self._redis = self._connection.client
        self.dead = DeadLetters(self._connection)
        self._deliveries: dict[tuple[str, str, str], Deliveries] = {}  # by stream, group and consumer
        self._unreadable: set[bytes] = set()  # keys of the unreadable heartbeats already logged

    @property
    def degraded(self) -> bool:
        """True while Redis does not answer."""
        return self._connection.degraded

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def ping(self) -> None:
        """Send one PING. It is not retried.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.
        """
        await cancellable(self._redis.ping())

    async def append(self, stream: Stream[M], message: M, arrays: bytes = b"") -> str:
        """Append one message at least once, retrying until Redis answers.

        If the reply is lost, the retry appends a duplicate. Consumers must therefore deduplicate by the id in
        the message.

        Returns:
            The entry id.
        """
        fields = encode(message, arrays)

        entry_id = await self._connection.retried(
            f"append to {stream.key}", lambda: add_entry(self._redis, stream, fields)
        )
        return entry_id.decode()

    async def append_all(self, stream: Stream[M], messages: Sequence[tuple[M, bytes]]) -> int:
        """Append several messages with their arrays, a few per round trip, and retry as `append` does.

        If Redis rejects some entries of a round trip, only these are sent again, so the order may change. If
        the connection breaks, all entries of the round trip are sent again.

        Returns:
            Length of the stream afterwards.
        """
        entries = [encode(message, arrays) for message, arrays in messages]
        length = 0
        for first in range(0, max(len(entries), 1), ENTRIES_PER_APPEND):
            add = partial(self._add, stream, entries[first : first + ENTRIES_PER_APPEND])
            length = await self._connection.retried(f"append to {stream.key}", add)
        return length

    async def _add(self, stream: Stream[Message], unsent: list[dict[str, bytes]]) -> int:
        """Append in one round trip and return the stream's length; only rejected entries stay in `unsent`."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for fields in unsent:
                add_entry(pipe, stream, fields)
            pipe.xlen(stream.key)
            replies = await pipe.execute(raise_on_error=False)
        unsent[:] = [fields for fields, reply in zip(unsent, replies[:-1], strict=True) if _is_error(reply)]
        for reply in filter(_is_error, replies):
            raise reply
        return int(replies[-1])

    async def announce(self, stream: Stream[M], message: M, *, name: str = "latest") -> None:
        """Append a message and also store it under the key `<stream>:<name>`, in one atomic step.

        A reader that starts later finds the newest message without reading the history.
        """
        fields, latest_key = encode(message), f"{stream.key}:{name}"
        await self._connection.retried(
            f"announce on {stream.key}", lambda: add_entry(self._redis, stream, fields, latest_key)
        )

    async def append_condition_alert(self, alert: AlertRaised) -> bool:
        """Append an alert that a condition began or ended, unless its last alert had the same phase.

        Redis keeps the phase of each condition, so neither a restart nor a second gateway repeats an alert.

        Returns:
            True if the alert was appended.
        """
        entry_id = await self._connection.retried(
            f"append to {ALERTS.key}", lambda: add_phase(self._redis, alert, encode(alert))
        )
        return entry_id is not None

    async def active_conditions(self) -> dict[Condition, str]:
        """Conditions that began and have not ended, each with its detail."""
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
        """The message last announced under a name, or None if there is no such message."""
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
        """State of the Redis server and backlog of one consumer group."""
        return await self._connection.retried(
            "read the state of the server", lambda: read_condition(self._redis, stream.key, group)
        )

    async def last_id(self, stream: Stream[Message]) -> str:
        """Id of a stream's last entry, or "0-0" if it is empty.

        `follow` after this id yields only later entries.
        """
        rows = await self._connection.retried(
            f"read {stream.key}", lambda: self._redis.xrevrange(stream.key, count=1)
        )
        return cast("list[RawEntry]", rows)[0][0].decode() if rows else "0-0"

    async def recent(self, stream: Stream[M], *, count: int, before: str = "+") -> list[Entry[M]]:
        """The newest messages before the entry id `before`, at most `count`, newest first.

        Entries that cannot be decoded are skipped. The stream's consumers add them to the dead letters.
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
            upper, size = f"({rows[-1][0].decode()}", max(count, REREAD_COUNT)

    async def id_before_newest(self, stream: Stream[Message], *, count: int) -> str:
        """Id of the entry just before the `count` newest ones, or "0-0" if there is no such entry."""
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
        """Yield the messages after an entry id as they arrive, for a reader without a consumer group.

        If nothing arrives for `block_ms`, it yields an empty list, so that the reader can do other work.
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
        """Yield batches for one consumer: its pending entries, then those of dead consumers and new ones.

        If a reply is lost, Redis considers its entries delivered and pending, so the consumer reads its
        pending entries again after each failed read. Another consumer claims entries that were idle for
        `reclaim_after_ms`, at most a tenth of that time later. Pending entries are redelivered one by one. An
        entry becomes a dead letter if too many processes crashed while processing it (consumer_group.py).

        If nothing arrives for a while, it yields an empty batch. A new group starts at the beginning of the
        stream, so entries appended before the first consumer existed are delivered too.
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
        """Restore the delivery counts of pending entries: a graceful shutdown must not count as a crash.

        It is not retried. Call it after every `consume` of this bus has stopped.

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
        """Move one pending entry to the dead letters in one atomic step."""
        await self.dead.move(stream, group, (entry.entry_id.encode(), entry.fields), reason)

    async def beat(self, heartbeat: Heartbeat) -> None:
        """Write one heartbeat. It is not retried, because the next one follows soon.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.
        """
        key = heartbeat_key(heartbeat.service, heartbeat.instance)
        text = heartbeat.model_dump_json()
        reply = self._redis.eval(BEAT, 1, key, text, cast("str", HEARTBEAT_TTL_SECONDS))
        await cancellable(cast("Awaitable[bytes]", reply))

    async def clear_heartbeat(self, service: str, instance: str) -> None:
        """Delete the heartbeat of an instance that shuts down gracefully. It is not retried."""
        await cancellable(self._redis.delete(heartbeat_key(service, instance)))

    async def heartbeats(self) -> list[Heartbeat]:
        """Heartbeats of all live instances, sorted by service and instance.

        A heartbeat of another release may have another schema. It is skipped and counted, and logged once.
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


def _is_error(reply: object) -> bool:
    return isinstance(reply, Exception)
