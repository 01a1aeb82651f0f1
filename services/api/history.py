"""What was announced so far, kept in memory by following the streams.

A few thousand versions with their metrics and verdicts are small. Held here, lists and curves are
answered without walking a stream for each request, and also while Redis is away.
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

#: Streams that are read from their beginning; of the others only the last entries matter here.
_WHOLE = (CHECKPOINTS, VALIDATIONS, PROMOTIONS, CONTROL)
_TAILS = (TRADES, DECISIONS, ALERTS, DEAD)
_TAIL_LENGTH = 200

assert {stream.key for stream in (*_WHOLE, *_TAILS)} == set(EVENT_NAMES)
assert set(EVENT_NAMES) < {stream.key for stream in STREAMS}


@dataclass
class History:
    """Everything announced, by version or target; the newest message of each stands."""

    checkpoints: dict[int, CheckpointPublished] = field(default_factory=dict)
    validations: dict[int, ValidationReported] = field(default_factory=dict)
    promotion: VersionPromoted | None = None
    controls: dict[str, ControlIssued] = field(default_factory=dict)
    last_decision: DecisionMade | None = None
    last_validation: ValidationReported | None = None

    def add(self, message: Message) -> None:
        """Take in one message."""
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
    """Keep history and events up to date until cancelled; waits for Redis wherever it is away."""
    async with asyncio.TaskGroup() as group:
        for whole in _WHOLE:
            group.create_task(_follow(bus, whole, "0-0", history, events))
        for tail in _TAILS:
            group.create_task(_follow_tail(bus, tail, history, events))


async def _follow_tail(bus: Bus, stream: Stream[Message], history: History, events: Events) -> None:
    after = await bus.id_before_newest(stream, count=_TAIL_LENGTH)
    if after != "0-0":
        events.begin(stream, after)
    await _follow(bus, stream, after, history, events)


async def _follow(bus: Bus, stream: Stream[Message], after: str, history: History, events: Events) -> None:
    async for entries in bus.follow(stream, after):
        for entry in entries:
            _take(stream, entry, history, events)


def _take(stream: Stream[Message], entry: Entry[Message], history: History, events: Events) -> None:
    history.add(entry.message)
    events.publish(stream, entry.entry_id, entry.message)
