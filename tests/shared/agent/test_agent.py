"""The agent gives the results of its network, and each row has the same bits in any batch."""

import numpy as np
import pytest
import torch

from shared.agent.agent import Agent
from shared.engine.precision import Precision
from shared.errors import DataError, ShapeError
from shared.features.window import FIRST_WINDOW_BAR, windows
from shared.model.config import ModelConfig
from shared.numeric import Int8
from tests.shared.agent.markets import small_agent, small_market
from tests.shared.model.networks import SMALL, randomized_network

ROWS = 70


def _events(high: int) -> Int8:
    return np.random.default_rng(1).integers(high, size=ROWS).astype(np.int8)


def test_the_agent_gives_the_results_of_the_network() -> None:
    network = randomized_network(SMALL, seed=4)
    agent = Agent(network, version=3, precision=Precision.FLOAT32)
    rng = np.random.default_rng(0)
    window = windows(small_market().features, np.arange(400, 400 + ROWS))
    static = rng.normal(size=(ROWS, 6)).astype(np.float32)
    actions, outcomes = _events(4), _events(3)
    with torch.no_grad():
        hidden = network.representation(torch.from_numpy(window), torch.from_numpy(static))
        afterstate = network.afterstate(hidden, torch.from_numpy(actions).long())
        outcome_logits, q_logits = network.afterstate_heads(afterstate)
        following, reward_logits = network.dynamics(
            afterstate, torch.from_numpy(actions).long(), torch.from_numpy(outcomes).long()
        )
        policy_logits, value_logits = network.prediction(hidden)
        next_policy_logits, next_value_logits = network.prediction(following)
    decode = network.support.decode
    roots = agent.roots(agent.embed_windows(window), static, np.zeros(ROWS, np.int8))
    got_afterstate, probabilities, q_values = agent.afterstates(hidden.numpy(), actions)
    got_following, rewards, values = agent.successors(afterstate.numpy(), actions, outcomes)
    for got, expected in (
        (roots.hidden, hidden),
        (roots.policy_logits, policy_logits),
        (roots.values, decode(value_logits)),
        (got_afterstate, afterstate),
        (probabilities, torch.softmax(outcome_logits, dim=-1)),
        (q_values, decode(q_logits)),
        (got_following, following),
        (rewards, decode(reward_logits)),
        (agent.policies(following.numpy()), next_policy_logits),
        (values, decode(next_value_logits)),
    ):
        np.testing.assert_allclose(got, expected.numpy(), atol=2e-4, rtol=1e-5)
        assert got.dtype == np.float32
        assert got.shape == tuple(expected.shape)


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.BFLOAT16])
@pytest.mark.parametrize("config", [SMALL, ModelConfig()])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 33])
def test_a_row_is_the_same_bit_for_bit_in_any_batch(
    config: ModelConfig, size: int, precision: Precision
) -> None:
    agent = Agent(randomized_network(config, seed=5), version=0, precision=precision)
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(ROWS, config.hidden_size)).astype(np.float32)
    temporal = rng.normal(size=(ROWS, config.temporal_channels)).astype(np.float32)
    static = rng.normal(size=(ROWS, 6)).astype(np.float32)
    actions, outcomes, phases = _events(4), _events(3), np.zeros(ROWS, np.int8)
    for start in (0, 11, ROWS - size):
        rows = slice(start, start + size)
        together, part = (
            (
                *agent.afterstates(hidden[at], actions[at]),
                *agent.successors(hidden[at], actions[at], outcomes[at]),
                agent.policies(hidden[at]),
                agent.roots(temporal[at], static[at], phases[at]).hidden,
                agent.roots(temporal[at], static[at], phases[at]).values,
            )
            for at in (slice(None), rows)
        )
        for one, all_rows in zip(part, together, strict=True):
            assert one.tobytes() == all_rows[rows].tobytes()


def test_an_agent_keeps_its_weights_while_the_network_trains() -> None:
    network = randomized_network(SMALL, seed=6).train()
    agent = Agent(network, version=0)
    window = windows(small_market().features, np.arange(400, 410))
    before = agent.embed_windows(window)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    np.testing.assert_array_equal(agent.embed_windows(window), before)
    assert network.training


def test_a_span_has_the_embedding_of_every_window() -> None:
    agent, features = small_agent(), small_market().features
    span = agent.embed_span(features[FIRST_WINDOW_BAR - 31 : FIRST_WINDOW_BAR + 400])
    bars = np.arange(FIRST_WINDOW_BAR, FIRST_WINDOW_BAR + 400)
    np.testing.assert_array_equal(span, agent.embed_windows(windows(features, bars)))
    np.testing.assert_array_equal(
        span[100:], agent.embed_span(features[FIRST_WINDOW_BAR + 69 : FIRST_WINDOW_BAR + 400])
    )


def test_missing_features_are_refused() -> None:
    agent, features = small_agent(), small_market().features
    with pytest.raises(DataError, match="rows: row 0 holds a number that is not finite"):
        agent.embed_span(features[FIRST_WINDOW_BAR - 32 : FIRST_WINDOW_BAR + 1])
    with pytest.raises(DataError, match="windows: row 1"):
        agent.embed_windows(np.stack([features[200:232], np.full((32, 9), np.nan, np.float32)]))
    with pytest.raises(ShapeError, match="rows"):
        agent.embed_span(features[200:231])
    with pytest.raises(ShapeError, match="windows"):
        agent.embed_windows(features[200:230][None])
