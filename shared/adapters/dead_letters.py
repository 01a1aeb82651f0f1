"""Dead letters: what is kept of an entry that could not be processed, and whether it can be replayed.

A letter is an entry of `mm:dead`: the message `DeadLettered` and, beside it, every field of the original
byte for byte under its name with `original:` before it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from shared.errors import MessageError
from shared.messages.codec import MAX_ARRAYS_BYTES, MAX_BODY_BYTES, decode, encode
from shared.messages.schemas import DeadLettered, Message
from shared.messages.streams import ANNOUNCED, DEAD, STREAMS, Stream

#: Id and fields of a stream entry, as Redis gives them.
RawEntry = tuple[bytes, Mapping[bytes, bytes]]

#: No reader takes a larger body or larger arrays; the rest is room for the names and small fields.
MAX_KEPT_BYTES = MAX_BODY_BYTES + MAX_ARRAYS_BYTES + 4_096

#: A script hands no more than some thousand arguments to XADD; what is sent here has four fields.
MAX_KEPT_FIELDS = 1_000

EXCERPT_BYTES = 1_024

_ORIGINAL = b"original:"


@dataclass(frozen=True)
class Letter:
    """One dead letter; without a stream and an entry id when the letter itself cannot be read."""

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
        """Why it cannot be replayed; empty when it can be."""
        if self.stream is None:
            return "the letter itself cannot be read"
        if self.stream not in {stream.key for stream in STREAMS} - {DEAD.key}:
            return f"{self.stream} is no stream to replay into"
        if self.stream in {stream.key for stream in ANNOUNCED}:
            return f"the newest entry of {self.stream} holds, and an old one would undo it: announce it anew"
        if self.original is None:
            return "the entry itself was not kept, only an excerpt of it"
        return ""


def letter_fields(stream: Stream[Message], raw: RawEntry, reason: str) -> dict[bytes, bytes]:
    """The fields of a letter about an entry; one of more bytes or fields than are kept leaves an excerpt."""
    entry_id, original = raw
    size = sum(len(name) + len(value) for name, value in original.items())
    excerpt = b" ".join(name + b"=" + value[:EXCERPT_BYTES] for name, value in original.items())
    kept = size <= MAX_KEPT_BYTES and len(original) <= MAX_KEPT_FIELDS
    message = DeadLettered(
        stream=stream.key,
        entry_id=entry_id.decode(),
        reason=reason[:2048],
        size_bytes=size,
        kept=kept,
        excerpt=excerpt[: EXCERPT_BYTES * 2].decode("ascii", "replace"),
    )
    fields = {name.encode(): value for name, value in encode(message).items()}
    return {**fields, **{_ORIGINAL + name: value for name, value in original.items()}} if kept else fields


def read_letter(raw: RawEntry) -> Letter:
    """The letter of an entry of `mm:dead`; one that cannot be read is a letter that says so."""
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
