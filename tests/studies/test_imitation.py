"""The labelled states, and that a network that sees the full state imitates the best policy."""

from itertools import count

import numpy as np
import pytest

from shared.agent.rollout import MarketView
from shared.environment.action import LEGAL, Action, Side
from shared.environment.environment import EnvironmentConfig, Lanes, Prices
from shared.environment.reward import RewardScheme
from shared.errors import SettingsError
from shared.features.kernels import NUM_FEATURES
from shared.model.config import ModelConfig
from shared.numeric import Int8
from studies.imitation import (
    ImitationSpent,
    LabelledStates,
    draw_labelled_states,
    learn_to_imitate,
    most_likely,
)
from studies.optimum import Chain, best_rule, solve
from studies.scores import Rule, score_rule

PIP = 0.01
BARS = 2_000
ENVIRONMENT = EnvironmentConfig(reward=RewardScheme.PNL, session_bars=40)
MODEL = ModelConfig(temporal_channels=8, static_channels=4, value_bins=31, value_bound_pips=150.0)
STARTS = np.arange(200, BARS - 50)

#: The price rises for 8 bars and falls for 8, by 3 pips each: the phase determines the next move.
PERIOD = 16
MOVES = np.where(np.arange(PERIOD) < PERIOD // 2, 3, -3)
WAVE = Chain(
    successor=((np.arange(PERIOD) + 1) % PERIOD)[:, None],
    move=MOVES[:, None],
    probability=np.ones((PERIOD, 1)),
    step_pips=1.0,
    drawdown_cap_pips=10.0,
)


@pytest.fixture(scope="module")
def market() -> MarketView:
    """The wave; its phase is in the first two features, and the others are 0."""
    phases = np.arange(BARS) % PERIOD
    closes = 100.0 + PIP * np.append(0.0, np.cumsum(MOVES[phases[:-1]]))
    opens = np.append(closes[0], closes[:-1])
    features = np.zeros((BARS, NUM_FEATURES), np.float32)
    features[:, 0], features[:, 1] = np.cos(2 * np.pi * phases / PERIOD), np.sin(2 * np.pi * phases / PERIOD)
    prices = Prices(opens, closes, np.zeros(BARS, np.int8), PIP)
    return MarketView(features, prices, np.zeros(BARS, np.int8), "wave")


@pytest.fixture(scope="module")
def rule() -> Rule:
    return best_rule(solve(WAVE, ENVIRONMENT), np.arange(BARS) % PERIOD)


@pytest.fixture(scope="module")
def states(market: MarketView, rule: Rule) -> LabelledStates:
    return draw_labelled_states(rule, market.prices, STARTS, ENVIRONMENT, np.random.default_rng(1), 3_000)


def test_labelled_actions_are_legal_and_all_sides_occur(states: LabelledStates) -> None:
    assert LEGAL[states.sides + 1, states.actions].all()
    assert np.array_equal(states.static[:, 0], states.sides)
    assert (np.bincount(states.sides + 1) > 300).all()
    assert (np.bincount(states.actions) > 50).all()
    assert states.bars.min() >= STARTS[0]
    assert states.bars.max() < STARTS[-1] + ENVIRONMENT.session_bars


def test_random_play_reaches_sides_that_the_best_policy_avoids(states: LabelledStates) -> None:
    """In the middle of a rise the best policy is long; random play also reaches the other sides."""
    climbing = states.bars % PERIOD == 4
    short, flat, _ = np.bincount(states.sides[climbing] + 1)
    assert min(short, flat) > 10
    # At a session's last decision, holding and closing are equivalent.
    assert (states.actions[climbing & (states.sides == -1)] == Action.CLOSE).mean() > 0.9
    assert np.isin(states.actions[climbing & (states.sides == 1)], Action.HOLD).all()


def test_returns_are_the_rules_future_earnings(market: MarketView) -> None:
    """For buy-and-hold, a position's future reward follows from its static features and two prices."""

    def buy_and_stay(lanes: Lanes) -> Int8:
        return np.where(lanes.side == Side.FLAT, Action.BUY, Action.HOLD).astype(np.int8)

    start, prices, rng = 300, market.prices, np.random.default_rng(0)
    drawn = draw_labelled_states(buy_and_stay, prices, np.array([start]), ENVIRONMENT, rng, 400)
    last_open = prices.open[start + ENVIRONMENT.session_bars]
    entered = (last_open - prices.open[drawn.bars + 1]) / PIP - ENVIRONMENT.spread_pips
    held = 100.0 * np.arctanh(drawn.static[:, 1]) + drawn.sides * (last_open - prices.close[drawn.bars]) / PIP
    assert (np.bincount(drawn.sides + 1) > 20).all()
    assert drawn.returns == pytest.approx(np.where(drawn.sides == Side.FLAT, entered, held), abs=1e-3)


def test_a_network_that_sees_the_state_reaches_the_best_policy(market: MarketView, rule: Rule) -> None:
    ticks, costs = count(), list[ImitationSpent]()
    agent, spent = learn_to_imitate(
        rule,
        market,
        STARTS,
        ENVIRONMENT,
        MODEL,
        minutes=0.4,
        seed=0,
        clock=lambda: next(ticks) / 10.0,
        progress=costs.append,
    )
    assert spent.updates == 240
    assert costs[-1] == spent
    sessions = STARTS[::97]
    imitation = most_likely(agent, market.features, sessions, ENVIRONMENT.session_bars)
    best, reached = (score_rule(one, market.prices, sessions, ENVIRONMENT) for one in (rule, imitation))
    assert reached.pips.mean() > 0.95 * best.pips.mean() > 20.0


def test_zero_minutes_are_refused(market: MarketView, rule: Rule) -> None:
    with pytest.raises(SettingsError, match="minutes"):
        learn_to_imitate(rule, market, STARTS, ENVIRONMENT, MODEL, minutes=0.0, seed=0, clock=lambda: 0.0)
