"""The networks of shared.model.network in JAX, from the same weights, for inference.

The weights are from `benchmarks.peers.weights`. Every function takes them by name as its first argument.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array, lax

from shared.model.config import ModelConfig

Weights = Mapping[str, Array]

#: Default of torch.
LAYER_NORM_EPSILON = 1e-5


def encode(weights: Weights, windows: Array, config: ModelConfig) -> Array:
    """The plain pass, with every layer at every step of the padded window: `[N, window, F]` -> `[N, E]`."""
    steps = windows
    for index in range(config.encoder_blocks):
        dilation = 2**index
        padding = dilation * (config.kernel_size - 1)
        name = f"encoder.blocks.{index}"
        inner = jax.nn.relu(_convolve(weights, f"{name}.conv1", steps, dilation=dilation, padding=padding))
        inner = jax.nn.relu(_convolve(weights, f"{name}.conv2", inner, dilation=dilation, padding=padding))
        steps = jax.nn.relu(inner + _shortcut(weights, name, steps))
    return steps[:, -1]


def encode_thinned(weights: Weights, windows: Array, config: ModelConfig) -> Array:
    """Compute only the steps that the output depends on: `[N, window, F]` -> `[N, E]`."""
    steps = windows[:, -config.receptive_field :]
    for index in range(config.encoder_blocks):
        stride = 1 if index == config.encoder_blocks - 1 else 2
        name = f"encoder.blocks.{index}"
        inner = jax.nn.relu(_convolve(weights, f"{name}.conv1", steps))
        inner = jax.nn.relu(_convolve(weights, f"{name}.conv2", inner, stride=stride))
        kept = (inner.shape[1] - 1) * stride + 1
        steps = jax.nn.relu(inner + _shortcut(weights, name, steps[:, steps.shape[1] - kept :: stride]))
    return steps[:, -1]


def combine(weights: Weights, temporal: Array, static: Array) -> Array:
    """Embeddings `[N, E]` and static features `[N, S]` -> hidden states `[N, H]`."""
    static = _linear(weights, "static.2", jax.nn.relu(_linear(weights, "static.0", static)))
    return _layer_norm(weights, "hidden_norm", jnp.concatenate((temporal, static), axis=-1))


def prediction(weights: Weights, hidden: Array, config: ModelConfig) -> tuple[Array, Array]:
    """`[N, H]` -> policy logits `[N, A]`, values `[N]` pips."""
    policy_logits = _head(weights, "policy_head", hidden, config.policy_blocks)
    return policy_logits, _decode(_head(weights, "value_head", hidden, config.value_blocks), config)


def afterstate(
    weights: Weights, hidden: Array, actions: Array, config: ModelConfig
) -> tuple[Array, Array, Array]:
    """`[N, H]`, `[N]` -> afterstates `[N, H]`, outcome logits `[N, C]`, Q-values `[N]` pips."""
    events = jax.nn.one_hot(actions, config.num_actions)
    after = _transition(weights, "to_afterstate", hidden, events, config.afterstate_blocks)
    outcome_logits = _head(weights, "outcome_head", after, 0)
    return after, outcome_logits, _decode(_head(weights, "q_head", after, 0), config)


def dynamics(
    weights: Weights, afterstates: Array, actions: Array, outcomes: Array, config: ModelConfig
) -> tuple[Array, Array]:
    """`[N, H]`, `[N]`, `[N]` -> next hidden states `[N, H]`, rewards `[N]` pips."""
    events = jnp.concatenate(
        (jax.nn.one_hot(actions, config.num_actions), jax.nn.one_hot(outcomes, config.num_outcomes)), axis=-1
    )
    hidden = _transition(weights, "to_hidden", afterstates, events, config.dynamics_blocks)
    return hidden, _decode(_head(weights, "reward_head", hidden, 0), config)


def _linear(weights: Weights, name: str, inputs: Array) -> Array:
    return inputs @ weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _layer_norm(weights: Weights, name: str, inputs: Array) -> Array:
    centred = inputs - inputs.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    normal = centred * lax.rsqrt(variance + LAYER_NORM_EPSILON)
    return normal * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _residual(weights: Weights, name: str, inputs: Array) -> Array:
    inner = jax.nn.relu(_linear(weights, f"{name}.inner", _layer_norm(weights, f"{name}.norm", inputs)))
    return inputs + _linear(weights, f"{name}.outer", inner)


def _head(weights: Weights, name: str, inputs: Array, blocks: int) -> Array:
    for index in range(blocks):
        inputs = _residual(weights, f"{name}.blocks.{index}", inputs)
    return _linear(weights, f"{name}.last", inputs)


def _transition(weights: Weights, name: str, state: Array, events: Array, blocks: int) -> Array:
    inputs = jax.nn.relu(_linear(weights, f"{name}.first", jnp.concatenate((state, events), axis=-1)))
    for index in range(blocks):
        inputs = _residual(weights, f"{name}.blocks.{index}", inputs)
    return _layer_norm(weights, f"{name}.norm", inputs)


def _decode(logits: Array, config: ModelConfig) -> Array:
    """Mean in pips of the distribution over the value support: `[N, bins]` -> `[N]`."""
    positions = jnp.linspace(-config.value_bound_pips, config.value_bound_pips, config.value_bins)
    return jax.nn.softmax(logits) @ positions


def _convolve(
    weights: Weights, name: str, steps: Array, *, dilation: int = 1, padding: int = 0, stride: int = 1
) -> Array:
    outputs = lax.conv_general_dilated(
        steps,
        weights[f"{name}.weight"],
        window_strides=(stride,),
        padding=[(padding, 0)],
        rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    return outputs + weights[f"{name}.bias"]


def _shortcut(weights: Weights, name: str, steps: Array) -> Array:
    """The shortcut of a block: the identity if the number of channels is the same."""
    projection = f"{name}.shortcut"
    return _convolve(weights, projection, steps) if f"{projection}.weight" in weights else steps
