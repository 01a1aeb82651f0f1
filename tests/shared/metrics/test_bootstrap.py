import numba
import numpy as np
import pytest
from arch.bootstrap import optimal_block_length as arch_block_length
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from scipy.stats._resampling import bootstrap

from shared.errors import DataError
from shared.metrics.bootstrap import optimal_block_length, resample, trade_intervals
from shared.metrics.trades import SQN_CAP, profit_factor, r_multiples, sqn


def autoregressive(num: int, coefficient: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=num)
    series = np.zeros(num)
    for t in range(1, num):
        series[t] = coefficient * series[t - 1] + noise[t]
    return series


def test_every_value_is_drawn_equally_often() -> None:
    drawn = resample(np.arange(10.0), num_runs=200, num_steps=100, seed=3)
    counts = np.bincount(drawn.astype(int).ravel(), minlength=10)
    assert chisquare(counts).pvalue > 1e-3
    later, earlier = drawn[:, 1:].ravel(), drawn[:, :-1].ravel()
    assert abs(np.corrcoef(later, earlier)[0, 1]) < 0.03


def test_blocks_have_geometric_length_and_wrap_around() -> None:
    drawn = resample(np.arange(1000.0), num_runs=50, num_steps=2000, seed=4, mean_block=8.0).astype(int)
    follows = (drawn[:, :-1] + 1) % 1000 == drawn[:, 1:]
    assert follows.mean() == pytest.approx(7.0 / 8.0, abs=0.01)
    assert ((drawn[:, :-1] == 999) & (drawn[:, 1:] == 0)).any()
    ends = np.flatnonzero(~follows.ravel())
    lengths = np.diff(ends)
    assert lengths.mean() == pytest.approx(8.0, rel=0.05)
    assert (lengths == 1).mean() == pytest.approx(1.0 / 8.0, abs=0.015)


@given(st.integers(1, 50), st.integers(0, 2**31), st.floats(1.0, 20.0))
def test_only_given_values_are_drawn_and_the_seed_determines_them(
    num: int, seed: int, mean_block: float
) -> None:
    values = np.random.default_rng(num).normal(size=num)
    once, again = (
        resample(values, num_runs=5, num_steps=40, seed=seed, mean_block=mean_block) for _ in range(2)
    )
    assert np.isin(once, values).all()
    assert np.array_equal(once, again)
    assert np.array_equal(
        once[:3], resample(values, num_runs=3, num_steps=40, seed=seed, mean_block=mean_block)
    )


def test_runs_do_not_depend_on_the_number_of_threads() -> None:
    values = np.random.default_rng(0).normal(size=100)
    wide = resample(values, num_runs=64, num_steps=50, seed=9, mean_block=5.0)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        assert np.array_equal(wide, resample(values, num_runs=64, num_steps=50, seed=9, mean_block=5.0))
    finally:
        numba.set_num_threads(threads)


def test_resampling_no_values_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to resample"):
        resample(np.zeros(0), num_runs=1, num_steps=1, seed=0)


def test_block_length_of_an_autoregressive_series() -> None:
    # In theory (2 phi / (1 - phi^2))^(2/3) n^(1/3) = 19.2.
    lengths = [optimal_block_length(autoregressive(2000, 0.6, seed)) for seed in range(20)]
    assert np.median(lengths) == pytest.approx(19.2, rel=0.2)
    noise = [optimal_block_length(autoregressive(2000, 0.0, seed)) for seed in range(20)]
    assert np.median(noise) < 3.0


def test_block_length_agrees_with_arch() -> None:
    for num in (16, 50, 120, 1000):
        for coefficient in (-0.5, 0.0, 0.3, 0.6, 0.9):
            for seed in range(3):
                series = autoregressive(num, coefficient, seed)
                theirs = float(arch_block_length(series)["stationary"].iloc[0])
                assert optimal_block_length(series) == pytest.approx(max(theirs, 1.0))


def test_the_block_length_of_too_few_or_equal_values_is_one() -> None:
    assert optimal_block_length(np.array([1.0, 2.0])) == 1.0
    assert optimal_block_length(np.full(100, 0.1)) == 1.0


def test_blocks_show_the_standard_error_that_single_draws_understate() -> None:
    """Standard error of the mean of AR(1) 0.6, n = 2000: theory 0.056, single draws 0.029."""
    series = autoregressive(2000, 0.6, 1)
    single = resample(series, num_runs=1000, num_steps=2000, seed=1).mean(axis=1).std()
    blocks = resample(series, num_runs=1000, num_steps=2000, seed=1, mean_block=17.0).mean(axis=1).std()
    assert single == pytest.approx(0.029, abs=0.004)
    assert blocks == pytest.approx(0.056, abs=0.012)


def test_intervals_agree_with_scipy() -> None:
    pips = np.random.default_rng(5).normal(1.0, 15.0, 300)
    r = r_multiples(pips)
    intervals = trade_intervals(pips, r, num_runs=8000, seed=2)
    rng = np.random.default_rng(0)
    for statistic, own, tolerance in (
        (np.mean, intervals.expectancy_pips, 0.15),
        (lambda x: float((x > 0).mean()), intervals.win_rate, 0.01),
        (profit_factor, intervals.profit_factor, 0.05),
        (lambda x: sqn(x, cap=SQN_CAP), intervals.sqn100, 0.1),
    ):
        theirs = bootstrap(
            (pips,), statistic, vectorized=False, n_resamples=4000, method="percentile", rng=rng
        ).confidence_interval
        assert own is not None
        assert own.low == pytest.approx(theirs.low, abs=tolerance)
        assert own.high == pytest.approx(theirs.high, abs=tolerance)


def test_intervals_of_too_few_trades_are_undefined() -> None:
    intervals = trade_intervals(np.array([1.0]), None, num_runs=10, seed=0)
    assert intervals.expectancy_pips is None
    wins = trade_intervals(np.array([0.1, 0.1, 0.1]), None, num_runs=10, seed=0)
    assert wins.profit_factor is None
    assert wins.expectancy_pips is not None
    two = trade_intervals(np.array([0.1, -0.2]), np.array([0.5, -1.0]), num_runs=100, seed=0)
    assert two.sqn100 is None  # some draws are two equal trades
