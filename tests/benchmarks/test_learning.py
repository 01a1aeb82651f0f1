"""The benchmark of the learner measures what it says, on small sizes."""

import pytest

from benchmarks.learner import bench_learner
from services.trainer.config import LearnerConfig
from shared.model.config import ModelConfig

SMALL = ModelConfig(temporal_channels=12, static_channels=4, value_bins=31)


def test_learner() -> None:
    speed = bench_learner(model=SMALL, learner=LearnerConfig(batch_size=8, unroll_steps=2), seconds=0.0)
    assert (speed.batch_size, speed.unroll_steps) == (8, 2)
    (row,) = speed.measurements
    assert row.ratio == pytest.approx(speed.updates_per_second / speed.bound_per_second)
    assert row.goal == "ratio ≥ 0.6"
