"""Stream entries, as the client returns them and as messages."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from redis.asyncio import Redis

from shared.adapters.streams.scripts import ADD, ADD_PHASE
from shared.messages.codec import decode
from shared.messages.schemas import AlertRaised, Message
from shared.messages.streams import ALERTS, CONDITIONS_KEY, Stream

#: Most entries per read, and how long a read blocks until the first entry arrives.
READ_COUNT = 32
BLOCK_MS = 2_000

#: Id and fields of a stream entry, as Redis returns them.
RawEntry = tuple[bytes, Mapping[bytes, bytes]]

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Entry(Generic[M]):
    """A message with its entry id, the bytes of its arrays, and the original fields."""

    entry_id: str
    message: M
    arrays: bytes = field(repr=False)
    fields: Mapping[bytes, bytes] = field(repr=False)

    @classmethod
    def of(cls, stream: Stream[M], raw: RawEntry) -> "Entry[M]":
        """Decode an entry.

        Raises:
            MessageError: the entry is not a valid message of this stream.
        """
        message, arrays = decode(stream, raw[1])
        return cls(raw[0].decode(), message, arrays, raw[1])


@dataclass(frozen=True)
class Batch(Generic[M]):
    """Messages delivered to one consumer. Acknowledge them only after their effect is durable."""

    entries: Sequence[Entry[M]]
    ack: Callable[[], Awaitable[None]]


def rows_of(reply: object) -> list[RawEntry]:
    """Entries of the one stream in a reply of XREAD or XREADGROUP (RESP2: a list of pairs)."""
    return list(cast("list[tuple[bytes, list[RawEntry]]]", reply)[0][1]) if reply else []


def words_of(fields: Mapping[str, bytes] | Mapping[bytes, bytes]) -> list[str | bytes]:
    """Names and values alternating, as XADD and HSET take them."""
    return [word for pair in fields.items() for word in pair]


def add_entry(
    client: Redis,
    stream: Stream[Message],
    fields: Mapping[str, bytes] | Mapping[bytes, bytes],
    latest_key: str | None = None,
) -> Awaitable[bytes]:
    """Append an entry, and store its fields in a hash too if `latest_key` names one.

    Capped streams accept entries even while Redis is out of memory. In a pipeline this only queues the
    command.
    """
    if stream.max_length is None:
        return cast("Awaitable[bytes]", client.xadd(stream.key, cast("Any", fields)))
    keys = [stream.key, latest_key] if latest_key else [stream.key]
    arguments = cast("list[str]", [stream.max_length, stream.max_bytes or 0, *words_of(fields)])
    return cast("Awaitable[bytes]", client.eval(ADD, len(keys), *keys, *arguments))


def add_phase(client: Redis, alert: AlertRaised, fields: Mapping[str, bytes]) -> Awaitable[bytes | None]:
    """Append an alert; None if the last alert of its condition had the same phase."""
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
