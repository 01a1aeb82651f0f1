"""Redis streams: append, read, announce, and the heartbeats beside them.

What holds here, and why (docs/messages.md): every operation is retried in one place for as long as Redis is
away (redis_connection.py); only acknowledged trajectories leave their stream (consumer_group.py); what
cannot be read goes to the dead letters whole (dead_letters.py); and a full Redis lets nothing wait but
trajectories (redis_scripts.py).
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import TypeVar, cast

from shared.adapters.consumer_group import GroupConsumer
from shared.adapters.dead_letters import DeadLetters
from shared.adapters.entries import BLOCK_MS, READ_COUNT, Batch, Entry, RawEntry, add_entry, rows_of
from shared.adapters.redis_condition import RedisCondition, read_condition
from shared.adapters.redis_connection import RedisConnection, cancellable
from shared.adapters.redis_scripts import BEAT
from shared.errors import MessageError
from shared.messages.codec import decode, encode
from shared.messages.schemas import Heartbeat, Message
from shared.messages.streams import HEARTBEAT_PREFIX, HEARTBEAT_TTL_SECONDS, Stream, heartbeat_key

M = TypeVar("M", bound=Message)


class Bus:
    """One process's way to the streams."""

    def __init__(self, url: str) -> None:
        self._connection = RedisConnection(url)
        self._redis = self._connection.client
        self.dead = DeadLetters(self._connection)

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
        """Append several messages with their arrays in one exchange, waiting as `append` does.

        When a reply is lost all of them are sent again.

        Returns:
            Number of entries in the stream then.
        """
        entries = [encode(message, arrays) for message, arrays in messages]

        async def add() -> int:
            async with self._redis.pipeline(transaction=False) as pipe:
                for fields in entries:
                    add_entry(pipe, stream, fields)
                pipe.xlen(stream.key)
                return int((await pipe.execute())[-1])

        return await self._connection.retried(f"append to {stream.key}", add)

    async def announce(self, stream: Stream[M], message: M, *, name: str = "latest") -> None:
        """Append a message and keep it under `<key>:<name>` too, both or neither.

        A reader that was away finds the newest one without reading the history.
        """
        fields, kept = encode(message), f"{stream.key}:{name}"
        await self._connection.retried(
            f"announce on {stream.key}", lambda: add_entry(self._redis, stream, fields, kept)
        )

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
        """How Redis itself is, and what a group leaves behind in a stream."""
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

        Entries that cannot be read are left out: their reader puts them with the dead letters.
        """
        upper = before if before == "+" else f"({before}"
        rows = await self._connection.retried(
            f"read {stream.key}", lambda: self._redis.xrevrange(stream.key, max=upper, count=count)
        )
        entries = []
        for raw in cast("list[RawEntry]", rows):
            with contextlib.suppress(MessageError):
                entries.append(Entry.of(stream, raw))
        return entries

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

        What a reply held that broke off is pending with this consumer, so after each failed try it looks at
        its own again: another reader may have them only when they were left alone for `reclaim_after_ms`,
        and takes them within a tenth of that time.
        Yields an empty batch whenever nothing came for a while. The group begins at the stream's
        start, so that nothing sent before the first consumer is missed.
        """
        reader = GroupConsumer(
            self._connection, self.dead, stream, group, consumer, reclaim_after_ms=reclaim_after_ms
        )
        return reader.batches()

    async def dead_letter(self, stream: Stream[M], group: str, entry: Entry[M], reason: str) -> None:
        """Move one delivered entry to the dead letters, both or neither."""
        await self.dead.bury(stream, group, (entry.entry_id.encode(), entry.fields), reason)

    async def beat(self, heartbeat: Heartbeat) -> None:
        """Say once that an instance lives; one try, since the next beat comes soon anyway.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.
        """
        key = heartbeat_key(heartbeat.service, heartbeat.instance)
        text = heartbeat.model_dump_json()
        beating = self._redis.eval(BEAT, 1, key, text, cast("str", HEARTBEAT_TTL_SECONDS))
        await cancellable(cast("Awaitable[bytes]", beating))

    async def still(self, service: str, instance: str) -> None:
        """Take an instance's heartbeat away: it stopped in good order."""
        await cancellable(self._redis.delete(heartbeat_key(service, instance)))

    async def heartbeats(self) -> list[Heartbeat]:
        """All instances that say they live, by service and instance."""

        async def read() -> list[bytes | None]:
            keys = [key async for key in self._redis.scan_iter(f"{HEARTBEAT_PREFIX}:*", count=500)]
            return cast("list[bytes | None]", await self._redis.mget(keys)) if keys else []

        values = await self._connection.retried("read heartbeats", read)
        found = [Heartbeat.model_validate_json(value) for value in values if value]
        return sorted(found, key=lambda beat: (beat.service, beat.instance))
