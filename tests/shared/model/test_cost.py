"""Weights and multiply-adds computed from the sizes equal those of the torch modules."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from shared.model.config import ModelConfig
from shared.model.cost import (
    network_costs,
    plain_encoding,
    span_encoding,
    static_encoding,
    window_encoding,
)
from shared.model.network import Network, initial_network
from shared.model.tcn import ResidualBlock, TemporalEncoder
from shared.numeric import Float32, Int8
from shared.search.config import SearchConfig, Selection
from shared.search.model import ActionRules, Roots
from shared.search.search import search
from tests.shared.model.networks import num_weights


def _multiply_adds(call: Callable[[], object]) -> int:
    """Multiply-adds counted by torch, which counts two operations for each."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops()) // 2


def _weights(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@st.composite
def _configs(draw: st.DrawFn) -> ModelConfig:
    blocks, kernel_size = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    receptive_field = 1 + 2 * (kernel_size - 1) * (2**blocks - 1)
    return ModelConfig(
        window_bars=receptive_field + draw(st.integers(0, 3)),
        temporal_features=draw(st.integers(1, 9)),
        static_features=draw(st.integers(1, 6)),
        num_actions=draw(st.integers(2, 5)),
        num_outcomes=draw(st.integers(2, 4)),
        temporal_channels=draw(st.integers(1, 12)),  # if equal to the features: no shortcut
        static_channels=draw(st.integers(1, 5)),
        encoder_blocks=blocks,
        kernel_size=kernel_size,
        afterstate_blocks=draw(st.integers(0, 2)),
        dynamics_blocks=draw(st.integers(1, 3)),
        policy_blocks=draw(st.integers(1, 2)),
        value_blocks=draw(st.integers(1, 2)),
        value_bins=draw(st.integers(3, 21)),
    )


def _without_padding(encoder: TemporalEncoder, rows: Tensor) -> None:
    """Run the convolutions of every block over consecutive bars without padding."""
    steps = rows[encoder.window_bars - encoder.receptive_field :].T[None]
    for block in encoder.blocks:
        assert isinstance(block, ResidualBlock)
        dilation = block.dilation
        inner = functional.conv1d(steps, block.conv1.weight, dilation=dilation)
        inner = functional.conv1d(inner, block.conv2.weight, dilation=dilation)
        steps = inner + block.shortcut(steps[..., -inner.shape[-1] :])


@settings(max_examples=15)
@given(config=_configs(), rows=st.integers(1, 4), bars=st.integers(1, 20))
def test_costs_equal_those_that_torch_counts(config: ModelConfig, rows: int, bars: int) -> None:
    network, costs = initial_network(config, 0).eval(), network_costs(config)
    hidden = torch.randn(rows, config.hidden_size)
    actions = torch.zeros(rows, dtype=torch.int64)
    windows = torch.randn(rows, config.window_bars, config.temporal_features)
    span = torch.randn(bars + config.window_bars - 1, config.temporal_features)
    static = torch.randn(rows, config.static_features)
    counted = {
        "plain": _multiply_adds(lambda: network.encoder(windows)),
        "window": _multiply_adds(lambda: network.encoder.encode_windows(windows)),
        "static": _multiply_adds(lambda: network.static(static)),
        "representation": _multiply_adds(lambda: network.representation(windows, static)),
        "afterstate": _multiply_adds(lambda: network.afterstate_heads(network.afterstate(hidden, actions))),
        "dynamics": _multiply_adds(lambda: network.dynamics(hidden, actions, actions)),
        "prediction": _multiply_adds(lambda: network.prediction(hidden)),
        "policy": _multiply_adds(lambda: network.policy_head(hidden)),
        "value": _multiply_adds(lambda: network.value_head(hidden)),
    }
    computed = {
        "plain": plain_encoding(config),
        "window": window_encoding(config),
        "static": static_encoding(config),
        "representation": costs.representation.multiply_adds,
        "afterstate": costs.afterstate.multiply_adds,
        "dynamics": costs.dynamics.multiply_adds,
        "prediction": costs.prediction,
        "policy": costs.policy.multiply_adds,
        "value": costs.value.multiply_adds,
    }
    assert {name: rows * each for name, each in computed.items()} == counted
    assert span_encoding(config, bars) == _multiply_adds(lambda: _without_padding(network.encoder, span))
    assert costs.successor == computed["dynamics"] + computed["value"]
    assert costs.weights == num_weights(network)
    assert _weights_by_network(network) == {
        "representation": costs.representation.weights,
        "afterstate": costs.afterstate.weights,
        "dynamics": costs.dynamics.weights,
        "policy": costs.policy.weights,
        "value": costs.value.weights,
    }


def _weights_by_network(network: Network) -> dict[str, int]:
    return {
        "representation": _weights(network.encoder, network.static, network.hidden_norm),
        "afterstate": _weights(network.to_afterstate, network.outcome_head, network.q_head),
        "dynamics": _weights(network.to_hidden, network.reward_head),
        "policy": _weights(network.policy_head),
        "value": _weights(network.value_head),
    }


def test_costs_of_the_reference_sizes_computed_by_hand() -> None:
    config, wide, square = ModelConfig(), 240 * 240 * 3, 256 * 256
    first, shortcut, static, bins = 9 * 240 * 3, 9 * 240, 6 * 16 + 16 * 16, 256 * 601
    # Five wide convolutions over all 32 steps, or over only the required 13, 11, 5, 3 and 1 steps.
    assert plain_encoding(config) == 32 * (first + shortcut + 5 * wide) == 27_924_480
    assert window_encoding(config) == 27 * first + 13 * shortcut + 33 * wide == 5_905_440
    # One bar needs 29 rows: the convolutions compute 27, 25, then 21, 17, then 9, 1 steps.
    assert span_encoding(config, 1) == 27 * first + 25 * shortcut + (25 + 21 + 17 + 9 + 1) * wide
    another_bar = span_encoding(config, 361) - span_encoding(config, 360)
    assert another_bar == first + shortcut + 5 * wide == 872_640
    costs = network_costs(config)
    assert costs.representation.multiply_adds == 5_905_440 + static
    assert costs.afterstate.multiply_adds == 260 * 256 + 2 * square + 256 * 3 + bins
    assert costs.dynamics.multiply_adds == 263 * 256 + 6 * square + bins
    assert costs.policy.multiply_adds == 4 * square + 256 * 4
    assert costs.value.multiply_adds == 4 * square + bins
    assert costs.successor == 263 * 256 + 10 * square + 2 * bins == 1_030_400


class _CountingModel:
    """A model with random results that sums the cost of its calls."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self.config, self.costs = config, network_costs(config)
        self.rng = np.random.default_rng(seed)
        self.spent = 0

    def afterstates(self, hidden: Float32, actions: Int8) -> tuple[Float32, Float32, Float32]:
        self.spent += len(actions) * self.costs.afterstate.multiply_adds
        outcomes = self.rng.dirichlet(np.ones(self.config.num_outcomes), len(actions))
        return hidden, outcomes.astype(np.float32), self._numbers(len(actions))

    def successors(
        self, afterstates: Float32, actions: Int8, outcomes: Int8
    ) -> tuple[Float32, Float32, Float32]:
        self.spent += len(actions) * self.costs.successor
        return afterstates, self._numbers(len(actions)), self._numbers(len(actions))

    def policies(self, hidden: Float32) -> Float32:
        self.spent += len(hidden) * self.costs.policy.multiply_adds
        return self._numbers(len(hidden), self.config.num_actions)

    def _numbers(self, *shape: int) -> Float32:
        return self.rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("selection", list(Selection))
@pytest.mark.parametrize("simulations", [1, 2, 5, 25])
def test_no_decision_exceeds_the_bound_on_its_cost(selection: Selection, simulations: int) -> None:
    config = ModelConfig()
    rules = ActionRules(np.ones((1, 4), np.bool_), np.zeros((1, 4), np.int8))
    spent = []
    for seed in range(10):
        model = _CountingModel(config, seed)
        # If one action is much more likely, puct visits only this one, and each visit adds a node.
        logits = np.array([[20.0, 0.0, 0.0, 0.0]], np.float32) * (seed % 2)
        roots = Roots(
            np.zeros((1, config.hidden_size), np.float32),
            logits,
            np.zeros(1, np.float32),
            np.zeros(1, np.int8),
        )
        search(model, roots, rules, SearchConfig(selection, simulations))
        spent.append(model.spent + model.costs.prediction)
    bound = network_costs(config).decision(simulations, 4)
    assert max(spent) <= bound
    if simulations == 1 or (selection is Selection.PUCT and simulations == 2):
        assert max(spent) == bound
