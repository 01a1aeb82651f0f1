"""Untrained networks that resemble trained ones, with random heads and batch-norm statistics."""

import torch
from torch import nn

from shared.model.config import ModelConfig
from shared.model.network import EVENT_GAIN, STATIC_GAINS, Network, initial_network

#: Small networks: 16 temporal and 16 static channels.
SMALL = ModelConfig(temporal_channels=16, static_channels=16, value_bins=61)


def randomized_network(config: ModelConfig = SMALL, seed: int = 0, scale: float = 0.5) -> Network:
    """A network with random heads instead of zeros, and random statistics in every batch norm."""
    network = initial_network(config, seed)
    generator = torch.Generator().manual_seed(seed)
    heads = (
        network.outcome_head,
        network.q_head,
        network.reward_head,
        network.policy_head,
        network.value_head,
    )
    with torch.no_grad():
        # The window must have as much influence as position, action and outcome.
        for transition in (network.to_afterstate, network.to_hidden):
            transition.first.weight *= 3.0
            transition.first.weight[:, config.hidden_size :] /= EVENT_GAIN
        layers = [layer for layer in network.static if isinstance(layer, nn.Linear)]
        for layer, gain in zip(layers, STATIC_GAINS, strict=True):
            layer.weight /= gain
        for head in heads:
            head.last.weight.normal_(0.0, scale, generator=generator)
            head.last.bias.normal_(0.0, scale, generator=generator)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0.0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0.0, 0.3, generator=generator)
    return network.eval()


def num_weights(network: Network) -> int:
    """The number of trained weights."""
    return sum(parameter.numel() for parameter in network.parameters())
