"""The benchmarks of learner, self-play and stream measure what they say, on small sizes."""

import pytest

from benchmarks.learner import bench_learner
from benchmarks.selfplay import bench_selfplay
from benchmarks.stream import bench_stream
from services.selfplay.config import SelfPlayConfig
from services.trainer.config import LearnerConfig
from shared.environment.environment import EnvironmentConfig
from shared.model.config import ModelConfig

SMALL = ModelConfig(temporal_channels=12, static_channels=4, value_bins=31)


def test_learner() -> None:
    speed = bench_learner(model=SMALL, learner=LearnerConfig(batch_size=8, unroll_steps=2), seconds=0.0)
    assert (speed.batch_size, speed.unroll_steps) == (8, 2)
    (row,) = speed.measurements
    assert row.ratio == pytest.approx(speed.updates_per_second / speed.bound_per_second)
    assert row.goal == "ratio ≥ 0.6"


def test_selfplay() -> None:
    speed = bench_selfplay(
        model=SMALL,
        selfplay=SelfPlayConfig(lanes=2),
        environment=EnvironmentConfig(session_bars=10),
        seconds=0.0,
    )
    assert (speed.lanes, speed.simulations) == (2, 5)
    assert speed.episodes_per_hour == pytest.approx(3600 * speed.steps_per_second / 10)
    assert 0.0 < speed.embedding_share < 1.0
    playing, serialising = speed.measurements
    assert playing.ratio == pytest.approx(speed.steps_per_second / speed.bound_steps_per_second)
    assert serialising.ratio == pytest.approx(1.0 / speed.serialising_share)


def test_stream() -> None:
    speed = bench_stream(32)
    assert speed.count == 32
    assert 15_000 < speed.entry_bytes < 25_000
    appended, consumed, journalled = speed.measurements
    assert appended.ratio == pytest.approx(speed.append_per_second / speed.raw_append_per_second)
    assert consumed.ratio == pytest.approx(speed.consume_per_second / speed.raw_consume_per_second)
    assert journalled.value > 0.0
