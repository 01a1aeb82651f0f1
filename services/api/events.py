"""Publishes stream entries as events to listeners, which can resume after a lost connection.

An event id is the position in all streams after the event: one entry id per stream, in a fixed order. A
listener that reconnects with its last event id gets exactly the events that it missed. If some of them are
no longer kept, it gets `reset`: it must read everything again.
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

#: Streams that are published, and the names of their events; event ids use this order.
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

#: The event for a listener that missed events that are no longer kept.
RESET = "reset"

_MAX_KEPT = 5_000
_MAX_KEPT_BYTES = 16_000_000
_MAX_QUEUED = 1_000  # events per listener


@dataclass(frozen=True)
class Event:
    """One stream entry as an event."""

    event_id: str
    name: str
    data: str  # JSON


#: None closes the listener's stream.
_Queue = asyncio.Queue[Event | None]


class TooManyListenersError(Exception):
    """The limit of listeners is reached."""


class Events:
    """Keeps the last events and sends new ones to all listeners."""

    def __init__(self, max_listeners: int, max_per_peer: int | None = None) -> None:
        """Start without events; `max_per_peer` limits the listeners of one client address."""
        self._max_listeners = max_listeners
        self._max_per_peer = max_per_peer or max_listeners
        self._kept_bytes = 0
        self._kept: deque[tuple[str, EntryId, Event]] = deque()
        self._last_dropped: dict[str, EntryId] = dict.fromkeys(EVENT_NAMES, EntryId(0, 0))
        self._position: dict[str, EntryId] = dict.fromkeys(EVENT_NAMES, EntryId(0, 0))
        self._queues: dict[_Queue, str] = {}  # the address of each listener
        self._closed = False

    def begin(self, stream: Stream[Message], entry_id: str) -> None:
        """Publish the entries after this one; a listener that missed an earlier one gets `reset`."""
        self._last_dropped[stream.key] = self._position[stream.key] = EntryId.parse(entry_id)

    def publish(self, stream: Stream[Message], entry_id: str, message: Message) -> None:
        """Send one entry to every listener."""
        self._position[stream.key] = position = EntryId.parse(entry_id)
        event = Event(self._id(), EVENT_NAMES[stream.key], message.model_dump_json())
        self._kept.append((stream.key, position, event))
        self._kept_bytes += len(event.data)
        while len(self._kept) > _MAX_KEPT or self._kept_bytes > _MAX_KEPT_BYTES:
            key, dropped_position, dropped = self._kept.popleft()
            self._kept_bytes -= len(dropped.data)
            self._last_dropped[key] = dropped_position
        for queue in self._queues:
            _offer(queue, event)

    @contextlib.contextmanager
    def listen(self, last_event_id: str | None, peer: str = "") -> Iterator[AsyncIterator[Event]]:
        """Listen to the events after `last_event_id`, or to those from now on if it is None.

        Raises:
            TooManyListenersError: the limit of all listeners, or of this address, is reached.
        """
        of_peer = sum(other == peer for other in self._queues.values())
        if len(self._queues) >= self._max_listeners or of_peer >= self._max_per_peer:
            raise TooManyListenersError
        queue: _Queue = asyncio.Queue(_MAX_QUEUED)
        missed = self._missed(last_event_id)
        self._queues[queue] = peer
        if self._closed:
            _offer(queue, None)
        try:
            yield _events(missed, queue)
        finally:
            del self._queues[queue]

    def close(self) -> None:
        """Close every listener's stream, since the service stops."""
        self._closed = True
        for queue in self._queues:
            _offer(queue, None)

    def _missed(self, last_event_id: str | None) -> list[Event]:
        if last_event_id is None:
            return []
        seen = _parse_id(last_event_id)
        if seen is None or any(seen[key] < dropped for key, dropped in self._last_dropped.items()):
            return [Event(self._id(), RESET, "{}")]
        return [event for key, position, event in self._kept if position > seen[key]]

    def _id(self) -> str:
        return ",".join(map(str, self._position.values()))


def _parse_id(text: str) -> dict[str, EntryId] | None:
    """The entry id of each stream in an event id; None if the text is not an event id."""
    parts = text.split(",")
    if len(parts) != len(EVENT_NAMES):
        return None
    try:
        return dict(zip(EVENT_NAMES, map(EntryId.parse, parts), strict=True))
    except ValueError:
        return None


def _offer(queue: _Queue, event: Event | None) -> None:
    """Queue an event without waiting; close a listener whose queue is full. It can resume by its last id."""
    if event is None or queue.full():
        while not queue.empty():
            queue.get_nowait()
        event = None
    queue.put_nowait(event)


async def _events(missed: list[Event], queue: _Queue) -> AsyncIterator[Event]:
    for event in missed:
        yield event
    while (event_or_end := await queue.get()) is not None:
        yield event_or_end
