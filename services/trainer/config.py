"""What the trainer may be told: how much it keeps, how it learns, when it publishes."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from services.trainer.place import Device
from shared.engine.precision import Precision
from shared.errors import SettingsError

_N = TypeVar("_N", int, float)


@dataclass(frozen=True)
class ReplayConfig:
    """What the replay keeps and how it is drawn from."""

    capacity_steps: int = 10_000
    trade_quota: float = 0.30  # share of the steps that trade steps may hold against newer ones; never all
    success_capacity: int = 1_000
    success_reward_pips: float = 5.0  # a step paid more than this is remembered as a success
    success_share: float = 0.10  # part of a batch that is drawn from the success memory

    def __post_init__(self) -> None:
        """Check every number's range."""
        _require("replay.capacity_steps", self.capacity_steps, least=1)
        _require("replay.trade_quota", self.trade_quota, least=0.0, most=1.0)
        _require("replay.success_capacity", self.success_capacity, least=1)
        _require("replay.success_reward_pips", self.success_reward_pips)
        _require("replay.success_share", self.success_share, least=0.0, most=1.0)


class Shaping(StrEnum):
    """What is added to rewards before they are learned from; see services/trainer/replay/targets.py."""

    NONE = "none"
    UNREALISED = "unrealised"  # a position's gain is paid as it comes, not when it is closed


@dataclass(frozen=True)
class LearnerConfig:
    """How the networks are trained."""

    batch_size: int = 64  # steps
    stretch_steps: int = 1  # L, of a trajectory, drawn together and encoded in one pass
    unroll_steps: int = 5  # K
    n_step: int = 10  # bars until a value target bootstraps
    trace_floor: float = 0.0  # it bootstraps sooner, before an action less likely than this to the search
    shaping: Shaping = Shaping.NONE
    trade_margin: float = 0.0  # pips that closing is charged beyond its costs in what is learned
    precision: Precision = Precision.FLOAT32  # of the passes; weights, losses and optimizer are float32
    cuda_precision: Precision = Precision.AUTO  # the same on a CUDA device, where auto is bfloat16
    learning_rate: float = 0.002
    constant_updates: int = 0  # after so many it falls by one over their number's square root; 0: never
    weight_decay: float = 1e-5
    average_decay: float = 0.0  # of the average of the weights that acts, at an update; 0: the weights do
    average_share: float = 0.0  # of all updates so far that it reaches back over, where that is further
    max_gradient_norm: float = 1.0
    policy_weight: float = 1.0
    value_weight: float = 0.25  # of states and of afterstates
    reward_weight: float = 1.0
    outcome_weight: float = 1.0
    max_skipped_in_a_row: int = 10  # updates without a finite gradient before rolling back

    def __post_init__(self) -> None:
        """Check every number's range."""
        object.__setattr__(self, "shaping", _named(Shaping, "learner.shaping", self.shaping))
        object.__setattr__(self, "precision", _named(Precision, "learner.precision", self.precision))
        cuda_precision = _named(Precision, "learner.cuda_precision", self.cuda_precision)
        object.__setattr__(self, "cuda_precision", cuda_precision)
        for count in ("batch_size", "stretch_steps", "unroll_steps", "n_step", "max_skipped_in_a_row"):
            _require(f"learner.{count}", getattr(self, count), least=1)
        if not 0.0 <= self.average_decay < 1.0:
            raise SettingsError(
                f"learner.average_decay is {self.average_decay}, expected 0 or more and less than 1"
            )
        _require("learner.average_share", self.average_share, least=0.0, most=1.0)
        _require("learner.trace_floor", self.trace_floor, least=0.0, most=1.0)
        _require("learner.trade_margin", self.trade_margin, least=0.0)
        _require("learner.constant_updates", self.constant_updates, least=0)
        for positive in ("learning_rate", "max_gradient_norm"):
            _require(f"learner.{positive}", getattr(self, positive), above=0.0)
        for name in ("weight_decay", "policy_weight", "value_weight", "reward_weight", "outcome_weight"):
            _require(f"learner.{name}", getattr(self, name), least=0.0)

    def learning_rate_at(self, updates: int) -> float:
        """Of the next update after so many: constant, then falling as 1/√updates."""
        if self.constant_updates == 0:
            return self.learning_rate
        return self.learning_rate * min(1.0, math.sqrt(self.constant_updates / max(updates, 1)))

    def average_decay_at(self, updates: int) -> float:
        """Of the average at the next update after so many: constant, then closer to 1 as updates go by."""
        reach = max(self.average_share * (updates + 1), 1.0)
        return max(self.average_decay, 1.0 - 1.0 / reach)

    def precision_on(self, device: str) -> Precision:
        """Float32 or bfloat16: what the passes are computed in on a kind of device."""
        if device == "cpu":
            return self.precision.resolved()
        return Precision.BFLOAT16 if self.cuda_precision is Precision.AUTO else self.cuda_precision


@dataclass(frozen=True)
class TrainerConfig:
    """When the trainer learns and publishes, and what it keeps on disk."""

    hold_logit: float = 0.0  # how much version 0 prefers HOLD to any other action, in logits
    seed: int = 0  # of version 0's weights, of sampling and of dropout
    samples_per_insert: float = 0.5  # times that a step is drawn, for each step that came in
    min_replay_steps: int = 1_000  # nothing is learned from fewer
    max_ahead_episodes: int = 16  # journalled and not learned from yet; beyond it the stream is left alone
    max_version_lag: int | None = None  # versions; one played by an older one is refused, by default none is
    publish_every_episodes: int = 50
    keep_checkpoints: int = 5
    segment_megabytes: int = 64
    device: Device = Device.AUTO  # cpu, cuda, or auto: CUDA where there is one
    threads: int = 1  # of the networks' arithmetic; the same bits on every run need 1
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Check every number's range."""
        object.__setattr__(self, "device", _named(Device, "trainer.device", self.device))
        _require("trainer.hold_logit", self.hold_logit)
        _require("trainer.seed", self.seed, least=0)
        _require("trainer.samples_per_insert", self.samples_per_insert, above=0.0)
        if self.max_version_lag is not None:
            _require("trainer.max_version_lag", self.max_version_lag, least=0)
        for count in (
            "min_replay_steps",
            "max_ahead_episodes",
            "publish_every_episodes",
            "keep_checkpoints",
            "segment_megabytes",
            "threads",
        ):
            _require(f"trainer.{count}", getattr(self, count), least=1)


_E = TypeVar("_E", bound=StrEnum)


def _named(options: type[_E], name: str, value: str) -> _E:
    """The option of a name."""
    if value not in list(options):
        raise SettingsError(f"{name} is {value!r}, expected one of {', '.join(options)}")
    return options(value)


def _require(
    name: str,
    value: _N,
    *,
    least: _N | None = None,
    above: _N | None = None,
    most: _N | None = None,
) -> None:
    """Refuse a number outside its range, or one that is not finite."""
    if not math.isfinite(value):
        raise SettingsError(f"{name} is {value}, expected a finite number")
    if least is not None and value < least:
        raise SettingsError(f"{name} is {value}, expected {least} or more")
    if above is not None and value <= above:
        raise SettingsError(f"{name} is {value}, expected more than {above}")
    if most is not None and value > most:
        raise SettingsError(f"{name} is {value}, expected {most} or less")
