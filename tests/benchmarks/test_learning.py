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
    assert speed.share_of_bound > 0.0
    assert speed.share_of_bound == pytest.approx(speed.updates_per_second / speed.bound_per_second)


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
    assert speed.share_of_bound > 0.0


def test_stream() -> None:
    speed = bench_stream(32)
    assert speed.count == 32
    assert 15_000 < speed.entry_bytes < 25_000
    assert min(speed.append_share, speed.consume_share, speed.journal_per_second) > 0.0
