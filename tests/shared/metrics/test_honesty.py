import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kurtosis, skew

from shared.errors import DataError
from shared.metrics.equity import sharpe
from shared.metrics.honesty import (
    Trials,
    count_trials,
    expected_best_sharpe,
    honesty,
    probabilistic_sharpe,
    sharpe_variance,
)


def deflated(daily: np.ndarray, others: np.ndarray) -> float:
    chance = honesty(daily, others).deflated_sharpe
    assert chance is not None
    return chance


def edge(seed: int = 0, num_days: int = 140, annual: float = 5.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(annual / 252**0.5, 1.0, num_days) * 16.0


def noise(seed: int, num_versions: int, num_days: int = 140) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 16.0, (num_days, num_versions))


def test_deflated_sharpe_of_the_papers_example() -> None:
    # Bailey and López de Prado 2014: SR 2.5 a year over 1250 days, 100 trials of variance 1/2 a year
    best = expected_best_sharpe(100, 0.5 / 250)
    assert best == pytest.approx(0.1132, abs=5e-5)
    ratio = 2.5 / 250**0.5
    variance = sharpe_variance(ratio, 1250, -3.0, 10.0)
    assert probabilistic_sharpe(ratio, variance, best) == pytest.approx(0.9004, abs=5e-5)


def test_expected_best_ratio_equals_that_of_simulated_noise() -> None:
    rng = np.random.default_rng(0)
    best = rng.normal(0, 0.1, (4000, 50)).max(axis=1).mean()
    assert expected_best_sharpe(50, 0.01) == pytest.approx(best, rel=0.02)
    assert expected_best_sharpe(1, 0.01) == 0.0
    assert 0.0 <= expected_best_sharpe(1.5, 0.01) <= expected_best_sharpe(2, 0.01)
    with pytest.raises(DataError, match="at least 1"):
        expected_best_sharpe(0, 0.01)


def test_variance_of_a_single_version_agrees_with_scipy() -> None:
    daily = 0.018 - np.random.default_rng(6).gamma(2.0, 0.008, 300)  # a negative skew raises the variance
    result, ratio = honesty(daily), sharpe(daily, periods_per_year=1)
    assert ratio is not None
    g3, g4 = float(skew(daily)), float(kurtosis(daily, fisher=False))
    assert result.null_variance == pytest.approx((1 - g3 * ratio + (g4 - 1) / 4 * ratio**2) / 299)
    assert result.null_variance is not None
    assert result.null_variance > 1 / 299
    assert result.probabilistic_sharpe == result.deflated_sharpe  # nothing was selected
    assert (result.trials.num_tried, result.trials.num_counted, result.trials.effective) == (1, 1, 1.0)


def test_two_ruinous_versions_hardly_change_the_deflated_ratio() -> None:
    """Regression: the variance among versions counted as luck, and the gate was out of reach."""
    rng = np.random.default_rng(9)
    for seed in range(5):
        daily, others = edge(seed), noise(seed + 50, 20)
        ruinous = rng.normal(-200.0, 100.0, (140, 2))
        before, after = deflated(daily, others), deflated(daily, np.column_stack([others, ruinous]))
        assert after == pytest.approx(before, abs=0.02)


def test_versions_without_a_trade_do_not_change_the_deflated_ratio() -> None:
    """Regression: 300 of them made the variance among versions small, and noise passed the gate."""
    for seed in range(5):
        daily, others = edge(seed), noise(seed + 50, 20)
        with_flat = np.column_stack([others, np.zeros((140, 300))])
        assert deflated(daily, with_flat) == pytest.approx(deflated(daily, others), abs=1e-12)
    result = honesty(edge(), np.zeros((140, 300)))
    assert (result.trials.num_tried, result.trials.num_counted) == (301, 1)


@given(st.integers(0, 100), st.floats(0.0, 1.0), st.integers(2, 60))
def test_the_effective_number_follows_the_correlation(seed: int, rho: float, num: int) -> None:
    shared, own = noise(seed, 1, 2000), noise(seed + 1000, num, 2000)
    versions = np.sqrt(rho) * shared + np.sqrt(1 - rho) * own
    trials = count_trials(versions[:, 0], versions[:, 1:])
    assert 1.0 <= trials.effective <= trials.num_counted <= num
    expected = 1 + (1 - rho) * (trials.num_counted - 1)
    assert trials.effective == pytest.approx(expected, rel=0.12, abs=0.2)


