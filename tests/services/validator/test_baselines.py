from dataclasses import replace

import numpy as np
import pytest

from services.validator.baselines import (
    FAST_BARS,
    SLOW_BARS,
    moving_average_cross,
    trend,
    walk_baselines,
)
from shared.environment.action import Action, Side
from shared.environment.environment import reset
from shared.errors import DataError
from tests.services.validator.cases import ENVIRONMENT, prices, small_dataset, starts, walked


def test_every_rule_walks_the_same_sessions() -> None:
    baselines = walk_baselines(prices(), starts(), ENVIRONMENT)
    assert [baseline.name for baseline in baselines] == [
        "flat",
        "random",
        "always long",
        "moving-average cross",
    ]
    for baseline in baselines:
        assert baseline.walk.action_counts.sum() == len(starts()) * 36
        assert np.array_equal(baseline.walk.starts, starts())


def test_flat_never_trades() -> None:
    assert len(walked("flat").trades) == 0


def test_always_long_trades_once_a_session() -> None:
    columns = walked("long").trades.columns
    assert np.array_equal(columns.entry_bar, starts() + 1)
    assert np.array_equal(columns.exit_bar, starts() + 36)
    assert (columns.side == 1).all()


def test_random_is_reproducible_and_takes_every_legal_action() -> None:
    once, again = (walk_baselines(prices(), starts(), ENVIRONMENT, seed=5)[1].walk for _ in range(2))
    assert np.array_equal(once.trades.columns.pips, again.trades.columns.pips)
    counts = once.action_counts
    assert (counts > 0).all()
    # Legal actions are equally likely in every state, so there are about as many buys as sells.
    assert counts[Action.BUY] == pytest.approx(counts[Action.SELL], rel=0.25)


def test_trend_compares_trailing_means() -> None:
    close = small_dataset().bars.close[:300]
    side = trend(close)
    assert (side[: SLOW_BARS - 1] == 0).all()
    for bar in range(SLOW_BARS - 1, 300):
        fast, slow = close[bar - FAST_BARS + 1 : bar + 1].mean(), close[bar - SLOW_BARS + 1 : bar + 1].mean()
        if abs(fast - slow) > 1e-9:
            assert side[bar] == np.sign(fast - slow)
    assert np.array_equal(trend(close[:200]), side[:200])  # no look-ahead


def test_the_cross_trades_on_the_side_of_the_trend() -> None:
    columns = walked("cross").trades.columns
    side = trend(small_dataset().bars.close)
    assert len(columns.side) > 0
    assert np.array_equal(columns.side, side[columns.entry_bar - 1])  # decided at the previous close


def test_the_cross_closes_a_position_when_the_trend_ends() -> None:
    rule = moving_average_cross(np.full(SLOW_BARS, 190.0))  # equal means: no trend
    lanes = reset(np.full(3, SLOW_BARS - 1))._replace(
        side=np.array([Side.LONG, Side.SHORT, Side.FLAT], np.int8)
    )
    assert rule(lanes).tolist() == [Action.CLOSE, Action.CLOSE, Action.HOLD]


def test_every_trade_pays_the_spread() -> None:
    """Each trade earns exactly the spread less than in a walk without a spread."""
    with_spread = walk_baselines(prices(), starts(), ENVIRONMENT)[3].walk.trades.columns.pips
    without = walk_baselines(prices(), starts(), replace(ENVIRONMENT, spread_pips=0.0))[
        3
    ].walk.trades.columns.pips
    assert without - with_spread == pytest.approx(np.full(len(without), ENVIRONMENT.spread_pips))


def test_walks_without_a_session_are_refused() -> None:
    with pytest.raises(DataError, match="no valid session"):
        walk_baselines(prices(), np.zeros(0, np.int64), ENVIRONMENT)
