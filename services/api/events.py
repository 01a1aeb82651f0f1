"""Events as they happen, for any number of listeners, each able to go on where it was cut off.

An event's id is the place in every stream after it: stream entry ids in a fixed order. With it a
listener that comes back is given exactly what it missed. If that is more than is kept, it is told to read
everything again.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass

from shared.messages.entry_id import EntryId
from shared.messages.schemas import Message
from shared.messages.streams import (
    ALERTS,
    CHECKPOINTS,
    CONTROL,
    DEAD,
    DECISIONS,
    PROMOTIONS,
    TRADES,
    VALIDATIONS,
    Stream,
)

#: Streams whose entries are published, and the names of their events; the order is that of an event's id.
EVENT_NAMES: Mapping[str, str] = {
    CHECKPOINTS.key: "checkpoint",
    VALIDATIONS.key: "validation",
    PROMOTIONS.key: "promotion",
    TRADES.key: "trade",
    DECISIONS.key: "decision",
    CONTROL.key: "control",
    ALERTS.key: "alert",
    DEAD.key: "dead",
}

#: Sent to a listener that missed more than is kept: it must read everything again.
RESET = "reset"

_KEPT = 5_000
_KEPT_BYTES = 16_000_000
_QUEUED = 1_000


@dataclass(frozen=True)
class Event:
    """One thing that happened."""

    event_id: str
    name: str
    data: str  # JSON


#: None ends the listener's stream.
_Queue = asyncio.Queue[Event | None]


class TooManyListenersError(Exception):
    """Every place for a listener is taken."""


class Events:
    """Keeps the last events and hands them out."""

    def __init__(self, max_listeners: int, max_per_peer: int | None = None) -> None:
        """Nothing has happened yet; `max_per_peer` bounds the listeners of one client address."""
        self._max_listeners = max_listeners
        self._max_per_peer = max_per_peer or max_listeners
        self._kept_bytes = 0
        self._kept: deque[tuple[str, EntryId, Event]] = deque()
        self._forgotten: dict[str, EntryId] = dict.fromkeys(EVENT_NAMES, EntryId(0, 0))
        self._at: dict[str, EntryId] = dict.fromkeys(EVENT_NAMES, EntryId(0, 0))
        self._queues: dict[_Queue, str] = {}  # the address of each listener
        self._closed = False

    @property
    def num_listeners(self) -> int:
        """How many listen now."""
        return len(self._queues)

    def begin(self, stream: Stream[Message], entry_id: str) -> None:
        """Say from where on a stream's entries will be published."""
        self._forgotten[stream.key] = self._at[stream.key] = EntryId.parse(entry_id)

    def publish(self, stream: Stream[Message], entry_id: str, message: Message) -> None:
        """Tell every listener of one entry."""
        self._at[stream.key] = at = EntryId.parse(entry_id)
        event = Event(self._id(), EVENT_NAMES[stream.key], message.model_dump_json())
        self._kept.append((stream.key, at, event))
        self._kept_bytes += len(event.data)
        while len(self._kept) > _KEPT or self._kept_bytes > _KEPT_BYTES:
            key, gone, forgotten = self._kept.popleft()
            self._kept_bytes -= len(forgotten.data)
            self._forgotten[key] = gone
        for queue in self._queues:
            _offer(queue, event)

    @contextlib.contextmanager
    def listen(self, last_event_id: str | None, peer: str = "") -> Iterator[AsyncIterator[Event]]:
        """The events after one that a listener saw, or from now on.

        Raises:
            TooManyListenersError: no place is left, or none for this address.
        """
        of_peer = sum(other == peer for other in self._queues.values())
        if len(self._queues) >= self._max_listeners or of_peer >= self._max_per_peer:
            raise TooManyListenersError
        queue: _Queue = asyncio.Queue(_QUEUED)
        missed = self._missed(last_event_id)
        self._queues[queue] = peer
        if self._closed:
            _offer(queue, None)
        try:
            yield _all(missed, queue)
        finally:
            del self._queues[queue]

    def close(self) -> None:
        """End every listener's stream; the service stops."""
        self._closed = True
        for queue in self._queues:
            _offer(queue, None)

    def _missed(self, last_event_id: str | None) -> list[Event]:
        if last_event_id is None:
            return []
        seen = _parse_id(last_event_id)
        if seen is None or any(seen[key] < gone for key, gone in self._forgotten.items()):
            return [Event(self._id(), RESET, "{}")]
        return [event for key, at, event in self._kept if at > seen[key]]

    def _id(self) -> str:
        return ",".join(map(str, self._at.values()))


def _parse_id(text: str) -> dict[str, EntryId] | None:
    """The places of an event's id; None when it is not of this gateway's making."""
    parts = text.split(",")
    if len(parts) != len(EVENT_NAMES):
        return None
    try:
        return dict(zip(EVENT_NAMES, map(EntryId.parse, parts), strict=True))
    except ValueError:
        return None


def _offer(queue: _Queue, event: Event | None) -> None:
    """Hand over without waiting; a listener too slow for its queue is ended and comes back by its last id."""
    if event is None or queue.full():
        while not queue.empty():
            queue.get_nowait()
        event = None
    queue.put_nowait(event)


async def _all(missed: list[Event], queue: _Queue) -> AsyncIterator[Event]:
    for event in missed:
        yield event
    while (happened := await queue.get()) is not None:
        yield happened
