"""The number of weights and multiply-adds of each network, computed from the sizes.

Multiply-adds count the products of linear layers and convolutions. Biases, norms, activations and the
decoding of categorical values are not counted.
"""

from dataclasses import dataclass

from shared.model.config import ModelConfig


@dataclass(frozen=True)
class Cost:
    """Trained weights, and multiply-adds per row."""

    weights: int
    multiply_adds: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.weights + other.weights, self.multiply_adds + other.multiply_adds)


@dataclass(frozen=True)
class NetworkCosts:
    """The cost of each network, including its heads."""

    representation: Cost  # per window
    afterstate: Cost  # with the chance outcome and Q-value heads
    dynamics: Cost  # with the reward head
    policy: Cost
    value: Cost

    @property
    def weights(self) -> int:
        """Trained weights of all networks."""
        parts = (self.representation, self.afterstate, self.dynamics, self.policy, self.value)
        return sum(part.weights for part in parts)

    @property
    def successor(self) -> int:
        """Multiply-adds of one `Model.successors` row: dynamics, reward and value."""
        return self.dynamics.multiply_adds + self.value.multiply_adds

    @property
    def prediction(self) -> int:
        """Multiply-adds of policy and value for one hidden state."""
        return self.policy.multiply_adds + self.value.multiply_adds

    def decision(self, simulations: int, legal_actions: int) -> int:
        """Largest number of multiply-adds of one decision, without the representation.

        This counts the policy and value of the root and its legal afterstates. Every simulation adds a
        successor, or the policy and an afterstate of a node, whichever costs more. The first simulation adds
        nothing, because it visits an afterstate that is already evaluated.
        """
        simulation = max(self.successor, self.policy.multiply_adds + self.afterstate.multiply_adds)
        return (
            self.prediction + legal_actions * self.afterstate.multiply_adds + (simulations - 1) * simulation
        )


def network_costs(config: ModelConfig) -> NetworkCosts:
    """Cost of every network; the representation is computed with `TemporalEncoder.encode_windows`."""
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
    """Multiply-adds of one window in `TemporalEncoder.forward`, which computes every layer at every step."""
    steps = config.window_bars
    return sum(_block(config, inputs, steps, steps) for inputs in _block_inputs(config))


def window_encoding(config: ModelConfig) -> int:
    """Multiply-adds of one window in `TemporalEncoder.encode_windows`."""
    total, steps, taps = 0, config.receptive_field, config.kernel_size
    for block, inputs in enumerate(_block_inputs(config)):
        stride = 1 if block == config.encoder_blocks - 1 else 2
        inner = steps - taps + 1
        steps = (inner - taps) // stride + 1
        total += _block(config, inputs, inner, steps)
    return total


def span_encoding(config: ModelConfig, num_bars: int) -> int:
    """Multiply-adds of `num_bars` consecutive bars in one pass of `TemporalEncoder.encode_spans`."""
    total, steps = 0, num_bars + config.receptive_field - 1
    for block, inputs in enumerate(_block_inputs(config)):
        reach = (config.kernel_size - 1) << block
        total += _block(config, inputs, steps - reach, steps - 2 * reach)
        steps -= 2 * reach
    return total


def static_encoding(config: ModelConfig) -> int:
    """Multiply-adds of the layers over the static features."""
    return _static(config).multiply_adds


def _block_inputs(config: ModelConfig) -> list[int]:
    """Input channels of each block of the encoder."""
    return [config.temporal_features] + [config.temporal_channels] * (config.encoder_blocks - 1)


def _block(config: ModelConfig, inputs: int, inner: int, outer: int) -> int:
    """Multiply-adds of a block whose convolutions compute `inner` and `outer` steps."""
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
