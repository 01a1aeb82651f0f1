import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.validator.report import overfitting_of
from shared.errors import DataError, ShapeError
from shared.metrics.overfitting import backtest_overfitting
from tests.oracles import overfitting as oracle


def test_noise_is_overfitted_half_the_time_and_an_edge_never() -> None:
    noise = [
        backtest_overfitting(np.random.default_rng(seed).normal(size=(320, 20)), num_blocks=10)
        for seed in range(20)
    ]
    assert np.mean([found.probability for found in noise]) == pytest.approx(0.5, abs=0.12)
    assert np.mean([found.probability_of_loss for found in noise]) == pytest.approx(0.5, abs=0.12)
    edge = np.random.default_rng(1).normal(size=(320, 20))
    edge[:, 7] += 0.6
    found = backtest_overfitting(edge)
    assert found.probability == pytest.approx(0.0, abs=0.01)
    assert found.probability_of_loss == pytest.approx(0.0, abs=0.01)
    assert (found.num_trials, found.num_days, found.num_blocks, found.reason) == (20, 320, 16, None)


@settings(max_examples=15)
@given(st.integers(0, 1000), st.integers(10, 14), st.integers(2, 5))
def test_overfitting_equals_the_oracle(seed: int, num_trials: int, length: int) -> None:
    returns = np.random.default_rng(seed).normal(0.1, 1.0, (6 * length, num_trials))
    found = backtest_overfitting(returns, num_blocks=6)
    chance, slope, loss = oracle.backtest_overfitting(returns, 6)
    assert (found.probability, found.probability_of_loss) == (chance, loss)
    assert found.degradation_slope == pytest.approx(slope)


def test_ruinous_and_flat_versions_do_not_make_a_choice_among_noise_look_good() -> None:
    """Regression: with 20 ruinous versions, any choice from 20 noise versions ranked well (probability 0)."""
    found = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        noise = rng.normal(0.0, 16.0, (140, 20))
        ruinous, flat = rng.normal(-200.0, 100.0, (140, 20)), np.zeros((140, 20))
        others = np.column_stack([ruinous, flat, noise[:, 1:]])
        found.append(overfitting_of(noise[:, 0], others))
    assert 0.4 <= np.mean([of.probability for of in found if of.probability is not None]) <= 0.6
    assert all(of.num_trials <= 20 for of in found)


def test_few_days_are_cut_into_fewer_blocks() -> None:
    few = backtest_overfitting(np.random.default_rng(0).normal(size=(40, 12)))
    assert (few.num_blocks, few.num_days) == (8, 40)
    assert few.probability is not None


def test_overfitting_of_too_few_trials_or_days_is_undefined() -> None:
    assert backtest_overfitting(np.zeros((100, 9))).reason == "9 candidates: fewer than 10"
    assert backtest_overfitting(np.zeros((15, 12))).reason == "15 days: fewer than 16"
    assert backtest_overfitting(np.zeros((15, 12))).probability is None
    with pytest.raises(DataError, match="even"):
        backtest_overfitting(np.zeros((100, 12)), num_blocks=3)
    with pytest.raises(ShapeError):
        backtest_overfitting(np.zeros(100))
