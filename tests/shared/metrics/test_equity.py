import importlib
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shared.environment.action import Side
from shared.environment.trade import Trade, TradeColumns, TradeLog
from shared.errors import DataError
from shared.metrics.equity import (
    daily_pips,
    drawdown_curve,
    equity_curve,
    in_time_order,
    max_drawdown,
    max_drawdown_pips,
    months,
    sharpe,
    sortino,
)
from tests.oracles import equity as oracle

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    empyrical: Any = importlib.import_module("empyrical")

returns_of_days = arrays(
    np.float64, st.integers(3, 80), elements=st.floats(-0.05, 0.05).map(lambda x: round(x, 4))
)


def log_of(trades: list[Trade]) -> TradeLog:
    log = TradeLog.blank(len(trades))
    for row, trade in enumerate(trades):
        log.columns.lane[row] = 0
        for name in TradeColumns._fields[1:]:
            getattr(log.columns, name)[row] = getattr(trade, name)
    return log


def trade_at(entry_bar: int, exit_bar: int, side: Side, opens: np.ndarray, spread: float = 4.0) -> Trade:
    entry, leave = float(opens[entry_bar]), float(opens[exit_bar])
    pips = side * (leave - entry) / 0.01 - spread
    return Trade(entry_bar, exit_bar, side, entry, leave, pips, 0.0, exit_bar - entry_bar)


def test_the_equity_curve_is_marked_to_market_as_computed_by_hand() -> None:
    closes = np.array([100.00, 100.10, 100.30, 100.05, 100.00])
    # Long from bar 1's open at 100.00 to bar 3's open at 100.20: 20 pips less a spread of 4.
    log = log_of([Trade(1, 3, Side.LONG, 100.00, 100.20, 16.0, 0.0, 2)])
    curve = equity_curve(log, closes, pip=0.01, first_bar=0, last_bar=4)
    assert curve == pytest.approx([0.0, 6.0, 26.0, 16.0, 16.0])
    assert max_drawdown_pips(curve) == pytest.approx(10.0)  # invisible at the exits of the trades
    assert max_drawdown(curve, 74.0) == pytest.approx(10.0 / 100.0)


def test_drawdown_includes_the_equity_at_the_start() -> None:
    curve = np.array([-20.0, -50.0, 10.0])
    assert max_drawdown_pips(curve) == 50.0
    assert max_drawdown(curve, 200.0) == 0.25
    assert drawdown_curve(curve).tolist() == [-20.0, -50.0, 0.0]


@given(st.data())
def test_curve_equals_the_oracle(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    closes = 150 + np.cumsum(rng.normal(0, 0.05, 40))
    opens = closes + rng.normal(0, 0.01, 40)
    trades = []
    for _ in range(data.draw(st.integers(0, 8))):
        entry = data.draw(st.integers(3, 35))
        side = data.draw(st.sampled_from([Side.LONG, Side.SHORT]))
        trades.append(trade_at(entry, data.draw(st.integers(entry, 37)), side, opens))
    curve = equity_curve(log_of(trades), closes, pip=0.01, first_bar=3, last_bar=37)
    assert curve == pytest.approx(oracle.equity_curve(trades, closes, 0.01, 3, 37), abs=1e-6)
    assert curve[-1] == pytest.approx(sum(trade.pips for trade in trades), abs=1e-6)
    assert max_drawdown(curve, 5_000.0) == pytest.approx(oracle.max_drawdown(curve, 5_000.0))


@pytest.mark.parametrize("entry_bar", [1, 5])
def test_a_trade_outside_the_bars_is_refused(entry_bar: int) -> None:
    log = log_of([Trade(entry_bar, 4, Side.LONG, 1.0, 1.0, 0.0, 0.0, 0)])
    with pytest.raises(DataError, match="trade 0 spans"):
        equity_curve(log, np.ones(10), pip=0.01, first_bar=2, last_bar=9)


def test_bars_outside_the_series_are_refused() -> None:
    with pytest.raises(DataError, match="series of 10 bars"):
        equity_curve(TradeLog.blank(0), np.ones(10), pip=0.01, first_bar=2, last_bar=10)


def test_trades_are_sorted_by_their_exit() -> None:
    opens = np.ones(20)
    log = log_of([trade_at(8, 9, Side.LONG, opens), trade_at(2, 5, Side.SHORT, opens)])
    assert in_time_order(log).columns.exit_bar.tolist() == [5, 9]


def test_daily_pips_add_up_to_the_curve() -> None:
    curve = np.array([1.0, 4.0, 3.0, 3.0, -2.0, 5.0])
    days, pips = daily_pips(curve, np.array([7, 7, 8, 8, 8, 11]))
    assert days.tolist() == [7, 8, 11]
    assert pips.tolist() == [4.0, -6.0, 7.0]


@given(returns_of_days)
def test_ratios_and_drawdown_equal_empyrical(returns: np.ndarray) -> None:
    own = sharpe(returns)
    if own is not None and returns.std(ddof=1) > 1e-9:
        assert own == pytest.approx(empyrical.sharpe_ratio(returns), rel=1e-6, abs=1e-9)
    if (returns < 0).any():
        assert sortino(returns) == pytest.approx(empyrical.sortino_ratio(returns), rel=1e-6, abs=1e-9)
    equity = np.cumprod(1 + returns)
    assert max_drawdown(1000.0 * (equity - 1.0), 1000.0) == pytest.approx(
        -empyrical.max_drawdown(returns), abs=1e-9
    )


def test_ratios_of_too_few_or_equal_days_are_undefined() -> None:
    assert sharpe(np.array([0.1])) is None
    assert sharpe(np.array([0.1, 0.1, 0.1])) is None
    assert sortino(np.array([0.1, 0.0])) is None


@given(returns_of_days, st.floats(0, 0.04))
def test_lower_returns_never_shrink_the_drawdown(returns: np.ndarray, loss: float) -> None:
    curve = np.cumsum(returns)
    assert max_drawdown_pips(curve - loss * np.arange(1, len(curve) + 1)) >= max_drawdown_pips(curve) - 1e-12


def test_months_equal_values_computed_by_hand() -> None:
    # 2024-01-31, 2024-02-01, 2024-02-02 as days since 1970
    days = np.array(["2024-01-31", "2024-02-01", "2024-02-02"], "datetime64[D]").astype(np.int64)
    table = months(days, np.array([5.0, -2.0, 4.0]), days[[0, 1, 1]], np.array([5.0, -3.0, 1.0]))
    january, february = table
    assert (january.month, january.num_days, january.pips, january.num_trades) == ("2024-01", 1, 5.0, 1)
    assert (february.month, february.num_days, february.pips, february.num_trades) == ("2024-02", 2, 2.0, 2)
    assert february.win_rate == 0.5
    assert february.expectancy_pips == -1.0
