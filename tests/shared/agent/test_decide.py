"""Decisions do not depend on the batch or on how the embeddings were computed."""

import numpy as np
import pytest
import torch

from shared.agent.agent import Agent
from shared.agent.decide import decide
from shared.agent.exploration import Exploration, LaneDraws
from shared.environment.action import LEGAL, Action
from shared.environment.position import static_features
from shared.errors import DataError, ShapeError
from shared.features.window import windows
from shared.model.config import ModelConfig
from shared.numeric import Float32, Int64
from shared.search.config import SearchConfig, Selection
from tests.shared.agent.markets import small_agent, small_market
from tests.shared.model.networks import randomized_network

BOTH = pytest.mark.parametrize("selection", list(Selection))
BARS = np.arange(300, 364)


def _positions(count: int) -> Float32:
    """Flat, long and short positions with random pnl."""
    rng = np.random.default_rng(0)
    side = (np.arange(count) % 3 - 1).astype(np.int8)
    peak = rng.uniform(0, 50, count)
    pnl = peak - rng.uniform(0, 60, count)
    held = rng.integers(1, 100, count)
    return static_features(side, pnl, held, peak, peak - pnl, 5.0 * (peak - pnl))


def _window_embeddings(agent: Agent, bars: Int64) -> Float32:
    return agent.embed_windows(windows(small_market().features, bars))


def _span_embeddings(agent: Agent, bars: Int64) -> Float32:
    first, last = int(bars[0]), int(bars[-1])
    return agent.embed_span(small_market().features[first - 31 : last + 1])


@BOTH
@pytest.mark.parametrize("simulations", [1, 5, 25])
def test_windows_and_a_full_session_lead_to_the_same_actions(selection: Selection, simulations: int) -> None:
    agent, static, config = small_agent(), _positions(64), SearchConfig(selection, simulations)
    from_span = decide(agent, _span_embeddings(agent, BARS), static, config)
    from_windows = decide(agent, _window_embeddings(agent, BARS), static, config)
    np.testing.assert_array_equal(from_windows.actions, from_span.actions)
    np.testing.assert_allclose(from_windows.policies, from_span.policies, atol=1e-3)
    np.testing.assert_allclose(from_windows.values, from_span.values, atol=1e-2)
    assert len(set(from_span.actions.tolist())) >= 3  # not one constant action


@BOTH
@pytest.mark.parametrize("size", [1, 3, 4, 7, 63])
def test_a_decision_is_the_same_bit_for_bit_in_any_batch(selection: Selection, size: int) -> None:
    agent = Agent(randomized_network(ModelConfig(), seed=2), version=1)
    temporal, static, config = _span_embeddings(agent, BARS), _positions(64), SearchConfig(selection)
    together = decide(agent, temporal, static, config)
    for rows in (np.arange(64)[i : i + size] for i in range(0, 64, size)):
        part = decide(agent, temporal[rows], static[rows], config)
        for name in ("actions", "policies", "values", "q_values", "outcome_probabilities", "visits"):
            assert getattr(part, name).tobytes() == getattr(together, name)[rows].tobytes(), name


def test_one_decision_from_a_window_equals_that_of_a_session() -> None:
    """Inference embeds one window at a time, self-play complete sessions."""
    agent, static, config = small_agent(), _positions(64), SearchConfig()
    session = decide(agent, _span_embeddings(agent, BARS), static, config)
    for row in range(64):
        alone = decide(agent, _window_embeddings(agent, BARS[row : row + 1]), static[row : row + 1], config)
        assert alone.actions[0] == session.actions[row]
        np.testing.assert_allclose(alone.policies[0], session.policies[row], atol=1e-3)


@BOTH
def test_exploration_chooses_only_legal_actions(selection: Selection) -> None:
    agent, static, config = small_agent(), _positions(64), SearchConfig(selection)
    temporal, legal = _span_embeddings(agent, BARS), LEGAL[_positions(64)[:, 0].astype(int) + 1]
    draws = LaneDraws.draw(Exploration(2.0, epsilon=0.5), np.arange(64), 20, 4, 1.0)
    seen = []
    for step in range(20):
        decisions = decide(agent, temporal, static, config, draws.at(step))
        assert legal[np.arange(64), decisions.actions].all()
        np.testing.assert_allclose(decisions.policies.sum(axis=1), 1.0, atol=1e-6)
        np.testing.assert_allclose(decisions.outcome_probabilities.sum(axis=1), 1.0, atol=1e-6)
        assert not decisions.policies[~legal].any()
        seen.append(decisions.actions)
    assert len(np.unique(seen, axis=0)) > 1


def test_without_exploration_nothing_is_random() -> None:
    agent, static = small_agent(), _positions(64)
    temporal = _span_embeddings(agent, BARS)
    for config in (SearchConfig(Selection.GUMBEL), SearchConfig(Selection.PUCT)):
        first = decide(agent, temporal, static, config)
        np.random.seed(1)  # noqa: NPY002 (the global streams must not matter)
        torch.manual_seed(1)
        second = decide(agent, temporal, static, config)
        assert first.policies.tobytes() == second.policies.tobytes()
        np.testing.assert_array_equal(first.actions, second.actions)


def test_a_flat_agent_holds_buys_or_sells() -> None:
    agent = small_agent()
    decisions = decide(agent, _span_embeddings(agent, BARS), np.zeros((64, 6), np.float32), SearchConfig())
    assert set(decisions.actions.tolist()) <= {Action.HOLD, Action.BUY, Action.SELL}
    assert np.isnan(decisions.q_values[:, Action.CLOSE]).all()


def test_invalid_input_is_refused() -> None:
    agent, static = small_agent(), _positions(4)
    temporal = _span_embeddings(agent, BARS[:4])
    with pytest.raises(ShapeError, match="temporal"):
        decide(agent, temporal[:, :5], static, SearchConfig())
    with pytest.raises(ShapeError, match="static"):
        decide(agent, temporal, static[:3], SearchConfig())
    wrong = static.copy()
    wrong[2, 0] = 0.5
    with pytest.raises(DataError, match=r"row 2: position_side is 0\.5"):
        decide(agent, temporal, wrong, SearchConfig())
    wrong = static.copy()
    wrong[1, 3] = np.nan
    with pytest.raises(DataError, match="static: row 1"):
        decide(agent, temporal, wrong, SearchConfig())
