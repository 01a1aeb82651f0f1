"""Every message between processes: immutable facts in the past tense, each with its schema version.

Readers reject versions that they do not know. Times are UTC.
"""

from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID, uuid4

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from shared.agent.trajectory import MAX_PIPS

#: SHA-256 in hex: of a data set's bars, or of a file.
Fingerprint = str

#: Permission of a promoted version: serve decisions without trading, trade on paper, or trade live.
Stage = Literal["unproven", "paper", "live"]

#: Integers have 64 bits in arrays, in the columns of a run's record, and in metrics.
MAX_COUNT = 2**63 - 1
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Whole = Annotated[int, Field(ge=-MAX_COUNT - 1, le=MAX_COUNT)]

#: A thousand times the largest real quotes: a bitcoin in dong or rupiah.
MAX_PRICE = 1e12
Price = Annotated[float, Field(gt=0, le=MAX_PRICE)]


#: Most characters of a reason or detail.
MAX_TEXT = 2_048


def _cut(text: object) -> object:
    if not isinstance(text, str):
        return text
    text = text.encode("utf-8", "replace").decode()  # replaces unpaired surrogates, which cannot be encoded
    return text[: MAX_TEXT - 1] + "…" if len(text) > MAX_TEXT else text


#: A reason or detail. Texts that are too long or contain unpaired surrogates are repaired, not rejected,
#: because they must not prevent a fact from being recorded.
Text = Annotated[str, BeforeValidator(_cut), Field(max_length=MAX_TEXT)]

#: Name of a service, instance, split, stream or the like.
Name = Annotated[str, Field(max_length=256)]


def now() -> datetime:
    """The present time in UTC; the default of every message's `created_at`."""
    return datetime.now(UTC)


class Message(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    created_at: AwareDatetime = Field(default_factory=now)


class ArrayField(BaseModel):
    """One array in the blob that accompanies a message: raw little-endian bytes, in field order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(max_length=64)
    dtype: Literal["<f4", "|i1"]
    shape: tuple[Count, ...] = Field(max_length=3)


class TradeRecord(BaseModel):
    """One closed trade of an episode."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    entry_bar: Count
    exit_bar: Count
    side: Literal[-1, 1]
    entry_price: Price
    exit_price: Price
    pips: float = Field(ge=-MAX_PIPS, le=MAX_PIPS)
    max_drawdown_pips: float = Field(ge=0, le=MAX_PIPS)
    bars_held: Count


class TrajectoryFinished(Message):
    """A self-play worker finished one session; the arrays accompany this header."""

    schema_version: Literal[1] = 1
    trajectory_id: UUID  # for deduplication after redelivery
    worker: str = Field(max_length=128)
    checkpoint_version: Count  # version of the acting weights; determines the policy lag
    dataset: Fingerprint = Field(min_length=64, max_length=64)  # the trainer rejects other data sets
    start_bar: Count
    seed: Whole
    trades: tuple[TradeRecord, ...] = Field(max_length=1024)
    arrays: tuple[ArrayField, ...] = Field(max_length=16)
    arrays_sha256: Fingerprint


class CheckpointPublished(Message):
    """The trainer published a version; it is complete in the store."""

    schema_version: Literal[1] = 1
    version: Count
    episode: Count
    update: Count
    weights_sha256: Fingerprint
    metrics: dict[str, float] = {}


class ValidationReported(Message):
    """The validator judged a version out of sample."""

    schema_version: Literal[1] = 1
    version: Count
    split: Name
    num_sessions: Count
    num_trades: Count
    expectancy_pips: float | None
    sqn: float | None
    net_pips: float
    max_drawdown_pips: float
    passed_gates: tuple[Name, ...]
    reasons: tuple[Text, ...] = ()  # why a gate was not passed
    seconds: float = Field(ge=0)


class VersionPromoted(Message):
    """A version was promoted; a roll-back promotes an earlier version.

    Schema version 1 had no stage `unproven`.
    """

    schema_version: Literal[1, 2] = 2
    version: Count
    stage: Stage
    by: str = Field(max_length=128)
    rolled_back_from: int | None = None


class DecisionMade(Message):
    """The trader's decision at a bar's close, and whether it was executed."""

    schema_version: Literal[1] = 1
    bar_time: AwareDatetime
    action: Literal["HOLD", "BUY", "SELL", "CLOSE"]
    executed: bool
    reason: Text = ""  # why the decision was not executed, or why there was none
    version: int | None = None
    value: float | None = None
    visit_policy: tuple[float, ...] = Field((), max_length=4)
    q_values: tuple[float | None, ...] = Field((), max_length=4)
    outcome_probabilities: tuple[float, ...] = Field((), max_length=3)
    side: Literal[-1, 0, 1]
    pnl_pips: float
    close: float
    latency_ms: float | None = None


class TradeClosed(Message):
    """The trader's position was closed at the broker. In schema version 1 the units are an integer."""

    schema_version: Literal[1, 2] = 2
    trade_id: str = Field(max_length=64)
    instrument: Name
    side: Literal[-1, 1]
    units: int | float = Field(gt=0)
    entry_time: AwareDatetime
    exit_time: AwareDatetime
    entry_price: float = Field(gt=0)
    exit_price: float = Field(gt=0)
    pips: float
    reason: Text = ""


class ControlIssued(Message):
    """An operator changed the state of a target; it holds until the next message for the target."""

    schema_version: Literal[1] = 1
    target: Literal["training", "trader"]
    state: Literal["running", "paused", "killed"]
    by: str = Field(max_length=128)
    reason: str = Field("", max_length=1024)


class AlertRaised(Message):
    """Information for the operator: a condition began or ended, or an event happened.

    Alerts of schema version 1 have neither id nor phase and are read as events.
    """

    schema_version: Literal[1, 2] = 2
    alert_id: UUID = Field(default_factory=uuid4)  # the same in every delivery of this alert
    source: Name  # a service, or a component such as "redis"
    name: str = Field(max_length=128)
    detail: Text = ""
    phase: Literal["event", "began", "ended"] = "event"
    occurrences: int = Field(1, ge=1)  # times that the condition appeared before it ended


class DeadLettered(Message):
    """An entry that could not be processed, with the reason. If `kept`, the letter contains the entry too.

    Schema version 1 kept only the excerpt; its letters are read as letters without the entry.
    """

    schema_version: Literal[1, 2] = 2
    stream: Name
    entry_id: str = Field(pattern=r"^\d{1,20}-\d{1,20}$")
    reason: Text
    size_bytes: int | None = Field(None, ge=0)  # names and values of all fields
    kept: bool = False
    excerpt: str = Field("", max_length=4096)


class Heartbeat(Message):
    """A service instance is alive. The key expires if the instance stops sending heartbeats."""

    schema_version: Literal[1] = 1
    service: Name
    instance: Name
    state: Literal["starting", "running", "degraded", "stopping"]
    pid: int
    started_at: AwareDatetime
    detail: dict[Name, Whole | float | Text | bool | None] = Field({}, max_length=256)
