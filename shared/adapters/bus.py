"""Redis streams: append, read, acknowledge, reclaim, dead-letter, announce.

What holds here, and why (docs/messages.md): redis-py's own retries are off, since a hidden retry of
XADD repeats the entry; every operation is retried in one place, with capped exponential back-off and
jitter, for as long as Redis is away; a socket waits longer than a blocking read blocks; only
acknowledged trajectories leave their stream, also while Redis is full; what cannot be read goes to the
dead letters in the same script that takes it off its stream, whole, and comes back from there all at
once too.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

import stamina
import structlog
from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from shared.adapters.dead_letters import Letter, RawEntry, letter_fields, read_letter
from shared.adapters.redis_condition import RedisCondition, read_condition
from shared.errors import MessageError, SettingsError
from shared.messages.codec import decode, encode
from shared.messages.schemas import Heartbeat, Message
from shared.messages.streams import (
    DEAD,
    HEARTBEAT_PREFIX,
    HEARTBEAT_TTL_SECONDS,
    Stream,
    heartbeat_key,
)

log = structlog.get_logger()

#: What may be behind an entry that was delivered, never acknowledged, and is no longer there.
REMOVED_HINT = "it was removed from the stream before anyone finished with it: who trims or deletes there?"

BLOCK_MS = 2_000
SOCKET_TIMEOUT_SECONDS = 10.0
READ_COUNT = 32

#: How often a reader looks for abandoned entries in the time after which one counts as abandoned.
SWEEPS_PER_RECLAIM = 10

#: An entry that was delivered this often and never acknowledged is poison.
MAX_DELIVERIES = 3

#: What is worth waiting for: Redis is away, starting, full, or was just failed over.
TRANSIENT = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.BusyLoadingError,
    redis_errors.OutOfMemoryError,
    redis_errors.ReadOnlyError,
    OSError,
    asyncio.IncompleteReadError,
)

#: Refusals worth waiting for that the client has no class for: a script runs, a snapshot failed, too few
#: replicas. Within a pipeline the client writes the command before them.
TRANSIENT_REFUSAL = re.compile(r"(^|caused error: )(BUSY|MISCONF|NOREPLICAS) ")

#: Kinds of a lost connection, to the client, that no waiting mends.
REFUSED = (redis_errors.AuthenticationError, redis_errors.AuthorizationError)

#: KEYS: dead letters, stream. ARGV: letter, entry, number of copies, the copies, names and values of the
#: fields. A script, since WATCH on the dead letters fails for as long as new ones keep coming.
_REPLAY = """
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return false end
local first = 4 + tonumber(ARGV[3])
local appended = redis.call('XADD', KEYS[2], '*', unpack(ARGV, first))
redis.call('XDEL', KEYS[1], ARGV[1])
for copy = 4, first - 1 do redis.call('XDEL', KEYS[1], ARGV[copy]) end
redis.call('XDEL', KEYS[2], ARGV[2])
return appended
"""

#: KEYS: stream. ARGV: group, entries. A script, since a full Redis 7 refuses every command within MULTI, even
#: those that give memory back.
_REMOVE = """
redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 2))
return redis.call('XDEL', KEYS[1], unpack(ARGV, 2))
"""

#: KEYS: dead letters, stream. ARGV: group, entry, number of letters kept, names and values of the letter's
#: fields. The entry leaves before its letter comes: a full Redis lets a script go on that began by giving
#: memory back. An entry that is there no longer has its letter, from a try whose reply was lost. XLEN fails
#: before anything is removed where the dead letters are no stream.
_BURY = """
redis.call('XLEN', KEYS[1])
redis.call('XACK', KEYS[2], ARGV[1], ARGV[2])
if redis.call('XDEL', KEYS[2], ARGV[2]) == 0 then return false end
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', unpack(ARGV, 4))
"""

M = TypeVar("M", bound=Message)
R = TypeVar("R")


@dataclass(frozen=True)
class Entry(Generic[M]):
    """One message of a stream, with its entry id, the bytes of its arrays and the fields it came in."""

    entry_id: str
    message: M
    arrays: bytes = field(repr=False)
    fields: Mapping[bytes, bytes] = field(repr=False)


@dataclass(frozen=True)
class Batch(Generic[M]):
    """Messages delivered to one consumer; acknowledge them after their effect is safe, never before."""

    entries: Sequence[Entry[M]]
    ack: Callable[[], Awaitable[None]]


class Bus:
    """One process's way to the streams."""

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
            socket_timeout=SOCKET_TIMEOUT_SECONDS,
            socket_connect_timeout=5.0,
            health_check_interval=15,
            protocol=2,
            decode_responses=False,
        )
        self._down = False
        self._breaks = 0  # tries that failed, of whatever was asked

    @property
    def degraded(self) -> bool:
        """True while Redis does not answer."""
        return self._down

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def ping(self) -> None:
        """One try, no waiting.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.
        """
        await _cancellable(self._redis.ping())

    async def append(self, stream: Stream[M], message: M, arrays: bytes = b"") -> str:
        """Append one message, waiting for Redis as long as it takes; at least once.

        A reply that was lost makes the entry appear twice, so readers count ids, not entries.
        """
        fields = encode(message, arrays)

        async def add() -> bytes:
            return cast("bytes", await self._redis.xadd(stream.key, cast("Any", fields), **_trim(stream)))

        return (await self._retried(f"append to {stream.key}", add)).decode()

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
                    pipe.xadd(stream.key, cast("Any", fields), **_trim(stream))
                pipe.xlen(stream.key)
                return int((await pipe.execute())[-1])

        return await self._retried(f"append to {stream.key}", add)

    async def announce(self, stream: Stream[M], message: M, *, name: str = "latest") -> None:
        """Append a message and keep it under `<key>:<name>` too, both or neither.

        A reader that was away finds the newest one without reading the history.
        """
        fields = encode(message)

        async def transaction() -> None:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.xadd(stream.key, cast("Any", fields), **_trim(stream))
                pipe.hset(f"{stream.key}:{name}", mapping=cast("Any", fields))
                await pipe.execute()

        await self._retried(f"announce on {stream.key}", transaction)

    async def newest(self, stream: Stream[M], *, name: str = "latest") -> M | None:
        """The last message announced under a name, or None when there was none."""
        fields = await self._retried(
            f"read {stream.key}:{name}",
            lambda: cast("Awaitable[Mapping[bytes, bytes]]", self._redis.hgetall(f"{stream.key}:{name}")),
        )
        return decode(stream, fields)[0] if fields else None

    async def length(self, stream: Stream[Message]) -> int:
        """Number of entries in a stream."""
        return int(
            await self._retried(f"tell the length of {stream.key}", lambda: self._redis.xlen(stream.key))
        )

    async def condition(self, stream: Stream[Message], group: str) -> RedisCondition:
        """How Redis itself is, and what a group leaves behind in a stream."""
        return await self._retried(
            "tell how Redis is", lambda: read_condition(self._redis, stream.key, group)
        )

    async def last_id(self, stream: Stream[Message]) -> str:
        """Id of a stream's last entry, or "0-0" of an empty one: where a reader of news alone begins."""
        rows = await self._retried(f"read {stream.key}", lambda: self._redis.xrevrange(stream.key, count=1))
        return cast("list[RawEntry]", rows)[0][0].decode() if rows else "0-0"

    async def recent(self, stream: Stream[M], *, count: int, before: str = "+") -> list[Entry[M]]:
        """Up to `count` messages, newest first; with `before` an entry id, those older than it.

        Entries that cannot be read are left out: their reader puts them with the dead letters.
        """
        upper = before if before == "+" else f"({before}"
        rows = await self._retried(
            f"read {stream.key}", lambda: self._redis.xrevrange(stream.key, max=upper, count=count)
        )
        entries = []
        for raw in cast("list[RawEntry]", rows):
            with contextlib.suppress(MessageError):
                entries.append(_entry(stream, raw))
        return entries

    async def follow(
        self, stream: Stream[M], after: str = "0-0", *, block_ms: int = BLOCK_MS
    ) -> AsyncIterator[list[Entry[M]]]:
        """Messages behind an entry id as they come, for a reader that keeps its own place.

        Yields an empty list whenever nothing came for `block_ms`, so that the reader can look around.
        """
        while True:
            rows = await self._retried(
                f"follow {stream.key}",
                lambda: self._redis.xread({stream.key: after}, count=READ_COUNT, block=block_ms),  # noqa: B023
            )
            entries = []
            for raw in _rows(rows):
                after = raw[0].decode()
                try:
                    entries.append(_entry(stream, raw))
                except MessageError as unreadable:
                    await self._report(stream, raw, str(unreadable))
            yield entries

    async def consume(
        self, stream: Stream[M], group: str, consumer: str, *, reclaim_after_ms: int = 60_000
    ) -> AsyncIterator[Batch[M]]:
        """Batches for one consumer of a group: its own pending ones first, then abandoned and new ones.

        What a reply held that broke off is pending with this consumer, so after each failed try it looks at
        its own again: another reader may have them only when they were left alone for `reclaim_after_ms`,
        and takes them within a tenth of that time.
        Yields an empty batch whenever nothing came for a while. The group begins at the stream's
        start, so that nothing sent before the first consumer is missed; it is made only where there is
        none, since a full Redis refuses to make one and must be read from to have room again.
        """
        claim_from, next_sweep = "0-0", 0.0
        while True:
            pending_from = "0-0"
            while pending_from:
                rows = await self._read_group(stream, group, consumer, pending_from, block_ms=None)
                pending_from = rows[-1][0].decode() if rows else ""
                if rows:
                    yield await self._batch(stream, group, rows)
            breaks = self._breaks
            while self._breaks == breaks:
                if claim_from != "0-0" or time.monotonic() >= next_sweep:
                    claim_from, claimed = await self._claim(
                        stream, group, consumer, claim_from, reclaim_after_ms
                    )
                    next_sweep = time.monotonic() + reclaim_after_ms / 1_000 / SWEEPS_PER_RECLAIM
                    if claimed:
                        yield await self._batch(stream, group, claimed)
                rows = await self._read_group(stream, group, consumer, ">", block_ms=BLOCK_MS)
                yield await self._batch(stream, group, rows)

    async def dead_letter(self, stream: Stream[M], group: str, entry: Entry[M], reason: str) -> None:
        """Move one delivered entry to the dead letters, both or neither."""
        await self._bury(stream, group, (entry.entry_id.encode(), entry.fields), reason)

    async def letters(self, *, count: int, before: str = "+") -> list[Letter]:
        """Up to `count` dead letters, newest first; with `before` a letter's id, those older than it."""
        upper = before if before == "+" else f"({before}"
        rows = await self._retried(
            "read the dead letters", lambda: self._redis.xrevrange(DEAD.key, max=upper, count=count)
        )
        return [read_letter(raw) for raw in cast("list[RawEntry]", rows)]

    async def letter(self, letter_id: str) -> Letter | None:
        """One dead letter, or None when there is none of that id."""
        rows = await self._retried(
            "read a dead letter", lambda: self._redis.xrange(DEAD.key, min=letter_id, max=letter_id)
        )
        return read_letter(cast("list[RawEntry]", rows)[0]) if rows else None

    async def replay(self, letter: Letter, copies: Sequence[str] = ()) -> str | None:
        """Append a letter's entry to its stream again and remove the letter, both or neither.

        `copies` are ids of other letters about the same entry; they go with it. Where a follower left the
        entry in its stream it is moved to the end, not doubled.

        Returns:
            The entry's new id. None when the letter is there no longer: replayed by an earlier try whose
            reply was lost, or by somebody else.

        Raises:
            MessageError: the letter cannot be replayed.
        """
        if letter.obstacle or letter.stream is None or letter.entry_id is None:
            raise MessageError(f"dead letter {letter.letter_id} cannot be replayed: {letter.obstacle}")
        stream, entry_id = letter.stream, letter.entry_id

        original: list[bytes] = [word for pair in (letter.original or {}).items() for word in pair]
        arguments: list[bytes | str | int] = [letter.letter_id, entry_id, len(copies), *copies, *original]

        async def move() -> str | None:
            appended = await cast(
                "Awaitable[bytes | None]", self._redis.eval(_REPLAY, 2, DEAD.key, stream, *arguments)
            )
            return appended.decode() if appended else None

        return await self._retried(f"replay into {stream}", move)

    async def drop(self, letter_id: str) -> bool:
        """Remove a dead letter for good; False when there is none of that id."""
        removed = await self._retried("drop a dead letter", lambda: self._redis.xdel(DEAD.key, letter_id))
        return bool(removed)

    async def beat(self, heartbeat: Heartbeat) -> None:
        """Say once that an instance lives; one try, since the next beat comes soon anyway.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.
        """
        key = heartbeat_key(heartbeat.service, heartbeat.instance)
        await _cancellable(self._redis.set(key, heartbeat.model_dump_json(), ex=HEARTBEAT_TTL_SECONDS))

    async def still(self, service: str, instance: str) -> None:
        """Take an instance's heartbeat away: it stopped in good order."""
        await _cancellable(self._redis.delete(heartbeat_key(service, instance)))

    async def heartbeats(self) -> list[Heartbeat]:
        """All instances that say they live, by service and instance."""

        async def read() -> list[bytes | None]:
            keys = [key async for key in self._redis.scan_iter(f"{HEARTBEAT_PREFIX}:*", count=500)]
            return cast("list[bytes | None]", await self._redis.mget(keys)) if keys else []

        values = await self._retried("read heartbeats", read)
        found = [Heartbeat.model_validate_json(value) for value in values if value]
        return sorted(found, key=lambda beat: (beat.service, beat.instance))

    async def _ensure_group(self, stream: Stream[M], group: str) -> None:
        try:
            await self._redis.xgroup_create(stream.key, group, id="0", mkstream=True)
        except redis_errors.ResponseError as refused:
            if "BUSYGROUP" not in str(refused):
                raise

    async def _read_group(
        self, stream: Stream[M], group: str, consumer: str, start: str, *, block_ms: int | None
    ) -> list[RawEntry]:
        async def read() -> object:
            try:
                return await self._redis.xreadgroup(
                    group, consumer, {stream.key: start}, count=READ_COUNT, block=block_ms
                )
            except redis_errors.ResponseError as refused:
                if "NOGROUP" not in str(refused):
                    raise
                await self._ensure_group(stream, group)  # the first, or Redis came back without its data
                return []

        return _rows(await self._retried(f"consume {stream.key}", read))

    async def _claim(
        self, stream: Stream[M], group: str, consumer: str, start: str, idle_ms: int
    ) -> tuple[str, list[RawEntry]]:
        async def claim() -> Sequence[Any]:
            try:
                return cast(
                    "Sequence[Any]",
                    await self._redis.xautoclaim(
                        stream.key, group, consumer, min_idle_time=idle_ms, start_id=start, count=READ_COUNT
                    ),
                )
            except redis_errors.ResponseError as refused:
                if "NOGROUP" not in str(refused):
                    raise
                await self._ensure_group(stream, group)
                return (b"0-0", [])

        reply = await self._retried(f"reclaim {stream.key}", claim)
        for gone in reply[2] if len(reply) > 2 else ():  # Redis 7 tells
            log.error("entry_gone", stream=stream.key, entry_id=gone.decode(), hint=REMOVED_HINT)
        rows = [row for row in reply[1] if row[1]]
        poison = set()
        if rows:
            pending = await self._retried(
                f"tell what is pending of {stream.key}",
                lambda: self._redis.xpending_range(
                    stream.key,
                    group,
                    min=rows[0][0],
                    max=rows[-1][0],
                    count=READ_COUNT,
                    consumername=consumer,
                ),
            )
            poison = {p["message_id"] for p in pending if int(p["times_delivered"]) > MAX_DELIVERIES}
            for row in rows:
                if row[0] in poison:
                    reason = f"delivered more than {MAX_DELIVERIES} times and never acknowledged"
                    await self._bury(stream, group, row, reason)
        return reply[0].decode(), [row for row in rows if row[0] not in poison]

    async def _batch(self, stream: Stream[M], group: str, rows: Sequence[RawEntry]) -> Batch[M]:
        entries = []
        for raw in rows:
            if not raw[1]:  # deleted while it was pending: nothing is left to read
                continue
            try:
                entries.append(_entry(stream, raw))
            except MessageError as unreadable:
                await self._bury(stream, group, raw, str(unreadable))

        async def ack() -> None:
            ids = [entry.entry_id for entry in entries]
            if ids:
                await self._retried(f"acknowledge {stream.key}", lambda: self._remove(stream, group, ids))

        return Batch(entries, ack)

    async def _remove(self, stream: Stream[M], group: str, ids: Sequence[str]) -> None:
        await cast("Awaitable[int]", self._redis.eval(_REMOVE, 1, stream.key, group, *ids))

    async def _bury(self, stream: Stream[M], group: str, raw: RawEntry, reason: str) -> None:
        letter = [word for pair in letter_fields(stream, raw, reason).items() for word in pair]
        arguments: list[bytes | str | int] = [group, raw[0], cast("int", DEAD.max_length), *letter]

        async def move() -> None:
            await cast(
                "Awaitable[bytes | None]", self._redis.eval(_BURY, 2, DEAD.key, stream.key, *arguments)
            )

        await self._retried(f"dead-letter from {stream.key}", move)
        log.warning("dead_lettered", stream=stream.key, entry_id=raw[0].decode(), reason=reason)

    async def _report(self, stream: Stream[M], raw: RawEntry, reason: str) -> None:
        """Put an entry with the dead letters that stays in its stream, for readers that can read it."""
        letter = letter_fields(stream, raw, reason)
        await self._retried(
            f"dead-letter from {stream.key}",
            lambda: self._redis.xadd(DEAD.key, cast("Any", letter), **_trim(DEAD)),
        )

    async def _retried(self, what: str, operation: Callable[[], Awaitable[R]]) -> R:
        """Try until Redis answers; a cancelled task stops trying.

        Raises:
            SettingsError: Redis refuses the password.
        """
        async for attempt in stamina.retry_context(
            on=_is_transient, attempts=None, timeout=None, wait_initial=0.05, wait_max=5.0, wait_jitter=0.5
        ):
            with attempt:
                try:
                    result = await _cancellable(operation())
                except REFUSED as refused:
                    raise SettingsError(
                        f"setting MM_REDIS_URL: Redis refuses to {what}: {refused}; "
                        "give the URL that has the server's user and password"
                    ) from refused
                except Exception as away:
                    if not _is_transient(away):
                        raise
                    if not self._down:
                        log.warning("redis_away", during=what, error=str(away))
                    self._down = True
                    self._breaks += 1
                    raise
                if self._down:
                    log.info("redis_back", during=what)
                self._down = False
                return result
        raise AssertionError("a retry loop without an end came to its end")


