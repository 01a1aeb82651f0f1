"""What counts as equal and as zero: rounding errors of prices never become large numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.metrics.bootstrap import optimal_block_length
from shared.metrics.equity import sharpe, sortino
from shared.metrics.rounding import mean_over_deviation, settled
from shared.metrics.sizing import kelly_continuous, kelly_discrete
from shared.metrics.trades import profit_factor, sqn, trade_statistics, win_rate

#: Forty wins of 6 pips, as differences of prices with three decimals: none is exactly 6.
PRICES = np.round(150.0 + 0.137 * np.arange(40), 3)
WINS = (np.round(PRICES + 0.06, 3) - PRICES) / 0.01


def test_equal_wins_computed_from_prices_have_no_ratio() -> None:
    assert len(set(WINS.tolist())) > 1
    for ratio in (sharpe(WINS), sqn(WINS), kelly_continuous(WINS), sortino(WINS)):
        assert ratio is None
    assert optimal_block_length(WINS) == 1.0


def test_equal_losses_computed_from_prices_have_no_sqn() -> None:
    statistics = trade_statistics(-WINS)
    assert (statistics.sqn, statistics.sqn100) == (None, None)
    assert statistics.expectancy_r == pytest.approx(-1.0)
    assert sortino(-WINS) == pytest.approx(-np.sqrt(252))


def test_a_trade_that_is_zero_up_to_rounding_neither_wins_nor_loses() -> None:
    pips = np.append(WINS, [WINS.max() - WINS.min(), WINS.min() - WINS.max()])
    assert pips[-2:].all()
    statistics = trade_statistics(pips)
    assert (statistics.profit_factor, statistics.average_loss_pips, statistics.expectancy_r) == (None,) * 3
    assert statistics.win_rate == win_rate(pips) == pytest.approx(40 / 42)
    assert profit_factor(pips) is None
    assert kelly_discrete(pips) is None
    assert statistics.undefined()["profit_factor"] == "no losing trade"


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30),
    st.sampled_from([1e-300, 1e-155, 1.0, 1e150, 1e300]),
)
def test_ratios_do_not_depend_on_the_scale(values: list[float], scale: float) -> None:
    """Squares of 1e155 and 1e-155 are infinite and zero; the ratio of the scaled values is not."""
    plain, scaled = np.array(values), np.array(values) * scale
    if not np.isfinite(scaled).all() or (np.abs(scaled[plain != 0]) < 1e-307).any():
        return
    for ratio in (mean_over_deviation, sharpe, sortino):
        assert ratio(scaled) == (None if ratio(plain) is None else pytest.approx(ratio(plain), rel=1e-6))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_the_ratio_of_different_values_equals_numpys(values: list[float]) -> None:
    array = np.array(values)
    ratio, deviation = mean_over_deviation(array), array.std(ddof=1)
    if deviation > max(1e-8 * np.abs(array).max(), 1e-150):  # below, numpy's squares underflow
        assert ratio == pytest.approx(array.mean() / deviation, rel=1e-6, abs=1e-9)
    if ratio is not None:
        assert abs(ratio) < 1e9
    assert (settled(array) == np.where(np.abs(array) <= 1e-9 * np.abs(array).max(), 0.0, array)).all()


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0], [1.0, np.nan], [1.0, np.inf], [5e-324, 5e-324]])
def test_values_without_a_ratio_give_none(values: list[float]) -> None:
    assert mean_over_deviation(np.array(values)) is None
