"""Episodes: worked by hand, equal to the oracle, and with properties that hold in any market."""

import math
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.environment.action import Action, Side
from shared.environment.environment import EnvironmentConfig, Prices
from shared.environment.episode import replay
from shared.environment.reward import RewardScheme
from shared.errors import DataError, IllegalActionError
from tests.oracles import environment as oracle
from tests.shared.environment.markets import legal_actions, market, random_prices

HOLD, BUY, SELL, CLOSE = Action
AMDDP1 = EnvironmentConfig()
PNL = EnvironmentConfig(reward=RewardScheme.PNL)

# A long position enters at 160.00, the open of bar 1. Its pips at the closes of bars 1-4, less a spread of 4:
#   160.10 -> +6, peak 6; 160.02 -> -2, drawdown 8; 160.15 -> +11, peak 11; 160.08 -> +4, drawdown 7.
OPENS = [159.00, 160.00, 160.11, 160.03, 160.14, 160.07, 160.20]
CLOSES = [159.50, 160.10, 160.02, 160.15, 160.08, 160.21, 160.30]


class TestByHand:
    def test_long(self) -> None:
        episode = replay(0, [BUY, HOLD, HOLD, HOLD, CLOSE, HOLD], market(OPENS, CLOSES), AMDDP1)
        # The exit is at 160.07, the open of bar 5: 7 - 4 = 3 pips. The largest drawdown was 8.
        assert episode.rewards == pytest.approx([1.0, 0.0, 0.0, 0.0, 3.0 - 0.08, -0.05], rel=1e-6)
        assert episode.pnl == pytest.approx([0.0, 6.0, -2.0, 11.0, 4.0, 0.0])
        assert episode.bars.tolist() == [0, 1, 2, 3, 4, 5]
        (trade,) = episode.trades
        assert astuple(trade) == pytest.approx((1, 5, Side.LONG, 160.0, 160.07, 3.0, 8.0, 4))
        expected = [
            [0, 0, 0, 0, 0, 0],
            [1, 6, 1, 0, 0, 0],
            [1, -2, 2, 8, 8, 8],
            [1, 11, 3, 0, 8, 8],
            [1, 4, 4, 7, 8, 15],
            [0, 0, 0, 0, 0, 0],
        ]
        worked = [[row[0], *(math.tanh(value / 100) for value in row[1:])] for row in expected]
        np.testing.assert_allclose(episode.static, worked, atol=1e-6)

    def test_short(self) -> None:
        episode = replay(0, [SELL, HOLD, CLOSE], market(OPENS, CLOSES), AMDDP1)
        # Pips at the closes: -10 - 4 = -14 and -2 - 4 = -6, with a peak of 0. Exit at 160.03: -3 - 4 = -7.
        assert episode.rewards == pytest.approx([1.0, 0.0, -7.0 - 0.14], rel=1e-6)
        assert episode.pnl == pytest.approx([0.0, -14.0, -6.0])
        (trade,) = episode.trades
        assert astuple(trade) == pytest.approx((1, 3, Side.SHORT, 160.0, 160.03, -7.0, 14.0, 2))
        in_position = [-1.0, *(math.tanh(value / 100) for value in (-6, 2, 6, 14, 20))]
        np.testing.assert_allclose(episode.static[2], in_position, atol=1e-6)

    def test_the_pnl_scheme_rewards_realised_pips_only(self) -> None:
        prices = market(OPENS, CLOSES)
        episode = replay(0, [HOLD, BUY, HOLD, HOLD, CLOSE, HOLD], prices, PNL)
        # Entry at 160.11, exit at 160.07.
        assert episode.rewards == pytest.approx([0.0, 0.0, 0.0, 0.0, -8.0, 0.0], abs=1e-5)

    def test_a_position_open_at_the_end_is_closed_at_the_next_open(self) -> None:
        prices = market(OPENS, CLOSES)
        held = replay(0, [BUY, HOLD, HOLD, HOLD, HOLD], prices, AMDDP1)
        closed = replay(0, [BUY, HOLD, HOLD, HOLD, CLOSE], prices, AMDDP1)
        assert held.rewards.tolist() == closed.rewards.tolist()
        assert held.trades == closed.trades

    def test_an_entry_by_the_last_decision_gets_its_bonus_and_costs_its_spread(self) -> None:
        episode = replay(0, [HOLD, SELL], market(OPENS, CLOSES), AMDDP1)
        assert episode.rewards == pytest.approx([-0.05, 1.0 - 4.0])
        (trade,) = episode.trades
        assert astuple(trade) == pytest.approx((2, 2, Side.SHORT, 160.11, 160.11, -4.0, 0.0, 0))

    def test_a_new_position_does_not_depend_on_the_trade_before_it(self) -> None:
        prices = market(OPENS, CLOSES)
        episode = replay(0, [BUY, CLOSE, SELL, CLOSE, BUY, CLOSE], prices, AMDDP1)
        sides = [trade.side for trade in episode.trades]
        assert sides == [Side.LONG, Side.SHORT, Side.LONG]
        assert [trade.bars_held for trade in episode.trades] == [1, 1, 1]
        # The short enters at 160.03 and is marked at 160.15: 12 + 4 below a peak of 0, as for a first trade.
        assert episode.trades[1].max_drawdown_pips == pytest.approx(16.0)

    def test_a_decision_is_filled_at_the_next_open_not_at_its_close(self) -> None:
        """The close and the next open differ by 50 pips."""
        prices = market([160.0, 160.5, 161.0, 161.5], [160.0, 160.5, 161.0, 161.5])
        (trade,) = replay(0, [BUY, HOLD, CLOSE], prices, AMDDP1).trades
        assert (trade.entry_price, trade.exit_price) == (160.5, 161.5)
        assert trade.pips == pytest.approx(96.0)

    def test_commission_and_slippage_are_charged_with_the_entry(self) -> None:
        config = replace(AMDDP1, commission_pips=0.5, slippage_pips=0.2)
        episode = replay(0, [BUY, CLOSE], market([160.0] * 3), config)
        assert episode.pnl == pytest.approx([0.0, -4.9])
        assert episode.trades[0].pips == pytest.approx(-4.9)

    def test_financing_is_charged_at_each_rollover_of_an_open_position(self) -> None:
        flat = market([160.0] * 8)
        # Rollovers before bars 1 (before the entry), 3 (one night), 5 (three nights) and 7 (after the exit).
        prices = replace(flat, rollover_nights=np.array([1, 0, 1, 0, 3, 0, 1, 0], np.int8))
        config = replace(PNL, financing_pips_per_night=2.0)
        episode = replay(0, [BUY, HOLD, HOLD, HOLD, HOLD, CLOSE, HOLD], prices, config)
        assert episode.pnl == pytest.approx([0.0, -4.0, -4.0, -6.0, -6.0, -12.0, 0.0])
        assert episode.trades[0].pips == pytest.approx(-12.0)
        out_at_the_rollover = replay(0, [BUY, HOLD, CLOSE], prices, config)
        assert out_at_the_rollover.trades[0].pips == pytest.approx(-6.0)


