"""Updates per second of the learner, against its forward and backward passes alone.

The yardstick runs the networks over one batch's unroll and sends fixed gradients back: no drawing, no
windows, no losses, no clipping, no optimizer, no statistics.
"""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Measurement, quickest
from services.trainer.config import LearnerConfig, ReplayConfig, TrainerConfig
from services.trainer.losses import Batch, unroll
from services.trainer.training import Training, TrainingConfig
from shared.agent.trajectory import Trajectory
from shared.environment.action import NUM_ACTIONS
from shared.environment.outcome import NUM_OUTCOMES
from shared.environment.position import NUM_STATIC
from shared.features.kernels import NUM_FEATURES
from shared.features.window import FIRST_WINDOW_BAR
from shared.market.session import SESSION_BARS
from shared.model.config import ModelConfig
from shared.search.config import SearchConfig

#: The goal in docs/benchmarks.md.
GOAL_SHARE = 0.6

NUM_BARS = 5_000
NUM_TRAJECTORIES = 30


@dataclass(frozen=True)
class LearnerSpeed:
    """Of the quickest repetition, the one that was disturbed least."""

    batch_size: int
    unroll_steps: int
    updates_per_second: float
    bound_per_second: float  # of forward and backward passes alone

    @property
    def measurements(self) -> list[Measurement]:
        """As a row."""
        return [
            Measurement(
                name=f"learner, batch {self.batch_size}, unroll {self.unroll_steps}",
                value=self.updates_per_second,
                unit="updates/s",
                yardstick="forward and backward passes alone",
                yardstick_value=self.bound_per_second,
                smaller_is_better=False,
                goal_ratio=GOAL_SHARE,
            )
        ]


def bench_learner(
    *,
    model: ModelConfig | None = None,
    learner: LearnerConfig | None = None,
    seconds: float = 10.0,
    seed: int = 0,
) -> LearnerSpeed:
    """Measure both on random steps.

    Args:
        model: sizes; the reference's where not given.
        learner: batch size, unroll and the rest.
        seconds: to measure for, at least.
        seed: of weights and steps.
    """
    training = _filled(model or ModelConfig(), learner or LearnerConfig(), seed)
    whole, alone = quickest((training.update, _passes(training)), repeats=3, seconds=seconds)
    config = training.config.learner
    return LearnerSpeed(config.batch_size, config.unroll_steps, 1.0 / whole, 1.0 / alone)


def _filled(model: ModelConfig, learner: LearnerConfig, seed: int) -> Training:
    """A run with a full replay of random steps."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(NUM_BARS, NUM_FEATURES)).astype(np.float32)
    config = TrainingConfig(model, ReplayConfig(), learner, TrainerConfig(seed=seed), SearchConfig().discount)
    training = Training(config, features, "0" * 64)
    for number in range(NUM_TRAJECTORIES):
        training.insert(random_trajectory(rng, number))
    return training


def random_trajectory(rng: np.random.Generator, number: int) -> Trajectory:
    """A session's worth of random numbers, of the size that real ones have."""

    def distributions(columns: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return rng.dirichlet(np.ones(columns), SESSION_BARS).astype(np.float32)

    return Trajectory(
        trajectory_id=UUID(bytes=rng.bytes(16)),
        worker="benchmark",
        checkpoint_version=0,
        dataset="0" * 64,
        start_bar=int(rng.integers(FIRST_WINDOW_BAR, NUM_BARS - SESSION_BARS)),
        seed=number,
        static=rng.normal(size=(SESSION_BARS, NUM_STATIC)).astype(np.float32),
        actions=rng.integers(NUM_ACTIONS, size=SESSION_BARS).astype(np.int8),
        rewards=(10.0 * rng.normal(size=SESSION_BARS)).astype(np.float32),
        policies=distributions(NUM_ACTIONS),
        values=(20.0 * rng.normal(size=SESSION_BARS)).astype(np.float32),
        outcomes=rng.integers(NUM_OUTCOMES, size=SESSION_BARS).astype(np.int8),
        outcome_probabilities=distributions(NUM_OUTCOMES),
        trades=(),
    )


def _passes(training: Training) -> Callable[[], object]:
    """Forward and backward of one batch, with gradients that cost nothing to find."""
    learner = training.learner
    steps = training.replay.sample(learner.generator(), training.config.learner.batch_size)
    batch = Batch.of(steps, training.views(steps), learner.device)
    gradients: list[Tensor] = [
        torch.ones_like(output) for output in vars(unroll(learner.network, batch)).values()
    ]

    def run() -> None:
        learner.network.zero_grad(set_to_none=True)
        torch.autograd.backward(list(vars(unroll(learner.network, batch)).values()), gradients)

    return run
