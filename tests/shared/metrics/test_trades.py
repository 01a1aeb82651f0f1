import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shared.errors import DataError, ShapeError
from shared.metrics.trades import (
    activity,
    expectancy,
    profit_factor,
    r_multiples,
    sqn,
    trade_statistics,
    win_rate,
)

#: Six trades: wins 10, 20, 6 (36), losses -8, -4 (-12), one break-even.
PIPS = np.array([10.0, -8.0, 20.0, 0.0, -4.0, 6.0])


def test_statistics_equal_values_computed_by_hand() -> None:
    statistics = trade_statistics(PIPS)
    assert statistics.num_trades == 6
    assert statistics.total_pips == 24.0
    assert statistics.expectancy_pips == 4.0
    assert statistics.win_rate == 0.5  # a trade of zero is not a win
    assert statistics.profit_factor == 3.0
    assert statistics.average_win_pips == 12.0
    assert statistics.average_loss_pips == -6.0
    assert statistics.expectancy_r == pytest.approx(4.0 / 6.0)  # the risk is the mean loss, 6 pips
    # squares of deviations from 4: 36 + 144 + 256 + 16 + 64 + 4 = 520, over 5: 104
    assert statistics.sqn == pytest.approx(6**0.5 * 4.0 / 104.0**0.5)
    assert statistics.sqn100 == statistics.sqn


def test_r_multiples_of_a_given_risk() -> None:
    r = r_multiples(np.array([10.0, -5.0]), np.array([5.0, 5.0]))
    assert r is not None
    assert r.tolist() == [2.0, -1.0]


def test_capped_sqn_does_not_grow_with_the_number_of_trades() -> None:
    once = np.tile([2.0, -1.0, 0.5, -0.5], 50)  # 200 trades
    four_times = np.tile(once, 4)
    assert sqn(four_times) == pytest.approx(2.0 * (sqn(once) or 0.0), rel=5e-3)
    assert sqn(four_times, cap=100) == pytest.approx(sqn(once, cap=100), rel=5e-3)
    assert sqn(once, cap=100) == pytest.approx(10.0 * once.mean() / once.std(ddof=1))


@pytest.mark.parametrize(
    "pips",
    [[], [3.0], [3.0, 3.0, 3.0], [0.1] * 7],
    ids=["none", "one", "equal", "equal up to rounding"],
)
def test_undefined_statistics_are_none(pips: list[float]) -> None:
    statistics = trade_statistics(np.array(pips))
    assert statistics.profit_factor is None
    assert statistics.average_loss_pips is None
    assert statistics.expectancy_r is None
    assert statistics.sqn is None
    assert statistics.sqn100 is None
    assert (statistics.expectancy_pips is None) == (not pips)


def test_statistics_of_losses_only() -> None:
    losses = np.array([-1.0, -3.0])
    assert profit_factor(losses) == 0.0
    assert win_rate(losses) == 0.0
    assert trade_statistics(losses).average_win_pips is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_trade_that_is_not_a_number_is_refused(bad: float) -> None:
    with pytest.raises(DataError, match="trade 1"):
        trade_statistics(np.array([1.0, bad]))


def test_a_risk_that_is_not_positive_is_refused() -> None:
    with pytest.raises(DataError, match="trade 1 risks 0"):
        r_multiples(np.array([1.0, 2.0]), np.array([1.0, 0.0]))
    with pytest.raises(ShapeError):
        r_multiples(np.array([1.0, 2.0]), np.array([1.0]))


@given(arrays(np.float64, st.integers(2, 60), elements=st.floats(-300, 300)), st.floats(0.1, 10))
def test_sqn_and_profit_factor_do_not_depend_on_the_unit(pips: np.ndarray, scale: float) -> None:
    pips = np.round(pips, 1)
    before, after = trade_statistics(pips), trade_statistics(pips * scale)
    if (pips < 0).any():
        assert after.profit_factor == pytest.approx(before.profit_factor, rel=1e-9)
    assert after.win_rate == before.win_rate
    if np.ptp(pips) > 0 and (pips < 0).any():
        assert after.sqn == pytest.approx(before.sqn, rel=1e-6, abs=1e-9)


@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(-300, 300)))
def test_expectancy_is_the_mean_of_wins_and_losses_together(pips: np.ndarray) -> None:
    pips = np.round(pips, 1)
    wins, losses = pips[pips > 0], pips[pips < 0]
    parts = len(wins) * (expectancy(wins) or 0.0) + len(losses) * (expectancy(losses) or 0.0)
    assert expectancy(pips) == pytest.approx(parts / len(pips), abs=1e-9)


def test_activity_equals_values_computed_by_hand() -> None:
    spent = activity(np.array([70, 10, 5, 15]), bars_in_position=40, num_trades=15, num_days=5)
    assert spent.action_shares == (0.7, 0.1, 0.05, 0.15)
    assert spent.trade_ratio == pytest.approx(0.3)
    assert spent.exposure == 0.4
    assert spent.turnover_per_day == 6.0


def test_activity_without_a_decision_is_undefined() -> None:
    spent = activity(np.zeros(4, np.int64), 0, 0, 0)
    assert spent.trade_ratio is None
    assert spent.exposure is None
