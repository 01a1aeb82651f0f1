"""Dead letters: entries that could not be processed, and their replay.

A letter is an entry of `mm:dead`. It has the fields of the message `DeadLettered` and, with the prefix
`original:`, every field of the original entry unchanged. Moving an entry there and replaying it are atomic.
The stream is capped by number and bytes (`DEAD`): new letters push out the oldest.
"""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

import structlog

from shared.adapters.streams.connection import RedisConnection
from shared.adapters.streams.entries import RawEntry, add_entry, words_of
from shared.adapters.streams.scripts import DEAD_LETTER, REPLAY
from shared.errors import MessageError
from shared.messages.codec import MAX_ARRAYS_BYTES, MAX_BODY_BYTES, decode, encode
from shared.messages.schemas import DeadLettered, Message
from shared.messages.streams import ANNOUNCED, DEAD, STREAMS, Stream

log = structlog.get_logger()

#: Consumers reject larger bodies and arrays; the rest is room for names and small fields.
MAX_KEPT_BYTES = MAX_BODY_BYTES + MAX_ARRAYS_BYTES + 4_096

#: A script can pass only a few thousand arguments to XADD. Entries of this system have four fields.
MAX_KEPT_FIELDS = 1_000

EXCERPT_BYTES = 1_024

_ORIGINAL = b"original:"


@dataclass(frozen=True)
class Letter:
    """One dead letter. If the letter itself cannot be read, it has neither stream nor entry id."""

    letter_id: str
    stream: str | None
    entry_id: str | None
    reason: str
    created_at: datetime
    size_bytes: int | None
    excerpt: str
    original: Mapping[bytes, bytes] | None = field(repr=False)

    @property
    def obstacle(self) -> str:
        """Why the letter cannot be replayed; empty if it can."""
        if self.stream is None:
            return "the letter itself cannot be read"
        if self.stream not in {stream.key for stream in STREAMS} - {DEAD.key}:
            return f"{self.stream} is not a stream to replay into"
        if self.stream in {stream.key for stream in ANNOUNCED}:
            return f"it would undo the newest entry of {self.stream}, which is in force: announce it again"
        if self.original is None:
            return "the entry itself was not kept, only an excerpt of it"
        return ""


def letter_fields(stream: Stream[Message], raw: RawEntry, reason: str) -> dict[bytes, bytes]:
    """The fields of an entry's letter. If the entry exceeds the limits, only an excerpt is kept."""
    entry_id, original = raw
    size = sum(len(name) + len(value) for name, value in original.items())
    excerpt = b" ".join(name + b"=" + value[:EXCERPT_BYTES] for name, value in original.items())
    kept = size <= MAX_KEPT_BYTES and len(original) <= MAX_KEPT_FIELDS
    message = DeadLettered(
        stream=stream.key,
        entry_id=entry_id.decode(),
        reason=reason,
        size_bytes=size,
        kept=kept,
        excerpt=excerpt[: EXCERPT_BYTES * 2].decode("ascii", "replace"),
    )
    fields = {name.encode(): value for name, value in encode(message).items()}
    return {**fields, **{_ORIGINAL + name: value for name, value in original.items()}} if kept else fields


def read_letter(raw: RawEntry) -> Letter:
    """Decode an entry of `mm:dead`. If that fails, return a letter with the reason."""
    letter_id, fields = raw[0].decode(), raw[1]
    try:
        message, _ = decode(DEAD, fields)
    except MessageError as unreadable:
        written = datetime.fromtimestamp(int(letter_id.partition("-")[0]) / 1e3, UTC)
        return Letter(letter_id, None, None, str(unreadable), written, None, "", None)
    original = {
        name.removeprefix(_ORIGINAL): value for name, value in fields.items() if name.startswith(_ORIGINAL)
    }
    return Letter(
        letter_id,
        message.stream,
        message.entry_id,
        message.reason,
        message.created_at,
        message.size_bytes,
        message.excerpt,
        original if message.kept and original else None,
    )


class DeadLetters:
    """The stream of dead letters."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection, self._redis = connection, connection.client

    async def move(self, stream: Stream[Message], group: str, raw: RawEntry, reason: str) -> None:
        """Move a pending entry of a group to the dead letters, atomically."""
        letter = words_of(letter_fields(stream, raw, reason))
        caps = [cast("int", DEAD.max_length), cast("int", DEAD.max_bytes)]
        arguments: list[bytes | str | int] = [group, raw[0], *caps, *letter]

        async def attempt() -> None:
            await cast(
                "Awaitable[bytes | None]", self._redis.eval(DEAD_LETTER, 2, DEAD.key, stream.key, *arguments)
            )

        await self._connection.retried(f"dead-letter from {stream.key}", attempt)
        log.warning("dead_lettered", stream=stream.key, entry_id=raw[0].decode(), reason=reason)

    async def copy(self, stream: Stream[Message], raw: RawEntry, reason: str) -> None:
        """Write a letter for an entry that stays in its stream, because other readers may understand it."""
        letter = letter_fields(stream, raw, reason)
        await self._connection.retried(
            f"dead-letter from {stream.key}", lambda: add_entry(self._redis, DEAD, letter)
        )

    async def letters(self, *, count: int, before: str = "+") -> list[Letter]:
        """Up to `count` letters, newest first; only letters older than the id `before`."""
        upper = before if before == "+" else f"({before}"
        rows = await self._connection.retried(
            "read the dead letters", lambda: self._redis.xrevrange(DEAD.key, max=upper, count=count)
        )
        return [read_letter(raw) for raw in cast("list[RawEntry]", rows)]

    async def letter(self, letter_id: str) -> Letter | None:
        """The letter with an id, or None."""
        rows = await self._connection.retried(
            "read a dead letter", lambda: self._redis.xrange(DEAD.key, min=letter_id, max=letter_id)
        )
        return read_letter(cast("list[RawEntry]", rows)[0]) if rows else None

    async def replay(self, letter: Letter, copies: Sequence[str] = ()) -> str | None:
        """Append a letter's entry to its stream again and remove the letter, atomically.

        `copies` are the ids of other letters for the same entry; they are removed too. If the entry is still
        in its stream, it is moved to the end, not duplicated.

        Returns:
            The entry's new id. None if the letter no longer exists: it was replayed by an earlier attempt
            whose reply was lost, or by another process.

        Raises:
            MessageError: the letter cannot be replayed.
        """
        if letter.obstacle or letter.stream is None or letter.entry_id is None:
            raise MessageError(f"dead letter {letter.letter_id} cannot be replayed: {letter.obstacle}")
        stream, entry_id = letter.stream, letter.entry_id
        arguments: list[bytes | str | int] = [letter.letter_id, entry_id, len(copies), *copies]
        arguments += words_of(letter.original or {})

        async def attempt() -> str | None:
            appended = await cast(
                "Awaitable[bytes | None]", self._redis.eval(REPLAY, 2, DEAD.key, stream, *arguments)
            )
            return appended.decode() if appended else None

        return await self._connection.retried(f"replay into {stream}", attempt)

    async def drop(self, letter_id: str) -> bool:
        """Delete a letter; False if there is no letter with this id."""
        removed = await self._connection.retried(
            "drop a dead letter", lambda: self._redis.xdel(DEAD.key, letter_id)
        )
        return bool(removed)
