"""The networks have the specified sizes, start with neutral predictions and stay bounded."""

import pytest
import torch
from torch import nn

from shared.model.config import ModelConfig
from shared.model.network import initial_network
from shared.model.tcn import ResidualBlock
from tests.shared.model.networks import SMALL, num_weights, randomized_network


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def test_the_reference_network_has_the_expected_number_of_weights() -> None:
    conv, norm, block = 240 * 240 * 3 + 240, 2 * 240, 2 * _linear(256, 256) + 2 * 256
    encoder = (9 * 240 * 3 + 240) + _linear(9, 240) + 5 * conv + 6 * norm
    static = _linear(6, 16) + _linear(16, 16)
    afterstate = _linear(260, 256) + block + 512 + _linear(256, 3) + _linear(256, 601)
    dynamics = _linear(263, 256) + 3 * block + 512 + _linear(256, 601)
    policy, value = 2 * block + _linear(256, 4), 2 * block + _linear(256, 601)
    expected = encoder + static + 512 + afterstate + dynamics + policy + value
    assert num_weights(initial_network(ModelConfig(), 0)) == expected == 2_535_458


def test_the_reference_networks_have_the_expected_shapes() -> None:
    network = initial_network(ModelConfig(), 0)
    shapes = {name: tuple(weight.shape) for name, weight in network.named_parameters() if weight.dim() > 1}
    dense = (256, 256)
    residual = {
        "to_afterstate.blocks": 1,
        "to_hidden.blocks": 3,
        "policy_head.blocks": 2,
        "value_head.blocks": 2,
    }
    assert shapes == {
        "encoder.blocks.0.conv1.weight": (240, 9, 3),
        "encoder.blocks.0.conv2.weight": (240, 240, 3),
        "encoder.blocks.0.shortcut.weight": (240, 9, 1),
        "encoder.blocks.1.conv1.weight": (240, 240, 3),
        "encoder.blocks.1.conv2.weight": (240, 240, 3),
        "encoder.blocks.2.conv1.weight": (240, 240, 3),
        "encoder.blocks.2.conv2.weight": (240, 240, 3),
        "static.0.weight": (16, 6),
        "static.2.weight": (16, 16),
        "to_afterstate.first.weight": (256, 256 + 4),
        "outcome_head.last.weight": (3, 256),
        "q_head.last.weight": (601, 256),
        "to_hidden.first.weight": (256, 256 + 4 + 3),
        "reward_head.last.weight": (601, 256),
        "policy_head.last.weight": (4, 256),
        "value_head.last.weight": (601, 256),
        **{
            f"{network}.{block}.{layer}.weight": dense
            for network, blocks in residual.items()
            for block in range(blocks)
            for layer in ("inner", "outer")
        },
    }
    parts = list(network.encoder.modules())
    assert [part.dilation for part in parts if isinstance(part, ResidualBlock)] == [1, 2, 4]
    assert [part.p for part in parts if isinstance(part, nn.Dropout)] == [0.1, 0.1, 0.1]
    assert network.support.positions[[0, 300, 600]].tolist() == [-300.0, 0.0, 300.0]


def test_a_new_network_predicts_uniform_policies_and_zero_values() -> None:
    network = initial_network(SMALL, 1).eval()
    hidden = network.representation(torch.randn(5, 32, 9), torch.randn(5, 6))
    afterstate = network.afterstate(hidden, torch.tensor([0, 1, 2, 3, 0]))
    for logits in (*network.prediction(hidden), *network.afterstate_heads(afterstate)):
        assert not logits.any()
    assert network.support.decode(network.prediction(hidden)[1]).abs().max() < 1e-3


def test_the_seed_determines_the_weights_and_not_torchs_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (initial_network(SMALL, seed).state_dict() for seed in (7, 7, 8))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["to_hidden.first.weight"], other["to_hidden.first.weight"])


def test_the_representation_combines_embedding_and_static_features() -> None:
    network = randomized_network()
    windows, static = torch.randn(4, 32, 9), torch.randn(4, 6)
    hidden = network.representation(windows, static)
    assert hidden.shape == (4, SMALL.hidden_size)
    torch.testing.assert_close(network.combine(network.encoder(windows), static), hidden)
    assert not torch.allclose(network.representation(windows, static + 1.0), hidden)


def test_actions_and_outcomes_change_the_next_state() -> None:
    network = randomized_network()
    hidden = torch.randn(1, SMALL.hidden_size).repeat(4, 1)
    afterstates = network.afterstate(hidden, torch.arange(4))
    assert len({tuple(row) for row in afterstates.tolist()}) == 4
    same = afterstates[:1].repeat(3, 1)
    for actions, outcomes in ((torch.arange(3), torch.zeros(3)), (torch.zeros(3), torch.arange(3))):
        following, rewards = network.dynamics(same, actions.long(), outcomes.long())
        assert rewards.shape == (3, SMALL.value_bins)
        assert len({tuple(row) for row in following.tolist()}) == 3


def test_an_unknown_action_is_refused() -> None:
    network = randomized_network()
    with pytest.raises(RuntimeError):
        network.afterstate(torch.randn(1, SMALL.hidden_size), torch.tensor([4]))


def test_hidden_states_keep_their_scale_over_a_long_unroll() -> None:
    network = randomized_network()
    generator = torch.Generator().manual_seed(0)
    hidden = network.combine(100.0 * torch.randn(8, SMALL.temporal_channels), torch.randn(8, 6))
    with torch.inference_mode():
        for _ in range(200):
            actions = torch.randint(4, (8,), generator=generator)
            outcomes = torch.randint(3, (8,), generator=generator)
            hidden, _ = network.dynamics(network.afterstate(hidden, actions), actions, outcomes)
            torch.testing.assert_close(hidden.mean(dim=-1), torch.zeros(8), atol=1e-5, rtol=0.0)
            torch.testing.assert_close(hidden.square().mean(dim=-1), torch.ones(8), atol=0.05, rtol=0.0)
