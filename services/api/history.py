"""Follows the streams and keeps their announcements in memory.

A few thousand versions with their metrics and verdicts fit in memory. So requests for lists and curves read
no stream, and work while Redis is unavailable.
"""

import asyncio
from dataclasses import dataclass, field

from services.api.events import EVENT_NAMES, Events
from shared.adapters.streams.bus import Bus
from shared.adapters.streams.entries import Entry
from shared.messages.schemas import (
    CheckpointPublished,
    ControlIssued,
    DecisionMade,
    Message,
    ValidationReported,
    VersionPromoted,
)
from shared.messages.streams import (
    ALERTS,
    CHECKPOINTS,
    CONTROL,
    DEAD,
    DECISIONS,
    PROMOTIONS,
    STREAMS,
    TRADES,
    VALIDATIONS,
    Stream,
)

#: Streams that are read from their beginning. Only the last entries of the others are read.
_FROM_START = (CHECKPOINTS, VALIDATIONS, PROMOTIONS, CONTROL)
_LAST_ENTRIES = (TRADES, DECISIONS, ALERTS, DEAD)
_NUM_LAST_ENTRIES = 200

assert {stream.key for stream in (*_FROM_START, *_LAST_ENTRIES)} == set(EVENT_NAMES)
assert set(EVENT_NAMES) < {stream.key for stream in STREAMS}


@dataclass
class History:
    """The newest announcement of each version or target."""

    checkpoints: dict[int, CheckpointPublished] = field(default_factory=dict)
    validations: dict[int, ValidationReported] = field(default_factory=dict)
    promotion: VersionPromoted | None = None
    controls: dict[str, ControlIssued] = field(default_factory=dict)
    last_decision: DecisionMade | None = None
    last_validation: ValidationReported | None = None

    def add(self, message: Message) -> None:
        """Add one message."""
        match message:
            case CheckpointPublished():
                self.checkpoints[message.version] = message
            case ValidationReported():
                self.validations[message.version] = self.last_validation = message
            case VersionPromoted():
                self.promotion = message
            case ControlIssued():
                self.controls[message.target] = message
            case DecisionMade():
                self.last_decision = message
            case _:
                pass


async def follow_all(bus: Bus, history: History, events: Events) -> None:
    """Keep history and events up to date until cancelled; wait while Redis is unavailable."""
    async with asyncio.TaskGroup() as group:
        for complete in _FROM_START:
            group.create_task(_follow(bus, complete, "0-0", history, events))
        for recent in _LAST_ENTRIES:
            group.create_task(_follow_last_entries(bus, recent, history, events))


async def _follow_last_entries(bus: Bus, stream: Stream[Message], history: History, events: Events) -> None:
    after = await bus.id_before_newest(stream, count=_NUM_LAST_ENTRIES)
    if after != "0-0":
        events.begin(stream, after)
    await _follow(bus, stream, after, history, events)


async def _follow(bus: Bus, stream: Stream[Message], after: str, history: History, events: Events) -> None:
    async for entries in bus.follow(stream, after):
        for entry in entries:
            _add(stream, entry, history, events)


def _add(stream: Stream[Message], entry: Entry[Message], history: History, events: Events) -> None:
    history.add(entry.message)
    events.publish(stream, entry.entry_id, entry.message)
