from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import DataError
from shared.metrics.significance import _upper_tail, adjusted_p_value, share_of_error, sign_flip_p_value


def counted(daily: np.ndarray) -> float:
    """The p-value from every sign pattern."""
    sums = [np.dot(signs, np.abs(daily)) for signs in product((-1.0, 1.0), repeat=len(daily))]
    return float(np.mean([total >= daily.sum() - 1e-9 for total in sums]))


@given(st.integers(0, 1000), st.integers(1, 9))
def test_few_days_equal_counting_every_pattern(seed: int, num_days: int) -> None:
    daily = np.random.default_rng(seed).normal(0.3, 1.0, num_days).round(1)
    if daily.any():
        assert sign_flip_p_value(daily) == pytest.approx(counted(daily[daily != 0.0]))
        assert sign_flip_p_value(np.append(daily, 0.0)) == sign_flip_p_value(daily)


@given(st.integers(0, 200), st.floats(-0.5, 0.8))
def test_the_approximation_agrees_with_counting(seed: int, edge: float) -> None:
    daily = np.random.default_rng(seed).standard_t(4, 16) + edge
    exact = sign_flip_p_value(daily)
    assert exact is not None
    sizes, total = np.abs(daily), float(daily.sum())
    tail = _upper_tail(sizes, abs(total))
    if total < 0.0:
        exact = 1.0 - exact
    assert exact / 1.6 <= tail <= 1.6 * exact


def test_many_days_agree_with_drawn_signs() -> None:
    rng = np.random.default_rng(0)
    daily = rng.normal(0.1, 1.0, 80)
    drawn = (rng.integers(0, 2, (200_000, 80)) * 2 - 1) @ np.abs(daily)
    assert sign_flip_p_value(daily) == pytest.approx((drawn >= daily.sum()).mean(), rel=0.05)


def test_days_without_an_edge_pass_at_most_as_often_as_allowed() -> None:
    """A deflated Sharpe ratio of 0.95 is reached by luck in 13 of 100 lists of few trades."""
    rng = np.random.default_rng(1)
    for num in (6, 30, 300):
        p_values = np.array([sign_flip_p_value(rng.standard_t(3, num)) for _ in range(400)])
        assert (p_values <= 0.05).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_only_winning_days_have_the_smallest_p_value() -> None:
    assert sign_flip_p_value(np.array([5.0, 1.0, 2.0])) == 1 / 8
    assert sign_flip_p_value(np.linspace(0.1, 3.0, 40)) == pytest.approx(2.0**-40)
    assert sign_flip_p_value(-np.ones(40)) == pytest.approx(1.0)
    assert sign_flip_p_value(np.zeros(5)) is None


def test_days_that_differ_only_by_rounding_have_no_result() -> None:
    """Regression: p was 2^-31 for a version that beat a rule on three days and equalled it on all others."""
    rule = np.random.default_rng(0).normal(0.0, 16.0, 250)
    version = rule.copy()
    version[[10, 50, 90]] += (3.3, 4.1, 2.7)
    marked, rule_marked = (
        np.cumsum(version),
        np.cumsum(rule),
    )  # daily results as differences of an equity curve
    excess = np.diff(marked, prepend=0.0) - np.diff(rule_marked, prepend=0.0)
    assert (excess != 0.0).sum() > 16
    assert sign_flip_p_value(excess) == 1 / 8
    assert sign_flip_p_value(excess - 1e-13) == 1 / 8


def test_shares_of_the_error_add_up_to_one() -> None:
    shares = [share_of_error(trials) for trials in range(1, 200_001)]
    assert sum(shares) == pytest.approx(1.0, abs=2e-3)
    assert sum(shares) < 1.0
    assert shares[0] < 4 * shares[199]  # the share falls slowly
    with pytest.raises(DataError, match="at least 1"):
        share_of_error(0.5)


def test_more_trials_raise_the_p_value() -> None:
    assert adjusted_p_value(1e-4, 1.0) == pytest.approx(0.0201)
    assert adjusted_p_value(1e-4, 200.0) == pytest.approx(0.0798)
    assert adjusted_p_value(0.3, 1.0) == 1.0
