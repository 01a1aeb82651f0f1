"""The most frequent step of the search with weights packed for oneDNN.

It uses the internal operators that torch's compiler emits. They can change with any version of torch, so only
this benchmark uses them.
"""

from typing import Any

import torch
from torch import Tensor, nn

from shared.model.network import Head, Network, ResidualLayers, Transition


class PackedSuccessors:
    """Dynamics, reward and value of a network, packed for a fixed number of rows per call."""

    def __init__(self, network: Network, rows: int) -> None:
        dtype = network.to_hidden.first.weight.dtype
        self._actions = torch.eye(network.config.num_actions, dtype=dtype)
        self._outcomes = torch.eye(network.config.num_outcomes, dtype=dtype)
        self._to_hidden = _PackedTransition(network.to_hidden, rows)
        self._reward = _PackedHead(network.reward_head, rows)
        self._value = _PackedHead(network.value_head, rows)
        self._decode = network.support.decode

    def __call__(self, afterstates: Tensor, actions: Tensor, outcomes: Tensor) -> tuple[Tensor, ...]:
        """`[N, H]`, int64 `[N]`, int64 `[N]` -> hidden states, rewards, values."""
        events = (self._actions[actions], self._outcomes[outcomes])
        hidden = self._to_hidden(torch.cat((afterstates, *events), dim=-1))
        return hidden, self._decode(self._reward(hidden)), self._decode(self._value(hidden))


class _PackedLinear:
    """A linear layer with weights in the layout of oneDNN for a number of rows."""

    def __init__(self, layer: nn.Linear, rows: int) -> None:
        self._operators: Any = torch.ops.mkldnn
        self._weight = self._operators._reorder_linear_weight(layer.weight, rows)
        self._bias = layer.bias

    def __call__(self, inputs: Tensor, activation: str = "none") -> Tensor:
        outputs: Tensor = self._operators._linear_pointwise(
            inputs, self._weight, self._bias, activation, [], ""
        )
        return outputs

    def added_to(self, inputs: Tensor, others: Tensor) -> Tensor:
        """The output of the layer plus `others`."""
        outputs: Tensor = self._operators._linear_pointwise.binary(
            inputs, others, self._weight, self._bias, "add"
        )
        return outputs


class _PackedBlocks:
    """Residual blocks of packed layers."""

    def __init__(self, blocks: nn.Sequential, rows: int) -> None:
        layers = [block for block in blocks if isinstance(block, ResidualLayers)]
        self._blocks = [
            (block.norm, _PackedLinear(block.inner, rows), _PackedLinear(block.outer, rows))
            for block in layers
        ]

    def __call__(self, states: Tensor) -> Tensor:
        for norm, inner, outer in self._blocks:
            states = outer.added_to(inner(norm(states), "relu"), states)
        return states


class _PackedHead:
    """A head of packed layers."""

    def __init__(self, head: Head, rows: int) -> None:
        self._blocks, self._last = _PackedBlocks(head.blocks, rows), _PackedLinear(head.last, rows)

    def __call__(self, states: Tensor) -> Tensor:
        return self._last(self._blocks(states))


class _PackedTransition:
    """A transition of packed layers."""

    def __init__(self, transition: Transition, rows: int) -> None:
        self._first = _PackedLinear(transition.first, rows)
        self._blocks, self._norm = _PackedBlocks(transition.blocks, rows), transition.norm

    def __call__(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self._norm(self._blocks(self._first(inputs, "relu")))
        return outputs
