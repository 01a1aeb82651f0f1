"""The learner benchmark at small sizes."""

from dataclasses import replace

import pytest

from benchmarks.learner import PARTS, LearnerSpeed, bench_learner
from services.trainer.config import LearnerConfig, ReplayConfig, TrainerConfig
from services.trainer.training import TrainingConfig
from shared.engine.precision import Precision
from shared.model.config import ModelConfig

SMALL = TrainingConfig(
    ModelConfig(temporal_channels=12, static_channels=4, value_bins=31),
    ReplayConfig(),
    LearnerConfig(batch_size=8, unroll_steps=2),
    TrainerConfig(),
    discount=0.997,
)
#: Of 8 steps 4 come from the success memory; the others are rounded up to a stretch of 5.
STRETCHES = replace(
    SMALL,
    replay=ReplayConfig(success_share=0.5, success_reward_pips=1.0),
    learner=replace(SMALL.learner, stretch_steps=5, precision=Precision.BFLOAT16),
)


def test_learner_and_passes_are_measured() -> None:
    speed = bench_learner(SMALL, seconds=0.0)
    updates, steps = speed.measurements
    assert updates.name == "batch 8, unroll 2, float32"
    assert updates.goal == "ratio ≥ 0.6"
    assert (steps.unit, steps.goal) == ("steps/s", None)
    assert (steps.value, steps.yardstick_value) == pytest.approx(
        (8 * updates.value, 8 * updates.yardstick_value)
    )
    assert 0.0 < updates.ratio == pytest.approx(steps.ratio)


def test_steps_per_second_count_the_sampled_steps() -> None:
    speed = bench_learner(STRETCHES, seconds=0.0)
    assert speed.batch_steps == 9.0
    updates, steps = speed.measurements
    assert updates.name == "batch 8, stretches of 5, unroll 2, bfloat16"
    assert steps.name == "steps drawn and learned from, 9.0 a batch"
    assert steps.value == pytest.approx(9 * updates.value)


def test_the_shares_of_an_update_are_complete() -> None:
    speed = bench_learner(SMALL, seconds=0.0)
    assert tuple(speed.shares) == (*PARTS, "the rest")
    assert sum(speed.shares.values()) == pytest.approx(1.0)
    assert all(share > 0.0 for share in speed.shares.values())


def test_updates_per_second_are_for_batches_of_average_size() -> None:
    speed = LearnerSpeed(LearnerConfig(), Precision.FLOAT32, 50.0, 1_000.0, 2_000.0, {})
    assert speed.updates_per_second == 20.0
    assert [row.ratio for row in speed.measurements] == [0.5, 0.5]