def test_copies_of_one_version_count_as_one_trial() -> None:
    daily = edge()
    assert deflated(daily, np.repeat(daily[:, None], 50, axis=1)) == pytest.approx(
        deflated(daily, np.zeros((140, 0))), abs=1e-6
    )


def test_more_trials_deflate_more() -> None:
    daily, others = edge(annual=3.0), noise(2, 200)
    chances = [deflated(daily, others[:, :num]) for num in (0, 5, 50, 200)]
    assert chances == sorted(chances, reverse=True)
    assert chances[-1] < chances[0] - 0.1


def test_versions_validated_on_some_of_the_days_count_too() -> None:
    daily, others = edge(), noise(3, 8)
    others[:70] = np.nan  # a data set that grew
    others[:, 7] = np.nan  # validated on none of these days
    trials = count_trials(daily, others)
    assert (trials.num_tried, trials.num_counted) == (8, 8)
    assert trials.effective > 5.0


def test_versions_without_results_count_as_much_as_those_with_results() -> None:
    """Of 300 independent versions, the results of all, of 30 or of none are available."""
    daily, others = edge(), noise(3, 300)
    some, all_of_them = count_trials(daily, others[:, :30], 270), count_trials(daily, others)
    assert some.num_tried == all_of_them.num_tried == 301
    assert some.effective == pytest.approx(all_of_them.effective, rel=0.05)
    assert count_trials(daily, others[:, :0], 300) == Trials(301, 301, 301.0)
    assert honesty(daily, others[:, :30], 270).adjusted_p_value == pytest.approx(
        honesty(daily, others).adjusted_p_value, rel=0.1
    )


def test_a_few_lucky_trades_do_not_pass() -> None:
    """Regression: six trades in 172 days had a ratio of 0.99998; their skewness made its variance small."""
    daily = np.zeros(172)
    daily[::30] = (5.0, -3.0, 4.0, 6.0, 2.0, 1.0)
    result = honesty(daily)
    assert result.deflated_sharpe is not None
    assert result.deflated_sharpe < 0.95
    assert result.p_value is not None
    assert result.p_value > 0.05


def test_the_minimum_track_record_is_the_shortest_that_suffices() -> None:
    daily, others = edge(1, annual=2.0), noise(4, 10)
    result = honesty(daily, others)
    assert result.deflated_sharpe is not None
    assert result.deflated_sharpe < 0.95
    days = result.min_track_record_days
    assert days is not None
    ratio = sharpe(daily, periods_per_year=1)
    assert ratio is not None
    assert result.null_variance is not None

    def after(num: int) -> float:
        variance = result.null_variance * 139 / (num - 1)  # type: ignore[operator]
        return probabilistic_sharpe(ratio, variance, expected_best_sharpe(result.trials.effective, variance))

    assert after(days) >= 0.95 > after(days - 1)
    assert honesty(-daily).min_track_record_days is None


@pytest.mark.parametrize(
    "daily", [[6.0, -6.0] * 30 + [1e-12], [1.0, -1.0, 1e-300], [1.0, -1.0] * 500 + [1e-3]]
)
def test_a_ratio_that_is_zero_up_to_rounding_has_no_track_record(daily: list[float]) -> None:
    """Regression: the minimum track record was 10^29 days, or its computation raised an OverflowError."""
    result = honesty(np.array(daily))
    assert result.min_track_record_days is None
    reason = "the Sharpe ratio is not above 0, or a century is too short"
    assert result.undefined()["min_track_record_days"] == reason


def test_undefined_numbers_have_a_reason() -> None:
    assert honesty(np.zeros(10)).reason == "all daily results are equal"
    assert honesty(np.zeros(1)).reason == "1 day: fewer than 2"
    assert honesty(np.zeros(0)).undefined()["p_value"] == "no days: the trades have no times"
    flat = honesty(np.zeros(10), noise(0, 3, 10))
    assert flat.deflated_sharpe is None
    assert flat.p_value is None


def test_the_best_of_many_random_strategies_passes_rarely() -> None:
    """At most 5 % of 200 searches over strategies without an edge reach a deflated ratio of 0.95."""
    rng = np.random.default_rng(3)
    passed = 0
    for _ in range(200):
        trials = rng.normal(0.0, 0.01, (250, 50))
        best = (trials.mean(axis=0) / trials.std(axis=0)).argmax()
        passed += deflated(trials[:, best], np.delete(trials, best, axis=1)) >= 0.95
    assert passed <= 10
