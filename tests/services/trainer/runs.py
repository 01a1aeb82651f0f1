"""A small training run for tests: a tiny network, random bars' features, random trajectories."""

from collections.abc import Sequence

import numpy as np

from services.trainer.config import LearnerConfig, ReplayConfig, TrainerConfig
from services.trainer.training import Training, TrainingConfig
from shared.agent.trajectory import Trajectory
from shared.model.config import ModelConfig
from shared.numeric import Float32
from tests.shared.messages.trajectories import FINGERPRINT, random_trajectory

NUM_BARS = 600
STEPS = 40

CONFIG = TrainingConfig(
    model=ModelConfig(temporal_channels=12, static_channels=4, value_bins=31, value_bound_pips=60.0),
    replay=ReplayConfig(capacity_steps=200, success_capacity=20),
    learner=LearnerConfig(batch_size=16, unroll_steps=3),
    trainer=TrainerConfig(samples_per_insert=1.0, min_replay_steps=60),
    discount=0.997,
)


def features() -> Float32:
    """Random rows without missing values."""
    return np.random.default_rng(0).normal(size=(NUM_BARS, 9)).astype(np.float32)


def trajectories(count: int) -> list[Trajectory]:
    """Different trajectories, all within the bars."""
    return [
        random_trajectory(seed, STEPS, start_bar=160 + 7 * seed % (NUM_BARS - STEPS - 160))
        for seed in range(count)
    ]


def new_training(config: TrainingConfig = CONFIG) -> Training:
    """A new run."""
    return Training(config, features(), FINGERPRINT)


def advance(training: Training, journal: Sequence[Trajectory], updates: int) -> list[float]:
    """Continue with a journal until some more updates were tried; returns their losses."""
    losses: list[float] = []
    while len(losses) < updates:
        if training.may_update:
            losses.append(training.update().loss)
        else:
            training.insert(journal[training.position])
    return losses
