"""Entries of a stream as the client gives them, and as messages."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from redis.asyncio import Redis

from shared.adapters.streams.scripts import ADD, ADD_PHASE
from shared.messages.codec import decode
from shared.messages.schemas import AlertRaised, Message
from shared.messages.streams import ALERTS, CONDITIONS_KEY, Stream

#: One reading takes so many entries at most, and waits so long for the first.
READ_COUNT = 32
BLOCK_MS = 2_000

#: Id and fields of a stream entry, as Redis gives them.
RawEntry = tuple[bytes, Mapping[bytes, bytes]]

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Entry(Generic[M]):
    """One message of a stream, with its entry id, the bytes of its arrays and the fields it came in."""

    entry_id: str
    message: M
    arrays: bytes = field(repr=False)
    fields: Mapping[bytes, bytes] = field(repr=False)

    @classmethod
    def of(cls, stream: Stream[M], raw: RawEntry) -> "Entry[M]":
        """Read an entry.

        Raises:
            MessageError: it is none that this stream may hold.
        """
        message, arrays = decode(stream, raw[1])
        return cls(raw[0].decode(), message, arrays, raw[1])


@dataclass(frozen=True)
class Batch(Generic[M]):
    """Messages delivered to one consumer; acknowledge them after their effect is safe, never before."""

    entries: Sequence[Entry[M]]
    ack: Callable[[], Awaitable[None]]


def rows_of(reply: object) -> list[RawEntry]:
    """Entries of the one stream in a reply of XREAD or XREADGROUP (RESP2: a list of pairs)."""
    return list(cast("list[tuple[bytes, list[RawEntry]]]", reply)[0][1]) if reply else []


def words_of(fields: Mapping[str, bytes] | Mapping[bytes, bytes]) -> list[str | bytes]:
    """Names and values in turn, as XADD and HSET take them."""
    return [word for pair in fields.items() for word in pair]


def add_entry(
    client: Redis,
    stream: Stream[Message],
    fields: Mapping[str, bytes] | Mapping[bytes, bytes],
    kept: str | None = None,
) -> Awaitable[bytes]:
    """Append to a stream, and to the hash that keeps the newest where there is one.

    A stream that has a bound is appended to also while Redis is full. Within a pipeline this only adds the
    command.
    """
    if stream.max_length is None:
        return cast("Awaitable[bytes]", client.xadd(stream.key, cast("Any", fields)))
    keys = [stream.key, kept] if kept else [stream.key]
    arguments = cast("list[str]", [stream.max_length, stream.max_bytes or 0, *words_of(fields)])
    return cast("Awaitable[bytes]", client.eval(ADD, len(keys), *keys, *arguments))


def add_phase(client: Redis, alert: AlertRaised, fields: Mapping[str, bytes]) -> Awaitable[bytes | None]:
    """Append an alert unless the last one of its condition had the same phase; None then."""
    arguments = [
        ALERTS.max_length or 0,
        ALERTS.max_bytes or 0,
        f"{alert.source}\0{alert.name}",
        alert.phase,
        alert.detail,
        *words_of(fields),
    ]
    called = client.eval(ADD_PHASE, 2, ALERTS.key, CONDITIONS_KEY, *cast("list[str]", arguments))
    return cast("Awaitable[bytes | None]", called)
