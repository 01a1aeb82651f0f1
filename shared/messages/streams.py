"""Key, message, retention and owner of every stream; see docs/messages.md for details."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from shared.messages.schemas import (
    AlertRaised,
    CheckpointPublished,
    ControlIssued,
    DeadLettered,
    DecisionMade,
    Message,
    TradeClosed,
    TrajectoryFinished,
    ValidationReported,
    VersionPromoted,
)

M_co = TypeVar("M_co", bound=Message, covariant=True)


@dataclass(frozen=True)
class Stream(Generic[M_co]):
    """One Redis stream.

    Attributes:
        max_length: cap by number of entries; None: entries leave only when they are acknowledged.
        max_bytes: cap by memory use in bytes, for streams whose entries may be large.
    """

    key: str
    message: type[M_co]
    owner: str
    max_length: int | None
    max_bytes: int | None = None


TRAJECTORIES = Stream("mm:trajectories", TrajectoryFinished, "selfplay", None)
CHECKPOINTS = Stream("mm:checkpoints", CheckpointPublished, "trainer", 10_000)
VALIDATIONS = Stream("mm:validations", ValidationReported, "validator", 10_000)
PROMOTIONS = Stream("mm:promotions", VersionPromoted, "validator, api", 10_000)
TRADES = Stream("mm:trades", TradeClosed, "trader", 100_000)
DECISIONS = Stream("mm:decisions", DecisionMade, "trader", 100_000)
CONTROL = Stream("mm:control", ControlIssued, "api", 10_000)
ALERTS = Stream("mm:alerts", AlertRaised, "all", 10_000)
DEAD = Stream("mm:dead", DeadLettered, "all", 2_000, max_bytes=64 << 20)

STREAMS: tuple[Stream[Message], ...] = (
    TRAJECTORIES,
    CHECKPOINTS,
    VALIDATIONS,
    PROMOTIONS,
    TRADES,
    DECISIONS,
    CONTROL,
    ALERTS,
    DEAD,
)

#: Streams whose newest entry is in force, so replaying an old entry would undo a newer one.
ANNOUNCED: tuple[Stream[Message], ...] = (CHECKPOINTS, VALIDATIONS, PROMOTIONS, CONTROL)

#: The consumer group of the trainer on the trajectories.
TRAINER_GROUP = "trainer"

#: Hash with the phase of each condition of the gateway.
CONDITIONS_KEY = "mm:conditions"

HEARTBEAT_PREFIX = "mm:heartbeat"
HEARTBEAT_TTL_SECONDS = 15


def heartbeat_key(service: str, instance: str) -> str:
    """Key of an instance's heartbeat."""
    return f"{HEARTBEAT_PREFIX}:{service}:{instance}"
