"""The optimum against brute force, and against its play on the synthetic markets."""

from functools import cache

import numpy as np
import pytest

from shared.environment.action import LEGAL, SUCCESSOR, Action
from shared.environment.environment import EnvironmentConfig, Prices, reset, step
from shared.environment.episode import replay
from shared.environment.reward import RewardScheme
from shared.errors import SettingsError
from shared.market.synthetic import LAWS, Market, OuLaw, synthesize_with_state
from shared.numeric import Float64, Int64
from studies.optimum import Chain, Optimum, best_rule, chain_of, solve, states_on_chain

PIP = 0.01

#: Two hidden states, one rising and one falling; moves are large against the spread.
TINY = Chain(
    successor=np.array([[0, 1], [1, 0]]),
    move=np.array([[3, -2], [-4, 2]]),
    probability=np.array([[0.7, 0.3], [0.6, 0.4]]),
    step_pips=1.0,
    drawdown_cap_pips=40.0,
)

ENVIRONMENTS = {
    "pnl": EnvironmentConfig(spread_pips=1.0, reward=RewardScheme.PNL, session_bars=4),
    "amddp1": EnvironmentConfig(
        spread_pips=2.0,
        reward=RewardScheme.AMDDP1,
        session_bars=4,
        entry_bonus=0.5,
        idle_penalty=0.3,
        drawdown_penalty=0.4,
    ),
    "a bonus above the spread": EnvironmentConfig(
        spread_pips=1.0, reward=RewardScheme.AMDDP1, session_bars=3, entry_bonus=2.0, drawdown_penalty=0.9
    ),
}


def prices_of(moves: list[int]) -> Prices:
    """Prices of bars that open at the previous close."""
    closes = 100.0 + PIP * np.concatenate(([0.0], np.cumsum([*moves, 0])))
    opens = np.append(closes[0], closes[:-1])
    return Prices(opens, closes, np.zeros(len(closes), np.int8), PIP)


def by_brute_force(
    environment: EnvironmentConfig,
    state: int,
    actions: tuple[int, ...] = (),
    moves: tuple[int, ...] = (),
    side: int = 1,
) -> float:
    """The best expected reward over all legal actions and all paths; `replay` computes each reward."""
    values = []
    for action in np.flatnonzero(LEGAL[side]).tolist():
        done = (*actions, action)
        if len(done) == environment.session_bars:
            values.append(float(replay(0, done, prices_of(list(moves)), environment).rewards.sum()))
            continue
        after = int(SUCCESSOR[side, action])
        values.append(
            sum(
                chance * by_brute_force(environment, following, done, (*moves, move), after)
                for following, move, chance in zip(
                    TINY.successor[state].tolist(),
                    TINY.move[state].tolist(),
                    TINY.probability[state].tolist(),
                    strict=True,
                )
            )
        )
    return max(values)


@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_the_value_equals_a_brute_force_search_over_all_paths(environment: EnvironmentConfig) -> None:
    optimum = solve(TINY, environment)
    for state in range(2):
        assert optimum.value[state] == pytest.approx(by_brute_force(environment, state), abs=1e-5)


@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_the_rule_earns_its_value_over_every_path_of_the_chain(environment: EnvironmentConfig) -> None:
    """Plays all paths at once, one per lane, and weights them by their probability."""
    optimum = solve(TINY, environment)
    num_moves = environment.session_bars - 1
    paths = np.stack(np.meshgrid(*[[0, 1]] * num_moves, indexing="ij"), axis=-1).reshape(-1, num_moves)
    for first in range(2):
        closes: list[int] = []
        states: list[int] = []
        starts: list[int] = []
        chances: list[float] = []
        for path in paths.tolist():
            state, chance, level = first, 1.0, 0
            starts.append(len(closes))
            closes.append(level)
            states.append(state)
            for way in path:
                chance *= TINY.probability[state, way]
                level += int(TINY.move[state, way])
                state = int(TINY.successor[state, way])
                closes.append(level)
                states.append(state)
            closes.append(level)  # the bar of the last execution
            states.append(state)
            chances.append(chance)
        closing = 100.0 + PIP * np.array(closes, np.float64)
        opening = np.append(closing[0], closing[:-1])
        prices = Prices(opening, closing, np.zeros(len(closing), np.int8), PIP)
        rewards = played(optimum, np.array(states), prices, np.array(starts), environment)
        assert rewards @ np.array(chances) == pytest.approx(optimum.value[first], abs=1e-5)


