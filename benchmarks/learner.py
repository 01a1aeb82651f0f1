"""Updates per second of the learner, compared with its forward and backward passes alone.

The yardstick runs the networks over the unroll of one batch in the precision of the learner and
backpropagates constant gradients. It has no sampling, windows, losses, clipping, optimizer or statistics. The
number of steps in a batch of stretches varies, so both are measured in steps per second.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import ParamSpec, TypeVar
from unittest.mock import patch
from uuid import UUID

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Measurement
from services.trainer.config import LearnerConfig
from services.trainer.learning.losses import Batch, unroll
from services.trainer.training import Training, TrainingConfig
from shared.agent.trajectory import Trajectory
from shared.engine.precision import Precision
from shared.environment.action import LEGAL
from shared.environment.outcome import NUM_OUTCOMES
from shared.environment.position import NUM_STATIC
from shared.features.kernels import NUM_FEATURES
from shared.features.window import FIRST_WINDOW_BAR
from shared.market.session import SESSION_BARS
from shared.numeric import Bool, Float32
from shared.runtime.allocator import keep_freed_memory

#: The goal in docs/benchmarks.md.
GOAL_SHARE = 0.6

NUM_BARS = 5_000
NUM_TRAJECTORIES = 30


#: The parts of an update. The rest is losses, tensors and statistics.
PARTS = ("drawing", "views", "forward", "backward", "optimizer")

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True)
class LearnerSpeed:
    """The fastest repetition."""

    config: LearnerConfig
    precision: Precision
    batch_steps: float  # mean steps per batch
    steps_per_second: float
    bound_steps_per_second: float  # rate of forward and backward passes alone
    shares: dict[str, float]  # share of the time of an update, by part

    @property
    def updates_per_second(self) -> float:
        """Updates per second for batches of average size."""
        return self.steps_per_second / self.batch_steps

    @property
    def measurements(self) -> list[Measurement]:
        """The speed in updates and in steps."""
        config = self.config
        stretches = f"stretches of {config.stretch_steps}, " if config.stretch_steps > 1 else ""
        updates = Measurement(
            name=f"batch {config.batch_size}, {stretches}unroll {config.unroll_steps}, {self.precision}",
            value=self.updates_per_second,
            unit="updates/s",
            yardstick="forward and backward passes alone",
            yardstick_value=self.bound_steps_per_second / self.batch_steps,
            smaller_is_better=False,
            goal_ratio=GOAL_SHARE,
        )
        steps = replace(
            updates,
            name=f"steps drawn and learned from, {self.batch_steps:.1f} a batch",
            value=self.steps_per_second,
            unit="steps/s",
            yardstick_value=self.bound_steps_per_second,
            goal_ratio=None,
        )
        return [updates, steps]


def bench_learner(config: TrainingConfig, *, seconds: float = 10.0) -> LearnerSpeed:
    """Measure learner and yardstick on random steps, then the parts of an update.

    Args:
        config: settings of the run; its seed determines weights and steps.
        seconds: minimum duration of each of the two measurements.
    """
    keep_freed_memory()  # like the trainer
    training = _filled(config)
    batches: list[int] = []

    def update() -> int:
        training.update()
        batches.append(training.pacing.drawn_last)
        return batches[-1]

    full, alone = _most_per_second((update, _passes(training)), repeats=3, seconds=seconds)
    return LearnerSpeed(
        config.learner,
        training.learner.precision,
        batch_steps=sum(batches) / len(batches),
        steps_per_second=full,
        bound_steps_per_second=alone,
        shares=_shares(training, seconds),
    )


def _filled(config: TrainingConfig) -> Training:
    """A run with a replay of random steps."""
    rng = np.random.default_rng(config.trainer.seed)
    features = rng.normal(size=(NUM_BARS, NUM_FEATURES)).astype(np.float32)
    training = Training(config, features, "0" * 64)
    for number in range(NUM_TRAJECTORIES):
        training.insert(random_trajectory(rng, number))
    return training


def random_trajectory(rng: np.random.Generator, number: int) -> Trajectory:
    """A session of random numbers of realistic size and random legal actions."""

    def distributions(allowed: Bool) -> Float32:
        gamma = rng.standard_gamma(1.0, allowed.shape) * allowed
        shares: Float32 = (gamma / gamma.sum(axis=1, keepdims=True)).astype(np.float32)
        return shares

    sides = rng.integers(-1, 2, SESSION_BARS)
    legal = LEGAL[sides + 1]
    static = np.tanh(rng.normal(size=(SESSION_BARS, NUM_STATIC)))
    static[:, 0] = sides
    return Trajectory(
        trajectory_id=UUID(bytes=rng.bytes(16)),
        worker="benchmark",
        checkpoint_version=0,
        dataset="0" * 64,
        start_bar=int(rng.integers(FIRST_WINDOW_BAR, NUM_BARS - SESSION_BARS)),
        seed=number,
        static=static.astype(np.float32),
        actions=(rng.random(legal.shape) * legal).argmax(axis=1).astype(np.int8),
        rewards=(10.0 * rng.normal(size=SESSION_BARS)).astype(np.float32),
        policies=distributions(legal),
        values=(20.0 * rng.normal(size=SESSION_BARS)).astype(np.float32),
        outcomes=rng.integers(NUM_OUTCOMES, size=SESSION_BARS).astype(np.int8),
        outcome_probabilities=distributions(np.ones((SESSION_BARS, NUM_OUTCOMES), np.bool_)),
        trades=(),
    )


def _passes(training: Training) -> Callable[[], int]:
    """Forward and backward passes of one batch with constant gradients; returns its number of steps."""
    learner, config = training.learner, training.config.learner
    steps = training.replay.sample(learner.generator(), config.batch_size, config.stretch_steps)
    batch = Batch.of(steps, training.views(steps), learner.device)

    def forward() -> list[Tensor]:
        with torch.autocast(
            learner.device.type, torch.bfloat16, enabled=learner.precision is Precision.BFLOAT16
        ):
            return list(vars(unroll(learner.network, batch)).values())

    gradients = [torch.ones_like(output) for output in forward()]

    def run() -> int:
        learner.network.zero_grad(set_to_none=True)
        torch.autograd.backward(forward(), gradients)
        _wait(learner.device)
        return len(steps)

    return run


def _most_per_second(functions: Sequence[Callable[[], int]], *, repeats: int, seconds: float) -> list[float]:
    """The highest rate of each function; like `measure.quickest` for work of varying size.

    Args:
        functions: each returns its amount of work, and is called once before the measurement.
        repeats: minimum number of rounds.
        seconds: minimum duration of the measurement.
    """
    for function in functions:
        function()
    most = [0.0] * len(functions)
    end = perf_counter() + seconds
    while repeats > 0 or perf_counter() < end:
        for index, function in enumerate(functions):
            begin = perf_counter()
            done = function()
            most[index] = max(most[index], done / (perf_counter() - begin))
        repeats -= 1
    return most


def _shares(training: Training, seconds: float) -> dict[str, float]:
    """The share of each part in the time of an update."""
    learner = training.learner
    spent = dict.fromkeys(PARTS, 0.0)

    def timed(part: str, function: Callable[_P, _R]) -> Callable[_P, _R]:
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            _wait(learner.device)
            begin = perf_counter()
            result = function(*args, **kwargs)
            _wait(learner.device)
            spent[part] += perf_counter() - begin
            return result

        return run

    optimizer, utils = learner._optimizer, torch.nn.utils  # the learner has no public hook for timing
    with (
        patch.object(training.replay, "sample", timed("drawing", training.replay.sample)),
        patch.object(training, "views", timed("views", training.views)),
        patch.object(learner, "_unroll", timed("forward", learner._unroll)),
        patch.object(Tensor, "backward", timed("backward", Tensor.backward)),
        patch.object(utils, "clip_grad_norm_", timed("optimizer", utils.clip_grad_norm_)),
        patch.object(optimizer, "step", timed("optimizer", optimizer.step)),
    ):
        begin, updates = perf_counter(), 0
        while updates < 3 or perf_counter() - begin < seconds:
            training.update()
            updates += 1
        total = perf_counter() - begin
    shares = {part: time / total for part, time in spent.items()}
    return {**shares, "the rest": 1.0 - sum(shares.values())}


def _wait(device: torch.device) -> None:
    """Wait until the device has finished; a CPU needs no wait."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
