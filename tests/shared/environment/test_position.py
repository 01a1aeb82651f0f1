"""A single position equals a lane of the environment."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.environment.action import Side
from shared.environment.environment import EnvironmentConfig, Prices, reset, step
from shared.environment.position import NUM_STATIC, STATIC_NAMES, Position, static_features
from tests.shared.environment.markets import random_prices


@given(random_prices(), st.sampled_from([Side.LONG, Side.SHORT]), st.integers(1, 40))
def test_a_position_marked_at_each_close_equals_a_lane_bit_for_bit(
    prices: Prices, side: Side, num_closes: int
) -> None:
    config = EnvironmentConfig(session_bars=60, financing_pips_per_night=0.3)
    lanes = step(reset(np.array([0])), np.array([1 if side is Side.LONG else 2]), prices, config).lanes
    position = Position(prices.pip).after_entry(side, float(prices.open[1]), config.round_trip_pips)
    for bar in range(1, 1 + num_closes):
        if bar > 1:
            position = position.charge(0.3 * int(prices.rollover_nights[bar - 1]))
            lanes = step(lanes, np.array([0]), prices, config).lanes
        position = position.at_close(float(prices.close[bar]))
        assert position.static().tobytes() == lanes.static()[0].tobytes()
        assert position.pnl == lanes.pnl[0]
        assert position.max_drawdown == lanes.max_drawdown[0]
        assert position.bars_held == bar


def test_a_flat_position_stays_flat_with_zero_features() -> None:
    flat = Position(0.01)
    assert flat.at_close(163.0) is flat
    assert (flat.static() == 0).all()


def test_a_flat_lane_has_zero_features_whatever_its_other_fields() -> None:
    assert len(STATIC_NAMES) == NUM_STATIC == 6
    fives = np.full(2, 5.0)
    static = static_features(
        np.array([0, -1], np.int8), fives, np.array([5, 5]), fives + 1, fives + 2, fives + 3
    )
    assert (static[0] == 0).all()
    assert static[1] == pytest.approx([-1, *np.tanh(np.array([5, 5, 1, 7, 8]) / 100)], rel=1e-6)
