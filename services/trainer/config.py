"""Hyper-parameters of the trainer: replay, learning and publishing."""

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
    """What the replay keeps and how steps are drawn from it."""

    capacity_steps: int = 10_000
    trade_quota: float = 0.30  # share of the capacity that trade steps keep when newer steps come; never all
    success_capacity: int = 1_000
    success_reward_pips: float = 5.0  # a step with a larger reward enters the success memory
    success_share: float = 0.10  # share of a batch drawn from the success memory

    def __post_init__(self) -> None:
        """Check every number's range."""
        _require("replay.capacity_steps", self.capacity_steps, least=1)
        _require("replay.trade_quota", self.trade_quota, least=0.0, most=1.0)
        _require("replay.success_capacity", self.success_capacity, least=1)
        _require("replay.success_reward_pips", self.success_reward_pips)
        _require("replay.success_share", self.success_share, least=0.0, most=1.0)


class Shaping(StrEnum):
    """Reward shaping; see services/trainer/replay/targets.py."""

    NONE = "none"
    UNREALISED = "unrealised"  # a position's gain is paid as it accrues, not when it is closed


@dataclass(frozen=True)
class LearnerConfig:
    """How the networks are trained."""

    batch_size: int = 64  # steps
    stretch_steps: int = 1  # L, neighbouring steps that are drawn together and encoded in one pass
    unroll_steps: int = 5  # K
    n_step: int = 10  # bars until a value target bootstraps
    trace_floor: float = 0.0  # it bootstraps earlier, at an action with a smaller search probability
    shaping: Shaping = Shaping.NONE
    trade_margin: float = 0.0  # pips that learned rewards charge a close beyond its costs
    precision: Precision = Precision.FLOAT32  # of the passes; weights, losses and optimizer are float32
    cuda_precision: Precision = Precision.AUTO  # the same on a CUDA device; auto is bfloat16
    learning_rate: float = 0.002
    constant_updates: int = 0  # after this many the learning rate falls as 1/√updates; 0: constant
    weight_decay: float = 1e-5
    average_decay: float = 0.0  # EMA decay per update of the weights used for acting
    average_share: float = 0.0  # the EMA covers at least this share of all updates; both 0: no EMA
    max_gradient_norm: float = 1.0
    policy_weight: float = 1.0
    value_weight: float = 0.25  # of states and of afterstates
    reward_weight: float = 1.0
    outcome_weight: float = 1.0
    max_skipped_in_a_row: int = 10  # updates without a finite gradient before a roll-back

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
        """Learning rate of the next update after `updates`: constant, then falling as 1/√updates."""
        if self.constant_updates == 0:
            return self.learning_rate
        return self.learning_rate * min(1.0, math.sqrt(self.constant_updates / max(updates, 1)))

    def average_decay_at(self, updates: int) -> float:
        """EMA decay at the next update after `updates`: constant, then rising towards 1."""
        reach = max(self.average_share * (updates + 1), 1.0)
        return max(self.average_decay, 1.0 - 1.0 / reach)

    def precision_on(self, device: str) -> Precision:
        """Float32 or bfloat16, by the type of the device."""
        if device == "cpu":
            return self.precision.resolved()
        return Precision.BFLOAT16 if self.cuda_precision is Precision.AUTO else self.cuda_precision


@dataclass(frozen=True)
class TrainerConfig:
    """When the trainer learns and publishes, and what it keeps on disk."""

    hold_logit: float = 0.0  # version 0's preference for HOLD over any other action, in logits
    seed: int = 0  # of version 0's weights, of sampling and of dropout
    samples_per_insert: float = 0.5  # steps drawn per step inserted
    min_replay_steps: int = 1_000  # no update is made with fewer
    max_ahead_episodes: int = 16  # journalled and not learned from yet; at this limit the stream is not read
    max_version_lag: int | None = None  # versions; a trajectory with a larger lag is refused; None: no limit
    publish_every_episodes: int = 50
    keep_checkpoints: int = 5
    segment_megabytes: int = 64
    device: Device = Device.AUTO  # cpu, cuda, or auto: CUDA where there is one
    threads: int = 1  # of the networks' arithmetic; 1 for bit-for-bit reproducible runs
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
    """Look up an enum's option by its value."""
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
    """Refuse a number that is out of range or not finite."""
    if not math.isfinite(value):
        raise SettingsError(f"{name} is {value}, expected a finite number")
    if least is not None and value < least:
        raise SettingsError(f"{name} is {value}, expected {least} or more")
    if above is not None and value <= above:
        raise SettingsError(f"{name} is {value}, expected more than {above}")
    if most is not None and value > most:
        raise SettingsError(f"{name} is {value}, expected {most} or less")
