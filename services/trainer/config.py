"""Settings of the trainer: what the replay keeps, how the networks learn, when a version is published."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from services.trainer.place import Device
from shared.engine.precision import Precision
from shared.setting import Count, Finite, Natural, NonNegative, Positive, Range, Share, check_group, setting


@dataclass(frozen=True)
class ReplayConfig:
    """The `[replay]` group.

    Raises:
        SettingsError: a value is out of range.
    """

    capacity_steps: Count = setting(10_000, "steps kept")
    trade_quota: Share = setting(0.30, "share of the capacity that is protected for the newest trade steps")
    success_capacity: Count = setting(1_000, "steps kept in the success memory")
    success_reward_pips: Finite = setting(5.0, "reward above which a step counts as a success")
    success_share: Share = setting(0.10, "share of a batch drawn from the success memory")

    def __post_init__(self) -> None:
        """Check every range."""
        check_group("replay", self)


class Shaping(StrEnum):
    """Shaping of the rewards that are learned from (services/trainer/replay/targets.py)."""

    NONE = "none"
    UNREALISED = "unrealised"  # a position's gain is rewarded bar by bar, not at the exit


@dataclass(frozen=True)
class LearnerConfig:
    """The `[learner]` group.

    Raises:
        SettingsError: a value is out of range.
    """

    batch_size: Count = setting(64, "steps of an update")
    stretch_steps: Count = setting(1, "consecutive steps of a trajectory drawn and encoded together, L")
    unroll_steps: Count = setting(5, "steps unrolled through the model, K")
    n_step: Count = setting(10, "bars until a value target bootstraps")
    trace_floor: Share = setting(
        0.0, "bootstrap earlier, before an action to which the search gave less than this probability"
    )
    shaping: Shaping = setting(Shaping.NONE, "reward shaping")
    trade_margin: NonNegative = setting(0.0, "pips charged at an exit on top of its costs, in training only")
    precision: Precision = setting(
        Precision.FLOAT32, "precision of passes on the CPU; weights, losses and optimizer use float32"
    )
    cuda_precision: Precision = setting(Precision.AUTO, "precision of passes on CUDA; auto: bfloat16")
    learning_rate: Positive = setting(0.002, "learning rate of the first updates")
    constant_updates: Natural = setting(
        0, "updates after which the learning rate falls as 1/sqrt(updates); 0 keeps it constant"
    )
    weight_decay: NonNegative = setting(1e-5, "weight decay of the optimizer")
    average_decay: Annotated[float, Range(low=0.0, below=1.0)] = setting(
        0.0, "EMA decay per update of the weights used for acting; 0 disables the average"
    )
    average_share: Share = setting(0.0, "the EMA window covers at least this share of all updates so far")
    max_gradient_norm: Positive = setting(1.0, "gradients are clipped to this norm")
    policy_weight: NonNegative = setting(1.0, "weight of the policy loss")
    value_weight: NonNegative = setting(0.25, "weight of the value losses of states and afterstates")
    reward_weight: NonNegative = setting(1.0, "weight of the reward loss")
    outcome_weight: NonNegative = setting(1.0, "weight of the chance outcome loss")
    max_skipped_in_a_row: Count = setting(10, "non-finite updates in a row that cause a roll-back")

    def __post_init__(self) -> None:
        """Check every range."""
        check_group("learner", self)

    def learning_rate_at(self, updates: int) -> float:
        """Learning rate after `updates` updates: constant, then falling as 1/√updates."""
        if self.constant_updates == 0:
            return self.learning_rate
        return self.learning_rate * min(1.0, math.sqrt(self.constant_updates / max(updates, 1)))

    def average_decay_at(self, updates: int) -> float:
        """EMA decay after `updates` updates: constant, then rising towards 1."""
        window = max(self.average_share * (updates + 1), 1.0)
        return max(self.average_decay, 1.0 - 1.0 / window)

    def precision_on(self, device: str) -> Precision:
        """Precision of the passes on a kind of device: float32 or bfloat16."""
        if device == "cpu":
            return self.precision.resolved()
        return Precision.BFLOAT16 if self.cuda_precision is Precision.AUTO else self.cuda_precision


@dataclass(frozen=True)
class TrainerConfig:
    """The `[trainer]` group.

    Raises:
        SettingsError: a value is out of range.
    """

    hold_logit: Finite = setting(0.0, "logit by which version 0 prefers HOLD to every other action")
    seed: Natural = setting(0, "seed of the first weights, of sampling and of dropout")
    samples_per_insert: Positive = setting(0.5, "average number of draws of each inserted step")
    min_replay_steps: Count = setting(1_000, "steps in the replay before learning starts")
    max_ahead_episodes: Count = setting(
        16, "pause reading the stream at this many journalled episodes not yet learned from"
    )
    max_version_lag: Natural | None = setting(
        None, "most versions that a trajectory may be behind the newest; unset: no limit"
    )
    publish_every_episodes: Count = setting(50, "episodes between two published versions")
    keep_checkpoints: Count = setting(5, "newest versions that garbage collection keeps")
    segment_megabytes: Count = setting(64, "size of a journal segment")
    device: Device = setting(Device.AUTO, "device that trains the networks; auto uses CUDA if available")
    threads: Count = setting(1, "threads used by torch; runs are reproducible bit for bit only with 1")
    tensorboard: bool = setting(False, "write TensorBoard files beside the run's record")

    def __post_init__(self) -> None:
        """Check every range."""
        check_group("trainer", self)
