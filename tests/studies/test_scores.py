"""Players' earnings, and shares of the best policy's earnings."""

import numpy as np
import pytest

from services.validator.baselines import always_long, flat
from shared.environment.action import Action, Side
from shared.environment.environment import EnvironmentConfig, Lanes
from shared.environment.episode import replay
from shared.environment.reward import RewardScheme
from shared.numeric import Float64, Int8
from shared.search.config import SearchConfig
from studies.scores import Scores, mean, score_agent, score_rule, share
from tests.shared.agent.markets import small_agent, small_market

ENVIRONMENT = EnvironmentConfig(session_bars=12)
STARTS = np.array([200, 450, 731])


def three_bars_long(lanes: Lanes) -> Int8:
    """Buys when flat, and closes after three bars."""
    leave = (lanes.side == Side.LONG) & (lanes.bars_held == 3)
    enter = lanes.side == Side.FLAT
    return np.where(leave, Action.CLOSE, np.where(enter, Action.BUY, Action.HOLD)).astype(np.int8)


def test_a_rule_earns_what_its_actions_earn_in_replay() -> None:
    market = small_market()
    scores = score_rule(three_bars_long, market.prices, STARTS, ENVIRONMENT)
    actions = [Action.BUY, Action.HOLD, Action.HOLD, Action.CLOSE] * 3
    for session, start in enumerate(STARTS.tolist()):
        episode = replay(start, actions, market.prices, ENVIRONMENT)
        assert scores.reward[session] == pytest.approx(float(episode.rewards.sum()), abs=1e-4)
        assert scores.pips[session] == pytest.approx(sum(trade.pips for trade in episode.trades))
        assert scores.trades[session] == len(episode.trades) == 3


def test_doing_nothing_earns_the_idle_penalty() -> None:
    scores = score_rule(flat, small_market().prices, STARTS, ENVIRONMENT)
    assert scores.reward == pytest.approx([-12 * 0.05] * 3)
    assert not scores.pips.any()
    assert not scores.trades.any()


def test_an_agent_earns_the_same_alone_as_among_others() -> None:
    search = SearchConfig(simulations=2)
    together = score_agent(small_agent(), small_market(), STARTS, ENVIRONMENT, search)
    for session in range(len(STARTS)):
        alone = score_agent(small_agent(), small_market(), STARTS[session : session + 1], ENVIRONMENT, search)
        assert alone.pips[0] == together.pips[session]
        assert alone.reward[0] == together.reward[session]
        assert alone.trades[0] == together.trades[session]


def test_with_the_pnl_scheme_the_reward_equals_the_pips() -> None:
    environment = EnvironmentConfig(reward=RewardScheme.PNL, session_bars=12)
    scores: Scores = score_rule(always_long, small_market().prices, STARTS, environment)
    assert scores.reward == pytest.approx(scores.pips, abs=1e-4)


def normal(location: float, num_sessions: int = 400) -> Float64:
    return np.random.default_rng(0).normal(location, 10.0, num_sessions)


def test_the_interval_of_a_mean_is_about_two_standard_errors_on_each_side() -> None:
    values = normal(5.0)
    estimate = mean(values)
    error = values.std() / np.sqrt(len(values))
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert estimate.interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_luck_common_to_both_players_cancels_out_of_a_share() -> None:
    best = normal(20.0)
    estimate = share(0.6 * best, best)
    assert estimate is not None
    assert estimate.value == pytest.approx(0.6)
    assert estimate.interval.high - estimate.interval.low < 1e-9


def test_there_is_no_share_of_zero_or_negative_earnings() -> None:
    assert share(normal(1.0), normal(0.0)) is None
    assert share(normal(1.0), normal(-20.0)) is None
