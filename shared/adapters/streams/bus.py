"""Redis streams: append, read, announce, and the heartbeats beside them.

What holds here, and why (docs/messages.md): every operation is retried in one place for as long as Redis is
away (redis_connection.py); only acknowledged trajectories leave their stream (consumer_group.py); what
cannot be read goes to the dead letters whole (dead_letters.py); and a full Redis lets nothing wait but
trajectories (redis_scripts.py).
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
from shared.adapters.streams.consumer_group import Deliveries, GroupConsumer, deliver
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

HEARTBEATS_UNREADABLE = Counter("mm_heartbeats_unreadable", "Heartbeats met that are of another schema")

#: Entries sent in one exchange.
PIPELINE = 8

#: Entries read at once where the newest ones of a stream cannot be read.
FURTHER_COUNT = 500

M = TypeVar("M", bound=Message)


class Bus:
    """One process's way to the streams."""

    def __init__(self, url: str) -> None:
        self._connection = RedisConnection(url)
        self._redis = self._connection.client
        self.dead = DeadLetters(self._connection)
        self._deliveries: dict[tuple[str, str, str], Deliveries] = {}  # by stream, group and consumer
        self._unreadable: set[bytes] = set()  # heartbeats that were logged as unreadable

    @property
    def degraded(self) -> bool:
        """True while Redis does not answer."""
        return self._connection.degraded

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def ping(self) -> None:
        """One try, no waiting.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.
        """
        await cancellable(self._redis.ping())

    async def append(self, stream: Stream[M], message: M, arrays: bytes = b"") -> str:
        """Append one message, waiting for Redis as long as it takes; at least once.

        A reply that was lost makes the entry appear twice, so readers count ids, not entries.
        """
        fields = encode(message, arrays)

        entry_id = await self._connection.retried(
            f"append to {stream.key}", lambda: add_entry(self._redis, stream, fields)
        )
        return entry_id.decode()

    async def append_all(self, stream: Stream[M], messages: Sequence[tuple[M, bytes]]) -> int:
        """Append several messages with their arrays, a few in each exchange, waiting as `append` does.

        What Redis refused is sent again, behind what it took of the same exchange; when the connection breaks
        all of that exchange.

        Returns:
            Number of entries in the stream then.
        """
        entries = [encode(message, arrays) for message, arrays in messages]
        length = 0
        for first in range(0, max(len(entries), 1), PIPELINE):
            add = partial(self._add, stream, entries[first : first + PIPELINE])
            length = await self._connection.retried(f"append to {stream.key}", add)
        return length

    async def _add(self, stream: Stream[Message], left: list[dict[str, bytes]]) -> int:
        """Append in one exchange, and leave in the list what Redis refused; the number of entries then."""
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
        """Append a message and keep it under `<key>:<name>` too, both or neither.

        A reader that was away finds the newest one without reading the history.
        """
        fields, kept = encode(message), f"{stream.key}:{name}"
        await self._connection.retried(
            f"announce on {stream.key}", lambda: add_entry(self._redis, stream, fields, kept)
        )

    async def append_phase(self, alert: AlertRaised) -> bool:
        """Append an alert that a condition began or ended, unless that was the last one appended of it.

        The phase of each condition is kept in Redis, so that a gateway that restarts, or a second one,
        repeats nothing.

        Returns:
            True when the alert was appended.
        """
        entry_id = await self._connection.retried(
            f"append to {ALERTS.key}", lambda: add_phase(self._redis, alert, encode(alert))
        )
        return entry_id is not None

    async def begun_conditions(self) -> dict[Condition, str]:
        """Conditions of `append_phase` that began and did not end, each with its detail."""
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
        """The last message announced under a name, or None when there was none."""
        fields = await self._connection.retried(
            f"read {stream.key}:{name}",
            lambda: cast("Awaitable[Mapping[bytes, bytes]]", self._redis.hgetall(f"{stream.key}:{name}")),
        )
        return decode(stream, fields)[0] if fields else None

    async def length(self, stream: Stream[Message]) -> int:
        """Number of entries in a stream."""
        return int(
            await self._connection.retried(
                f"tell the length of {stream.key}", lambda: self._redis.xlen(stream.key)
            )
        )

    async def condition(self, stream: Stream[Message], group: str) -> RedisCondition:
        """State of Redis itself, and what a group has not read or acknowledged of a stream."""
        return await self._connection.retried(
            "tell how Redis is", lambda: read_condition(self._redis, stream.key, group)
        )

    async def last_id(self, stream: Stream[Message]) -> str:
        """Id of a stream's last entry, or "0-0" of an empty one: where a reader of news alone begins."""
        rows = await self._connection.retried(
            f"read {stream.key}", lambda: self._redis.xrevrange(stream.key, count=1)
        )
        return cast("list[RawEntry]", rows)[0][0].decode() if rows else "0-0"

    async def recent(self, stream: Stream[M], *, count: int, before: str = "+") -> list[Entry[M]]:
        """Up to `count` messages, newest first; with `before` an entry id, those older than it.

        Entries that cannot be read are passed over: their reader puts them with the dead letters.
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
        """Id of the entry before the newest `count`, or "0-0" where there are no more than that."""
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
        """Messages behind an entry id as they come, for a reader that keeps its own place.

        Yields an empty list whenever nothing came for `block_ms`, so that the reader can look around.
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
                    await self.dead.report(stream, raw, str(unreadable))
            yield entries

    def consume(
        self, stream: Stream[M], group: str, consumer: str, *, reclaim_after_ms: int = 60_000
    ) -> AsyncIterator[Batch[M]]:
        """Batches for one consumer of a group: its own pending ones first, then abandoned and new ones.

        Entries of a reply that broke off are pending with this consumer, so it reads its own pending entries
        again after each failed try. Another consumer claims entries that were idle for `reclaim_after_ms`,
        within a tenth of that time. Pending entries are redelivered one by one, and become dead letters if
        too many processes ended while they had them in hand (consumer_group.py).
        Yields an empty batch whenever nothing came for a while. The group begins at the stream's
        start, so that nothing sent before the first consumer is missed.
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

    async def give_back(self) -> None:
        """Undo the deliveries of entries in hand: this process shuts down gracefully, not because of them.

        One try; call it when no `consume` runs any more.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.
        """
        for (key, group, consumer), deliveries in tuple(self._deliveries.items()):
            with contextlib.suppress(redis_errors.ResponseError):  # the group is no longer there
                for entry_id, before in tuple(deliveries.items()):
                    await cancellable(deliver(self._connection, key, group, consumer, entry_id, before))

    async def dead_letter(self, stream: Stream[M], group: str, entry: Entry[M], reason: str) -> None:
        """Move one delivered entry to the dead letters, both or neither."""
        await self.dead.bury(stream, group, (entry.entry_id.encode(), entry.fields), reason)

    async def beat(self, heartbeat: Heartbeat) -> None:
        """Send one heartbeat; one try, because the next one comes soon.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.
        """
        key = heartbeat_key(heartbeat.service, heartbeat.instance)
        text = heartbeat.model_dump_json()
        beating = self._redis.eval(BEAT, 1, key, text, cast("str", HEARTBEAT_TTL_SECONDS))
        await cancellable(cast("Awaitable[bytes]", beating))

    async def still(self, service: str, instance: str) -> None:
        """Delete an instance's heartbeat: it shut down gracefully."""
        await cancellable(self._redis.delete(heartbeat_key(service, instance)))

    async def heartbeats(self) -> list[Heartbeat]:
        """All instances that say they live, by service and instance.

        A heartbeat of another schema, from an older or newer service, is left out, counted and logged once.
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