def _is_transient(error: Exception) -> bool:
    if isinstance(error, redis_errors.ResponseError) and TRANSIENT_REFUSAL.search(str(error)):
        return True
    return isinstance(error, TRANSIENT) and not isinstance(error, REFUSED)


async def _cancellable(operation: Awaitable[R]) -> R:
    """The result of an operation, unless the task was cancelled during it.

    The client looks at its socket under `asyncio.timeout(0)`, which turns a cancellation that arrives
    at that moment into its own time-out (CPython's `Timeout.__aexit__` cannot tell the two apart): the
    task would go on as if nothing had been asked of it.
    """
    task = asyncio.current_task()
    asked_before = task.cancelling() if task else 0
    result = await operation
    if task and task.cancelling() > asked_before:
        raise asyncio.CancelledError
    return result


def _trim(stream: Stream[Message]) -> dict[str, Any]:
    return {} if stream.max_length is None else {"maxlen": stream.max_length, "approximate": True}


def _rows(reply: object) -> list[RawEntry]:
    """Entries of the one stream in a reply of XREAD or XREADGROUP (RESP2: a list of pairs)."""
    return list(cast("list[tuple[bytes, list[RawEntry]]]", reply)[0][1]) if reply else []


def _entry(stream: Stream[M], raw: RawEntry) -> Entry[M]:
    message, arrays = decode(stream, raw[1])
    return Entry(raw[0].decode(), message, arrays, raw[1])
