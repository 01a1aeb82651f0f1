import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kurtosis, skew

from shared.errors import DataError, ShapeError
from shared.metrics.equity import sharpe
from shared.metrics.honesty import (
    backtest_overfitting,
    deflated_sharpe,
    expected_best_sharpe,
    probabilistic_sharpe,
)
from tests.oracles import overfitting as oracle


def test_the_papers_deflated_sharpe() -> None:
    # Bailey and López de Prado 2014: SR 2.5 a year over 1250 days, 100 trials of variance 1/2 a year
    best = expected_best_sharpe(100, 0.5 / 250)
    assert best == pytest.approx(0.1132, abs=5e-5)
    assert probabilistic_sharpe(2.5 / 250**0.5, 1250, -3.0, 10.0, best) == pytest.approx(0.9004, abs=5e-5)


def test_expected_best_of_noise() -> None:
    rng = np.random.default_rng(0)
    best = rng.normal(0, 0.1, (4000, 50)).max(axis=1).mean()
    assert expected_best_sharpe(50, 0.01) == pytest.approx(best, rel=0.02)
    assert expected_best_sharpe(1, 0.01) == 0.0
    with pytest.raises(DataError, match="at least 1"):
        expected_best_sharpe(0, 0.01)


def test_probabilistic_sharpe_of_normal_returns_is_a_t_test() -> None:
    assert probabilistic_sharpe(0.0, 100, 0.0, 3.0) == pytest.approx(0.5)
    assert probabilistic_sharpe(0.1, 401, 0.0, 3.0) == pytest.approx(0.9766, abs=1e-3)  # Phi(2 / sqrt(1.005))
    assert probabilistic_sharpe(0.1, 1, 0.0, 3.0) is None


def test_deflated_sharpe_takes_skewness_and_kurtosis_of_the_returns() -> None:
    returns = np.random.default_rng(6).gamma(2.0, 0.01, 300) - 0.018
    own = sharpe(returns, periods_per_year=1)
    assert own is not None
    alone = probabilistic_sharpe(own, 300, float(skew(returns)), float(kurtosis(returns, fisher=False)))
    assert deflated_sharpe(returns, np.array([own])) == pytest.approx(alone)


def test_more_trials_deflate_more() -> None:
    returns = np.random.default_rng(1).normal(0.001, 0.01, 500)
    own = sharpe(returns, periods_per_year=1)
    assert own is not None
    others = np.random.default_rng(2).normal(0.0, 0.05, 200)
    chances = [deflated_sharpe(returns, np.append(others[:num], own)) for num in (0, 5, 50, 200)]
    assert chances == sorted(chances, reverse=True)  # type: ignore[type-var]
    assert deflated_sharpe(np.zeros(10), np.zeros(1)) is None


def test_the_best_of_many_random_strategies_rarely_passes() -> None:
    """Kill-list 25: of 200 searches over strategies without an edge no more than 5 % look real."""
    rng = np.random.default_rng(3)
    passed = 0
    for _ in range(200):
        trials = rng.normal(0.0, 0.01, (250, 50))
        ratios = trials.mean(axis=0) / trials.std(axis=0, ddof=1)
        chance = deflated_sharpe(trials[:, ratios.argmax()], ratios)
        assert chance is not None
        passed += chance >= 0.95
    assert passed <= 10


def test_overfitting_of_noise_and_of_an_edge() -> None:
    noise = [
        backtest_overfitting(np.random.default_rng(seed).normal(size=(320, 20)), num_blocks=10)
        for seed in range(20)
    ]
    assert np.mean(noise) == pytest.approx(0.5, abs=0.12)  # type: ignore[arg-type]
    edge = np.random.default_rng(1).normal(size=(320, 20))
    edge[:, 7] += 0.4
    assert backtest_overfitting(edge) == pytest.approx(0.0, abs=0.01)


@settings(max_examples=15)
@given(st.integers(0, 1000), st.integers(2, 6), st.integers(2, 5))
def test_overfitting_equals_the_oracle(seed: int, num_trials: int, length: int) -> None:
    returns = np.random.default_rng(seed).normal(0.1, 1.0, (6 * length, num_trials))
    assert backtest_overfitting(returns, num_blocks=6) == oracle.backtest_overfitting(returns, 6)


def test_a_trial_that_never_trades_has_ratio_zero() -> None:
    returns = np.random.default_rng(4).normal(-1.0, 0.5, (64, 2))
    returns[:, 1] = 0.0
    assert backtest_overfitting(returns, num_blocks=4) == 0.0  # flat beats losing, in and out of sample


def test_too_little_defines_no_overfitting() -> None:
    assert backtest_overfitting(np.zeros((100, 1))) is None
    assert backtest_overfitting(np.zeros((20, 3))) is None
    with pytest.raises(DataError, match="even"):
        backtest_overfitting(np.zeros((100, 2)), num_blocks=3)
    with pytest.raises(ShapeError):
        backtest_overfitting(np.zeros(100))
