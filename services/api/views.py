"""The models of the gateway's responses.

Messages of the streams are returned unchanged; these models combine several sources.
"""

from typing import Generic, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from shared.adapters.streams.condition import RedisCondition
from shared.messages.schemas import (
    ControlIssued,
    DecisionMade,
    Stage,
    ValidationReported,
    VersionPromoted,
)

T = TypeVar("T")

Detail = dict[str, int | float | str | bool | None]


class View(BaseModel):
    """Base class of all views."""

    model_config = ConfigDict(frozen=True)


class Page(View, Generic[T]):
    """Part of a list, newest first; pass `next` as `before` to get the following page."""

    items: list[T]
    next: str | None = None


class Item(View, Generic[T]):
    """One entry of a stream."""

    entry_id: str
    message: T


class Instance(View):
    """One process with a heartbeat."""

    instance: str
    state: Literal["starting", "running", "degraded", "stopping"]
    started_at: AwareDatetime
    beat_at: AwareDatetime
    detail: Detail


class Absence(View):
    """The absence of a service: it has no instance."""

    since: AwareDatetime = Field(description="time of the first check that did not find it")
    seen_at: AwareDatetime | None = Field(description="null if it was not seen since the gateway started")
    ran_out: bool = Field(description="its last heartbeat expired: it was killed or hangs")
    last_detail: Detail = Field(description="the detail of its last heartbeat")
    announced: bool = Field(
        False, description="an earlier gateway announced the beginning of the absence, but not its end"
    )


class Service(View):
    """All instances of one service."""

    service: str
    state: Literal["up", "degraded", "missing", "unknown"] = Field(
        description="unknown: Redis does not answer; degraded: an instance reports it"
    )
    expected: bool = Field(description="part of a complete system: its absence raises an alert")
    restarts: int = Field(0, description="processes that were replaced within the last `restart_minutes`")
    absence: Absence | None = None
    instances: list[Instance] = Field(description="at most 64, degraded ones first")
    num_instances: int = Field(0, description="number of all instances, also those not shown")


class Promoted(View):
    """The promoted version and its stage."""

    version: int
    stage: Stage = Field(description="unproven: served, but the trader enters no position with it")


class Pointers(View):
    """The versions that the pointers name."""

    newest: int | None
    best: int | None
    promoted: Promoted | None


class Order(View):
    """The operator's newest order."""

    state: Literal["running", "paused", "killed"]
    by: str
    reason: str
    at: AwareDatetime


class Control(View):
    """The state that the trader or trainer reports, and whether it is the ordered one."""

    state: Literal["running", "paused", "killed", "unknown"] = Field(
        description="as its heartbeat reports; unknown without a heartbeat"
    )
    order: Order | None = Field(None, description="the operator's newest order")
    confirmed: bool | None = Field(
        None,
        description="whether it reports the ordered state (if killed, with no position); null: not known",
    )
    summary: str = Field("", description="state and order in words, with the time and the operator")


class Training(Control):
    """The state of training."""

    version: int | None
    episode: int | None
    update: int | None
    published_at: AwareDatetime | None
    metrics: dict[str, float] = Field(description="metrics of the newest version when it was published")
    live: Detail = Field(description="detail of the trainer's heartbeat; empty without one")


class Trader(Control):
    """The state of trading."""

    heard_at: AwareDatetime | None = Field(None, description="time of the trader's last heartbeat")
    killed_by_file: bool = Field(
        False, description="a kill file on the trader's host stops trading; no order through Redis lifts it"
    )
    detail: Detail
    last_decision: DecisionMade | None
    replay_end: str = Field("", description="how the paper broker's replay ended; empty while it continues")


class Disk(View):
    """The disk of the gateway's home; locally and in compose, all services use the same disk."""

    home: str
    free_mb: int = Field(description="in MB of a million bytes")


class ActiveAlert(View):
    """A condition that holds at this moment."""

    name: str
    source: str
    detail: str
    since: AwareDatetime | None = Field(None, description="time at which its beginning was announced")


class Status(View):
    """The state of the system at one moment."""

    state: Literal["running", "degraded"] = Field(
        description="degraded: Redis or the store is unavailable, or a service is missing or degraded"
    )
    redis: Literal["up", "unavailable"]
    redis_unavailable_since: AwareDatetime | None = None
    store: Literal["up", "unavailable"] = Field(
        "up", description="the checkpoint store; unavailable: it does not answer, so no pointer is known"
    )
    time: AwareDatetime
    started_at: AwareDatetime
    version: str
    changes_allowed: bool = Field(
        True, description="an API key is set, so operators can change the system over HTTP"
    )
    services: list[Service]
    streams: dict[str, int]
    dead_letters: int | None
    redis_condition: RedisCondition | None = Field(description="null while Redis does not answer")
    disk: Disk | None = Field(None, description="null if the disk cannot be read")
    pointers: Pointers
    training: Training
    validation: ValidationReported | None
    trader: Trader
    alerts: list[ActiveAlert]


class CheckpointSummary(View):
    """One version: its progress in training, its metrics and its validation."""

    version: int
    episode: int | None
    update: int | None
    created_at: AwareDatetime | None
    metrics: dict[str, float]
    weights_sha256: str | None
    stored: bool = Field(description="whether its files are in the store; old ones are removed")
    pointers: list[str]
    stage: Stage | None = Field(description="the stage that it is promoted to")
    validation: ValidationReported | None
    fault: str = Field("", description="why its manifest cannot be read; empty if it was read or not needed")


class CheckpointDetail(View):
    """One version with its manifest."""

    summary: CheckpointSummary
    manifest: dict[str, JsonValue] | None = Field(description="null if its files were removed or are damaged")


class ValidationDetail(View):
    """One validation: its announcement and the full report."""

    summary: ValidationReported | None
    report: dict[str, JsonValue] | None
    has_page: bool
    has_picture: bool


class Positions(View):
    """The position that the trader reports."""

    time: AwareDatetime | None = Field(description="time of the report; null without a heartbeat")
    state: Literal["running", "paused", "killed", "unknown"]
    detail: Detail
    last_decision: DecisionMade | None


class Accepted(View):
    """An operator's order that was appended to its stream."""

    control: ControlIssued | None = None
    promotion: VersionPromoted | None = None
