"""The benchmarks of learner and stream measure what they say, on small sizes."""

import pytest

from benchmarks.learner import bench_learner
from benchmarks.stream import bench_stream
from services.trainer.config import LearnerConfig
from shared.model.config import ModelConfig

SMALL = ModelConfig(temporal_channels=12, static_channels=4, value_bins=31)


def test_learner() -> None:
    speed = bench_learner(model=SMALL, learner=LearnerConfig(batch_size=8, unroll_steps=2), seconds=0.0)
    assert (speed.batch_size, speed.unroll_steps) == (8, 2)
    (row,) = speed.measurements
    assert row.ratio == pytest.approx(speed.updates_per_second / speed.bound_per_second)
    assert row.goal == "ratio ≥ 0.6"


def test_stream() -> None:
    speed = bench_stream(32)
    assert speed.count == 32
    assert 15_000 < speed.entry_bytes < 25_000
    appended, consumed, journalled = speed.measurements
    assert appended.ratio == pytest.approx(speed.append_per_second / speed.raw_append_per_second)
    assert consumed.ratio == pytest.approx(speed.consume_per_second / speed.raw_consume_per_second)
    assert journalled.value > 0.0
