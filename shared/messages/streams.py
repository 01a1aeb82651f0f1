"""Streams: key, message, retention and owner of each, in one table (docs/messages.md tells the rest)."""

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
    """One Redis stream. `max_length` None means that only acknowledged entries leave it.

    `max_bytes`, of Redis' memory, is for a stream whose entries hold what others made up.
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

#: Streams whose newest entry holds: an old one that is appended again would undo a newer one.
ANNOUNCED: tuple[Stream[Message], ...] = (CHECKPOINTS, VALIDATIONS, PROMOTIONS, CONTROL)

#: The consumer group that learns from trajectories.
TRAINER_GROUP = "trainer"

#: Hash with the phase of each of the gateway's conditions.
CONDITIONS_KEY = "mm:conditions"

HEARTBEAT_PREFIX = "mm:heartbeat"
HEARTBEAT_TTL_SECONDS = 15


def heartbeat_key(service: str, instance: str) -> str:
    """Key under which one instance says that it lives."""
    return f"{HEARTBEAT_PREFIX}:{service}:{instance}"
