"""The features benchmark."""

import pytest

import benchmarks.features
from benchmarks.features import bench_features
from shared.features.kernels import FIRST_VALID_BAR
from shared.features.window import temporal_features
from shared.market.bar import BarSeries
from shared.numeric import Float32


def test_the_goal_scales_with_the_number_of_bars() -> None:
    measurement = bench_features(5_000, repeats=2)
    assert measurement.value > 0.0
    assert measurement.yardstick_value > 0.0
    assert measurement.goal_value == pytest.approx(0.5 * 5_000 / 1_330_000)


def test_a_kernel_that_differs_from_pandas_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(bars: BarSeries) -> Float32:
        features = temporal_features(bars)
        features[FIRST_VALID_BAR + 7, 2] += 0.001
        return features

    monkeypatch.setattr(benchmarks.features, "temporal_features", wrong)
    with pytest.raises(AssertionError, match="Not equal"):
        bench_features(1_000, repeats=1)
