"""The environment: hand-worked steps, refused steps, and lanes in lockstep."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.environment.action import Action, Side
from shared.environment.environment import (
    EnvironmentConfig,
    Lanes,
    Prices,
    Transition,
    reset,
    step,
)
from shared.environment.episode import replay
from shared.environment.reward import RewardScheme
from shared.environment.trade import Trade, TradeLog
from shared.errors import DataError, IllegalActionError, SettingsError, ShapeError
from shared.market.calendar import rollover_nights
from shared.market.synthetic import Market, synthesize
from shared.numeric import Int8
from tests.shared.environment.markets import legal_actions, market, random_prices

SHORT_CONFIG = EnvironmentConfig(session_bars=10)


def play_lanes(
    starts: list[int], actions: list[list[int]], prices: Prices, config: EnvironmentConfig
) -> tuple[list[Lanes], list[Transition]]:
    """The lanes before each step, and the result of each step."""
    lanes, befores, transitions = reset(np.array(starts)), [], []
    for column in zip(*actions, strict=True):
        befores.append(lanes)
        transitions.append(step(lanes, np.array(column, np.int8), prices, config))
        lanes = transitions[-1].lanes
    return befores, transitions


class TestReset:
    def test_every_lane_starts_flat_with_zero_features(self) -> None:
        lanes = reset(np.array([150, 7]))
        assert lanes.bar.tolist() == [150, 7]
        assert lanes.side.tolist() == [Side.FLAT, Side.FLAT]
        assert (lanes.static() == np.zeros((2, 6))).all()
        assert lanes.static().dtype == np.float32
        assert lanes.legal().tolist() == [[True, True, True, False]] * 2

    def test_a_negative_start_is_refused(self) -> None:
        with pytest.raises(DataError, match="session start -3"):
            reset(np.array([4, -3]))


class TestStep:
    def test_step_does_not_modify_its_lanes(self) -> None:
        lanes = reset(np.array([0, 0]))
        step(lanes, np.array([1, 2]), market([160.0] * 20), SHORT_CONFIG)
        assert lanes.side.tolist() == [0, 0]
        assert lanes.bar.tolist() == [0, 0]

    def test_a_position_allows_hold_and_close_only(self) -> None:
        lanes = step(reset(np.array([0, 0])), np.array([1, 2]), market([160.0] * 20), SHORT_CONFIG).lanes
        assert lanes.side.tolist() == [Side.LONG, Side.SHORT]
        assert lanes.legal().tolist() == [[True, False, False, True]] * 2

    def test_360_decisions_are_filled_at_the_opens_of_the_360_bars_after_the_start(self) -> None:
        prices = market(np.arange(511.0))
        lanes = reset(np.array([150]))
        for number in range(360):
            transition = step(lanes, np.array([1 if number == 0 else 0]), prices, EnvironmentConfig())
            lanes = transition.lanes
            assert transition.done.tolist() == [number == 359]
        (trade,) = transition.trades.of_lane(0)
        assert (trade.entry_bar, trade.exit_bar) == (151, 510)
        assert (trade.entry_price, trade.exit_price) == (151.0, 510.0)
        assert trade.bars_held == 359
        assert lanes.side.tolist() == [Side.FLAT]

    @pytest.mark.parametrize(
        ("entries", "action", "text"),
        [
            ([0, 0], 3, r"lane 1, bar 1, position FLAT: CLOSE is illegal, expected one of HOLD, BUY, SELL"),
            ([0, 1], 1, r"lane 1, bar 1, position LONG: BUY is illegal, expected one of HOLD, CLOSE"),
            ([0, 2], 1, r"lane 1, bar 1, position SHORT: BUY is illegal, expected one of HOLD, CLOSE"),
            ([0, 1], 2, r"lane 1, bar 1, position LONG: SELL is illegal, expected one of HOLD, CLOSE"),
            ([0, 0], 4, r"lane 1, bar 1, position FLAT: action 4 is illegal, expected one of HOLD, BUY"),
            ([0, 0], -1, r"lane 1, bar 1, position FLAT: action -1 is illegal"),
            ([0, 0], 256, r"lane 1, bar 1, position FLAT: action 256 is illegal"),
        ],
    )
    def test_an_illegal_action_is_refused_with_its_lane_and_changes_nothing(
        self, entries: list[int], action: int, text: str
    ) -> None:
        prices = market([160.0] * 20)
        lanes = step(reset(np.array([0, 0])), np.array(entries), prices, SHORT_CONFIG).lanes
        before = [column.copy() for column in lanes]
        with pytest.raises(IllegalActionError, match=text):
            step(lanes, np.array([0, action]), prices, SHORT_CONFIG)
        assert all((one == other).all() for one, other in zip(before, lanes, strict=True))

    def test_a_session_that_is_over_allows_no_action(self) -> None:
        prices, config = market([160.0] * 20), EnvironmentConfig(session_bars=1)
        lanes = step(reset(np.array([5])), np.array([0]), prices, config).lanes
        with pytest.raises(IllegalActionError, match="lane 0, bar 6: the session is over after 1 decisions"):
            step(lanes, np.array([0]), prices, config)

    def test_the_first_step_refuses_a_session_that_outlasts_the_data(self) -> None:
        prices = market([160.0] * 20)
        step(reset(np.array([9])), np.array([0]), prices, SHORT_CONFIG)
        with pytest.raises(DataError, match=r"lane 1: .* ends at the open of bar 20, but the last bar is 19"):
            step(reset(np.array([9, 10])), np.array([0, 0]), prices, SHORT_CONFIG)

    def test_actions_must_be_one_whole_number_per_lane(self) -> None:
        prices = market([160.0] * 20)
        with pytest.raises(ShapeError, match="actions"):
            step(reset(np.array([0, 0])), np.array([0]), prices, SHORT_CONFIG)
        halves: Int8 = np.array([0.5, 1.0])
        with pytest.raises(ShapeError, match="whole numbers"):
            step(reset(np.array([0, 0])), halves, prices, SHORT_CONFIG)


class TestLockstep:
    @given(
        random_prices(),
        st.lists(
            st.tuples(st.integers(0, 19), legal_actions(min_size=60, max_size=60)), min_size=1, max_size=5
        ),
        st.sampled_from(RewardScheme),
    )
    def test_lanes_in_lockstep_equal_single_lanes_bit_for_bit(
        self, prices: Prices, lanes: list[tuple[int, list[int]]], scheme: RewardScheme
    ) -> None:
        config = EnvironmentConfig(reward=scheme, session_bars=60, financing_pips_per_night=0.7)
        befores, transitions = play_lanes(
            [start for start, _ in lanes], [actions for _, actions in lanes], prices, config
        )
        trades = TradeLog.joined(transition.trades for transition in transitions)
        for lane, (start, actions) in enumerate(lanes):
            alone = replay(start, actions, prices, config)
            rewards = np.array([transition.reward[lane] for transition in transitions])
            static = np.stack([before.static()[lane] for before in befores])
            assert rewards.tobytes() == alone.rewards.tobytes()
            assert static.tobytes() == alone.static.tobytes()
            assert [before.pnl[lane] for before in befores] == alone.pnl.tolist()
            assert trades.of_lane(lane) == alone.trades
        assert len(trades) == sum(len(trades.of_lane(lane)) for lane in range(len(lanes)))

    def test_a_log_of_no_trades_can_be_joined(self) -> None:
        assert len(TradeLog.joined([])) == 0
        assert list(TradeLog.joined([TradeLog.blank(0), TradeLog.blank(0)])) == []

    def test_trades_have_their_lane_and_are_in_the_order_of_their_exits(self) -> None:
        prices = market([160.0, 161.0, 162.0, 163.0, 164.0])
        _, transitions = play_lanes([0, 0], [[1, 0, 3], [2, 3, 0]], prices, EnvironmentConfig(session_bars=3))
        log = list(TradeLog.joined(transition.trades for transition in transitions))
        assert [lane for lane, _ in log] == [1, 0]
        assert log[0][1] == Trade(1, 2, Side.SHORT, 161.0, 162.0, -104.0, 4.0, 1)


class TestPrices:
    def test_prices_of_bars_have_their_opens_closes_and_rollovers(self) -> None:
        bars = synthesize(Market.GBM, 3000, seed=1)
        prices = Prices.of(bars)
        assert (prices.open == bars.open).all()
        assert (prices.close == bars.close).all()
        assert prices.pip == 0.01
        assert len(prices) == 3000
        assert (prices.rollover_nights == rollover_nights(bars.time_s)).all()
        assert prices.rollover_nights.sum() > 0

    def test_columns_of_different_lengths_are_refused(self) -> None:
        with pytest.raises(ShapeError, match="close"):
            Prices(np.zeros(3), np.zeros(2), np.zeros(3, np.int8), 0.01)


class TestConfig:
    def test_defaults_equal_the_specification(self) -> None:
        config = EnvironmentConfig()
        assert (config.spread_pips, config.reward, config.session_bars) == (4.0, "amddp1", 360)
        assert (config.commission_pips, config.slippage_pips, config.financing_pips_per_night) == (0, 0, 0)
        assert tuple(config.reward_weights) == (1.0, 0.05, 0.01)
        assert tuple(EnvironmentConfig(reward=RewardScheme.PNL).reward_weights) == (0.0, 0.0, 0.0)

    @pytest.mark.parametrize(
        ("field", "value", "text"),
        [
            ("spread_pips", -1.0, "environment.spread_pips is -1.0, expected 0 or more"),
            ("commission_pips", float("nan"), "environment.commission_pips is nan, expected 0 or more"),
            ("drawdown_penalty", float("inf"), "environment.drawdown_penalty is inf"),
            ("session_bars", 0, "environment.session_bars is 0, expected 1 or more"),
            ("reward", "sharpe", "environment.reward is 'sharpe', expected one of amddp1, pnl"),
        ],
    )
    def test_settings_out_of_range_are_refused_by_name(self, field: str, value: Any, text: str) -> None:
        with pytest.raises(SettingsError, match=text):
            EnvironmentConfig(**{field: value})

    def test_financing_may_be_negative(self) -> None:
        assert EnvironmentConfig(financing_pips_per_night=-1.5).financing_pips_per_night == -1.5


def test_actions_and_sides_have_the_numbers_of_the_specification() -> None:
    assert [action.name for action in Action] == ["HOLD", "BUY", "SELL", "CLOSE"]
    assert [int(action) for action in Action] == [0, 1, 2, 3]
    assert [int(side) for side in Side] == [-1, 0, 1]
