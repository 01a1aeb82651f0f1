"""How large the networks are and what a row of each costs, from their sizes alone.

A multiply-add is one weight of a linear layer or a convolution meeting one number; biases, norms,
activations and the means over bins are left out.
"""

from dataclasses import dataclass

from shared.model.config import ModelConfig


@dataclass(frozen=True)
class Cost:
    """Trained weights, and multiply-adds of one row."""

    weights: int
    multiply_adds: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.weights + other.weights, self.multiply_adds + other.multiply_adds)


@dataclass(frozen=True)
class NetworkCosts:
    """What each of the five networks costs, its heads included."""

    representation: Cost  # of one window
    afterstate: Cost  # with chance outcomes and Q-value
    dynamics: Cost  # with reward
    policy: Cost
    value: Cost

    @property
    def weights(self) -> int:
        """Trained weights, all networks together."""
        parts = (self.representation, self.afterstate, self.dynamics, self.policy, self.value)
        return sum(part.weights for part in parts)

    @property
    def successor(self) -> int:
        """Multiply-adds of what search makes most: dynamics, reward and value of one row."""
        return self.dynamics.multiply_adds + self.value.multiply_adds

    @property
    def prediction(self) -> int:
        """Multiply-adds of the policy and the value of one hidden state."""
        return self.policy.multiply_adds + self.value.multiply_adds

    def decision(self, simulations: int, legal_actions: int) -> int:
        """Multiply-adds of one decision from its hidden state on, at most.

        The root's policy and value, its legal afterstates, and for each simulation but the first, which
        visits an afterstate that is known already, a successor, or a node's policy and an afterstate.
        """
        node = max(self.successor, self.policy.multiply_adds + self.afterstate.multiply_adds)
        return self.prediction + legal_actions * self.afterstate.multiply_adds + (simulations - 1) * node


def network_costs(config: ModelConfig) -> NetworkCosts:
    """Every network's cost; the representation's is of the encoder's one-window form."""
    size, bins = config.hidden_size, config.value_bins
    events = config.num_actions + config.num_outcomes
    encoder = Cost(_encoder_weights(config), window_encoding(config))
    return NetworkCosts(
        representation=encoder + _static(config) + _norm(size),
        afterstate=_transition(size, config.num_actions, config.afterstate_blocks)
        + _linear(size, config.num_outcomes)
        + _linear(size, bins),
        dynamics=_transition(size, events, config.dynamics_blocks) + _linear(size, bins),
        policy=_residual(size, config.policy_blocks) + _linear(size, config.num_actions),
        value=_residual(size, config.value_blocks) + _linear(size, bins),
    )


def plain_encoding(config: ModelConfig) -> int:
    """Multiply-adds of one window's temporal embedding by the plain pass, every layer over every step."""
    steps = config.window_bars
    return sum(_block(config, inputs, steps, steps) for inputs in _block_inputs(config))


def window_encoding(config: ModelConfig) -> int:
    """Multiply-adds of one window's temporal embedding from only the steps that its last one depends on."""
    total, steps, taps = 0, config.receptive_field, config.kernel_size
    for block, inputs in enumerate(_block_inputs(config)):
        stride = 1 if block == config.encoder_blocks - 1 else 2
        inner = steps - taps + 1
        steps = (inner - taps) // stride + 1
        total += _block(config, inputs, inner, steps)
    return total


def span_encoding(config: ModelConfig, num_bars: int) -> int:
    """Multiply-adds of the temporal embeddings of so many consecutive bars in one pass."""
    total, steps = 0, num_bars + config.receptive_field - 1
    for block, inputs in enumerate(_block_inputs(config)):
        reach = (config.kernel_size - 1) << block
        total += _block(config, inputs, steps - reach, steps - 2 * reach)
        steps -= 2 * reach
    return total


def static_encoding(config: ModelConfig) -> int:
    """Multiply-adds of the static features' part of a hidden state."""
    return _static(config).multiply_adds


def _block_inputs(config: ModelConfig) -> list[int]:
    """Channels that each block of the encoder reads."""
    return [config.temporal_features] + [config.temporal_channels] * (config.encoder_blocks - 1)


def _block(config: ModelConfig, inputs: int, inner: int, outer: int) -> int:
    """Multiply-adds of a block whose two convolutions make so many steps."""
    channels, taps = config.temporal_channels, config.kernel_size
    shortcut = 0 if inputs == channels else inputs * channels
    return inner * inputs * channels * taps + outer * (channels * channels * taps + shortcut)


def _encoder_weights(config: ModelConfig) -> int:
    channels, taps = config.temporal_channels, config.kernel_size
    total = 0
    for inputs in _block_inputs(config):
        first, second = inputs * channels * taps + channels, channels * channels * taps + channels
        shortcut = 0 if inputs == channels else _linear(inputs, channels).weights
        total += first + second + shortcut + 2 * _norm(channels).weights
    return total


def _static(config: ModelConfig) -> Cost:
    channels = config.static_channels
    return _linear(config.static_features, channels) + _linear(channels, channels)


def _transition(size: int, events: int, blocks: int) -> Cost:
    return _linear(size + events, size) + _residual(size, blocks) + _norm(size)


def _residual(size: int, blocks: int) -> Cost:
    block = _norm(size) + _linear(size, size) + _linear(size, size)
    return Cost(blocks * block.weights, blocks * block.multiply_adds)


def _linear(inputs: int, outputs: int) -> Cost:
    return Cost(inputs * outputs + outputs, inputs * outputs)


def _norm(size: int) -> Cost:
    return Cost(2 * size, 0)