def played(
    optimum: Optimum, states: Int64, prices: Prices, starts: Int64, environment: EnvironmentConfig
) -> Float64:
    """`[S]` reward of each session under the optimum's rule."""
    rule, lanes, rewards = best_rule(optimum, states), reset(starts), np.zeros(len(starts))
    for _ in range(environment.session_bars):
        transition = step(lanes, rule(lanes), prices, environment)
        lanes = transition.lanes
        rewards += transition.reward
    return rewards


@cache
def market_bars(market: Market) -> tuple[Prices, Int64]:
    synthetic = synthesize_with_state(LAWS[market], 120_000, seed=11)
    return Prices.of(synthetic.bars), states_on_chain(LAWS[market], synthetic.state)


@pytest.mark.parametrize("reward", RewardScheme)
@pytest.mark.parametrize("market", Market)
def test_on_the_synthetic_market_the_rule_earns_its_computed_value(
    market: Market, reward: RewardScheme
) -> None:
    """Over a thousand sessions, mean earnings minus values are within four standard errors of 0."""
    environment = EnvironmentConfig(reward=reward, session_bars=100)
    prices, states = market_bars(market)
    starts = np.arange(150, len(prices) - 101, 101)
    optimum = solve(chain_of(LAWS[market]), environment)
    beyond = played(optimum, states, prices, starts, environment) - optimum.value[states[starts]]
    assert abs(beyond.mean()) <= 4.0 * beyond.std() / np.sqrt(len(beyond)) + 1e-6  # rewards are float32


def test_without_an_edge_the_best_policy_does_not_trade() -> None:
    optimum = solve(chain_of(LAWS[Market.GBM]), EnvironmentConfig(reward=RewardScheme.PNL))
    assert (optimum.entry == Action.HOLD).all()
    assert (optimum.value == 0.0).all()


def test_where_idling_costs_the_policy_enters_at_once_and_stays() -> None:
    """Idling for 360 bars costs 18; an entry costs the spread minus the bonus, plus a drawdown penalty."""
    optimum = solve(chain_of(LAWS[Market.GBM]), EnvironmentConfig(reward=RewardScheme.AMDDP1))
    assert optimum.entry[0, 0] != Action.HOLD
    assert -4.0 < optimum.value[0] < -3.0


def test_a_market_far_from_its_mean_is_sold_above_and_bought_below_it() -> None:
    law = OuLaw()
    optimum = solve(chain_of(law), EnvironmentConfig(reward=RewardScheme.PNL))
    below, mean, above = states_on_chain(law, np.array([-25.0, 0.0, 25.0])).tolist()
    assert [optimum.entry[100, state] for state in (below, mean, above)] == [
        Action.BUY,
        Action.HOLD,
        Action.SELL,
    ]


@pytest.mark.parametrize("market", Market)
def test_the_lattice_has_the_moments_of_the_law(market: Market) -> None:
    chain = chain_of(LAWS[market])
    assert chain.probability.sum(axis=1) == pytest.approx(1.0)
    mean = (chain.probability * chain.move).sum(axis=1) * chain.step_pips
    variance = (chain.probability * chain.move**2).sum(axis=1) - mean**2
    if market is Market.OU:
        law = OuLaw()
        middle = len(variance) // 2
        assert variance[middle] == pytest.approx(law.sigma_pips**2, rel=1e-3)
        assert mean[middle + 20] == pytest.approx(-20 * (1 - law.persistence), abs=1e-3)
    elif market is Market.GBM:
        assert variance[0] == pytest.approx(2.425**2, rel=1e-3)
        assert mean[0] == pytest.approx(0.0, abs=1e-9)
    else:
        rally = 0.0088 * 0.0 + 0.0011 * 0.0 + 0.9890 * 0.5 + 0.0011 * -0.5
        assert mean[1] == pytest.approx(rally, abs=1e-3)


def test_an_environment_that_does_not_fit_the_lattice_is_refused() -> None:
    with pytest.raises(SettingsError, match="multiple"):
        solve(TINY, EnvironmentConfig(spread_pips=1.5))
    with pytest.raises(SettingsError, match="financing"):
        solve(TINY, EnvironmentConfig(financing_pips_per_night=1.0))
