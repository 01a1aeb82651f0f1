"""What the gateway answers: the models of its responses.

Messages of the streams are answered as they are; these stand for what is put together from several.
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
    """Base of all views."""

    model_config = ConfigDict(frozen=True)


class Page(View, Generic[T]):
    """Part of a list, newest first; `next` is the `before` of the page after it."""

    items: list[T]
    next: str | None = None


class Item(View, Generic[T]):
    """One entry of a stream."""

    entry_id: str
    message: T


class Instance(View):
    """One process that says it lives."""

    instance: str
    state: Literal["starting", "running", "degraded", "stopping"]
    started_at: AwareDatetime
    beat_at: AwareDatetime
    detail: Detail


class Absence(View):
    """A service that no instance of is there."""

    since: AwareDatetime = Field(description="the first look at which it was not there")
    seen_at: AwareDatetime | None = Field(description="null when it was not seen since the gateway started")
    ran_out: bool = Field(description="its heartbeats stopped without a goodbye: it was killed or hangs")
    last_detail: Detail = Field(description="what it last said of itself")
    announced: bool = Field(False, description="an earlier gateway announced it, and not its end")


class Service(View):
    """All instances of one service."""

    service: str
    state: Literal["up", "degraded", "missing", "unknown"] = Field(
        description="unknown while Redis is away; degraded: an instance says so"
    )
    expected: bool = Field(description="part of a complete system: that it is missing is an alert")
    restarts: int = Field(0, description="processes that ended and were replaced, within the last minutes")
    absence: Absence | None = None
    instances: list[Instance] = Field(description="those that are degraded first; at most 64")
    num_instances: int = Field(0, description="of all instances, also those that are not shown")


class Promoted(View):
    """The version that decides, and in what."""

    version: int
    stage: Stage = Field(description="unproven: served, but the trader makes no entry on it")


class Pointers(View):
    """Versions with a name."""

    newest: int | None
    best: int | None
    promoted: Promoted | None


class Order(View):
    """What an operator ordered last."""

    state: Literal["running", "paused", "killed"]
    by: str
    reason: str
    at: AwareDatetime


class Control(View):
    """What a part does by its own word, and whether that is what was ordered."""

    state: Literal["running", "paused", "killed", "unknown"] = Field(
        description="the part's own word; unknown while it cannot be heard"
    )
    order: Order | None = Field(None, description="the operator's newest order")
    confirmed: bool | None = Field(
        None,
        description="the part does what was ordered (killed: and holds no position); null: not known",
    )
    summary: str = Field("", description="the same in words, with the time and by whom")


class Training(Control):
    """Where learning stands."""

    version: int | None
    episode: int | None
    update: int | None
    published_at: AwareDatetime | None
    metrics: dict[str, float] = Field(description="what the newest version measured when it was published")
    live: Detail = Field(description="what the trainer says now; empty when it is not there")


class Trader(Control):
    """Where trading stands."""

    heard_at: AwareDatetime | None = Field(None, description="when the trader said so")
    killed_by_file: bool = Field(
        False, description="a kill file on the trader's host holds, which no order through Redis lifts"
    )
    detail: Detail
    last_decision: DecisionMade | None
    replay_end: str = Field("", description="how the paper broker's replay ended; empty while it goes on")


class Disk(View):
    """The disk that the gateway's home is on; locally and in compose it is that of all services."""

    home: str
    free_mb: int = Field(description="of a million bytes")


class ActiveAlert(View):
    """Something that is wrong at this moment."""

    name: str
    source: str
    detail: str
    since: AwareDatetime | None = Field(None, description="when its beginning was announced")


class Status(View):
    """The whole system at one moment."""

    state: Literal["running", "degraded"] = Field(
        description="degraded: Redis or the store is away, an expected service is missing or degraded"
    )
    redis: Literal["up", "away"]
    redis_away_since: AwareDatetime | None = None
    store: Literal["up", "away"] = Field("up", description="the checkpoint store; away: no pointer is known")
    time: AwareDatetime
    started_at: AwareDatetime
    version: str
    changes_allowed: bool = Field(
        True, description="an API key is set, so that operators may change things over HTTP"
    )
    services: list[Service]
    streams: dict[str, int]
    dead_letters: int | None
    redis_condition: RedisCondition | None = Field(description="null while Redis is away")
    disk: Disk | None = Field(None, description="null while the disk does not answer")
    pointers: Pointers
    training: Training
    validation: ValidationReported | None
    trader: Trader
    alerts: list[ActiveAlert]


class CheckpointSummary(View):
    """One version: where in training it was made, what it measured, and how it was judged."""

    version: int
    episode: int | None
    update: int | None
    created_at: AwareDatetime | None
    metrics: dict[str, float]
    weights_sha256: str | None
    stored: bool = Field(description="its files are in the store; old versions are removed")
    pointers: list[str]
    stage: Stage | None = Field(description="what it is promoted to")
    validation: ValidationReported | None
    fault: str = Field("", description="why its manifest cannot be read; empty when it can, or need not be")


class CheckpointDetail(View):
    """One version with its manifest."""

    summary: CheckpointSummary
    manifest: dict[str, JsonValue] | None = Field(
        description="null when its files were removed or are damaged"
    )


class ValidationDetail(View):
    """One validation: what was announced, and the whole report."""

    summary: ValidationReported | None
    report: dict[str, JsonValue] | None
    has_page: bool
    has_picture: bool


class Positions(View):
    """What the trader holds, by its own latest word."""

    time: AwareDatetime | None = Field(description="when the trader said so; null when it is not there")
    state: Literal["running", "paused", "killed", "unknown"]
    detail: Detail
    last_decision: DecisionMade | None


class Accepted(View):
    """An operator's act is on its stream."""

    control: ControlIssued | None = None
    promotion: VersionPromoted | None = None
