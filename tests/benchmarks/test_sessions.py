"""The session benchmark."""

import numpy as np
import pytest

import benchmarks.sessions
from benchmarks.sessions import bench_sessions
from shared.market.bar import BarSeries
from shared.market.session import SessionConfig
from shared.numeric import Int64


def test_index_and_yardstick_find_the_same_sessions() -> None:
    measurement = bench_sessions(20_000, repeats=1)  # raises if the sessions differ
    assert measurement.ratio == measurement.yardstick_value / measurement.value
    assert measurement.goal_value == pytest.approx(0.1 * 20_000 / 1_330_000)


def test_an_index_with_other_sessions_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(bars: BarSeries, config: SessionConfig) -> Int64:
        return np.zeros(0, np.int64)

    monkeypatch.setattr(benchmarks.sessions, "windowed_starts", none)
    with pytest.raises(AssertionError, match="different sessions"):
        bench_sessions(2_000, repeats=1)