class TestRefusals:
    def test_an_empty_list_of_actions_is_refused(self) -> None:
        with pytest.raises(DataError, match="no action to replay"):
            replay(0, [], market(OPENS, CLOSES), AMDDP1)

    def test_more_actions_than_bars_are_refused(self) -> None:
        with pytest.raises(DataError, match="ends at the open of bar 7, but the last bar is 6"):
            replay(0, [HOLD] * 7, market(OPENS, CLOSES), AMDDP1)

    def test_an_illegal_action_names_the_bar(self) -> None:
        with pytest.raises(IllegalActionError, match="bar 2, position LONG: SELL is illegal"):
            replay(1, [BUY, SELL], market(OPENS, CLOSES), AMDDP1)


class TestProperties:
    @given(
        random_prices(),
        legal_actions(),
        st.integers(0, 19),
        st.sampled_from(RewardScheme),
        st.sampled_from([0.0, 4.0, 1.3]),
        st.sampled_from([0.0, 0.9, -0.4]),
    )
    def test_an_episode_equals_the_oracle(
        self,
        prices: Prices,
        actions: list[int],
        start: int,
        scheme: RewardScheme,
        spread_pips: float,
        night_pips: float,
    ) -> None:
        config = EnvironmentConfig(spread_pips, scheme, financing_pips_per_night=night_pips)
        episode = replay(start, actions, prices, config)
        played = oracle.play(
            start,
            actions,
            prices.open.tolist(),
            prices.close.tolist(),
            pip=prices.pip,
            scheme=scheme,
            cost_pips=spread_pips,
            nights=prices.rollover_nights.tolist(),
            night_pips=night_pips,
        )
        np.testing.assert_allclose(episode.rewards, played.rewards, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(episode.static, played.statics, rtol=1e-6, atol=1e-7)
        trades = [astuple(trade) for trade in episode.trades]
        np.testing.assert_allclose(np.array(trades), np.array(played.trades), rtol=1e-9, atol=1e-9)

    @given(random_prices(), legal_actions(), st.sampled_from(RewardScheme))
    def test_a_short_on_mirrored_prices_earns_what_the_long_earned(
        self, prices: Prices, actions: list[int], scheme: RewardScheme
    ) -> None:
        mirrored = replace(prices, open=320.0 - prices.open, close=320.0 - prices.close)
        swapped = [{BUY: SELL, SELL: BUY}.get(Action(action), action) for action in actions]
        config = EnvironmentConfig(reward=scheme)
        one, other = replay(0, actions, prices, config), replay(0, swapped, mirrored, config)
        assert one.rewards.tolist() == other.rewards.tolist()
        assert (one.static[:, 1:] == other.static[:, 1:]).all()
        assert (one.static[:, 0] == -other.static[:, 0]).all()
        assert [trade.pips for trade in one.trades] == [trade.pips for trade in other.trades]

    @given(random_prices(), legal_actions(), st.sampled_from([0.5, 4.0, 16.0]))
    def test_a_round_trip_costs_the_spread_once(
        self, prices: Prices, actions: list[int], spread_pips: float
    ) -> None:
        """Each trade earns less with a spread than without, by exactly the spread."""
        free = replay(0, actions, prices, replace(PNL, spread_pips=0.0))
        costly = replay(0, actions, prices, replace(PNL, spread_pips=spread_pips))
        for one, other in zip(free.trades, costly.trades, strict=True):
            assert one.pips - other.pips == pytest.approx(spread_pips, rel=1e-9, abs=1e-8)
        lost = float(free.rewards.sum(dtype=np.float64) - costly.rewards.sum(dtype=np.float64))
        assert lost == pytest.approx(spread_pips * len(free.trades), rel=1e-3, abs=0.02)

    @given(random_prices(), legal_actions())
    def test_rewards_of_the_pnl_scheme_add_up_to_the_pips_of_the_trades(
        self, prices: Prices, actions: list[int]
    ) -> None:
        episode = replay(0, actions, prices, PNL)
        total = sum(trade.pips for trade in episode.trades)
        assert float(episode.rewards.sum(dtype=np.float64)) == pytest.approx(total, rel=1e-4, abs=0.02)

    @given(random_prices(), legal_actions(), st.integers(0, 59))
    def test_later_prices_change_no_earlier_reward_or_feature(
        self, prices: Prices, actions: list[int], bar: int
    ) -> None:
        later = np.arange(len(prices)) > bar
        changed = replace(
            prices,
            open=np.where(later, 500.0, prices.open),
            close=np.where(later, 9.0, prices.close),
        )
        one, other = replay(0, actions, prices, AMDDP1), replay(0, actions, changed, AMDDP1)
        seen = min(bar, len(actions) - 1)
        assert one.rewards[:seen].tolist() == other.rewards[:seen].tolist()
        assert (one.static[: bar + 1] == other.static[: bar + 1]).all()
