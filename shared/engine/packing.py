"""Packs trained weights in the order in which the kernels use them.

Packing folds batch norm into the convolution before it, and the gain and bias of a layer norm into the linear
layer after it. One-hot inputs become an index of bias vectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.engine.tile import PANEL
from shared.errors import DataError, ShapeError
from shared.model.config import ModelConfig
from shared.numeric import Float32, Float64

_EPSILON = 1e-5  # of torch's BatchNorm1d
_CACHE_LINE = 64
_COUNTER = ".num_batches_tracked"  # of batch norm; used only in training


@dataclass(frozen=True)
class Tapes:
    """One tape per network. The function that packs a tape documents its order."""

    encoder: Float32
    representation: Float32
    policy: Float32
    value: Float32
    afterstate: Float32
    dynamics: Float32


def packed(weights: Mapping[str, Float32], config: ModelConfig, *, paired: bool) -> Tapes:
    """Pack the weights of all networks.

    Args:
        weights: arrays by their names in `Network.state_dict`.
        config: sizes of the networks.
        paired: whether weights and inputs of matrix products are bfloat16.
    Raises:
        ShapeError: the shape of a weight does not fit the sizes.
        DataError: a weight is missing, unknown or not finite.
    """
    named = _Weights(weights)
    tapes = Tapes(
        encoder=_encoder(named, config, _Writer(paired=paired)),
        representation=_representation(named, config, _Writer(paired=paired)),
        policy=_head(
            named, "policy_head", config.policy_blocks, config.num_actions, config, _Writer(paired=paired)
        ),
        value=_head(
            named, "value_head", config.value_blocks, config.value_bins, config, _Writer(paired=paired)
        ),
        afterstate=_afterstate(named, config, _Writer(paired=paired)),
        dynamics=_dynamics(named, config, _Writer(paired=paired)),
    )
    named.require_all_used()
    return tapes


class _Weights:
    """Weights by name. It checks their shapes and records which are used."""

    def __init__(self, weights: Mapping[str, Float32]) -> None:
        self._weights, self._unused = weights, set(weights)

    def require_all_used(self) -> None:
        unknown = sorted(name for name in self._unused if not name.endswith(_COUNTER))
        if unknown:
            raise DataError(f"weight {unknown[0]} belongs to no network")

    def get(self, name: str, *shape: int) -> Float64:
        if name not in self._weights:
            raise DataError(f"weight {name} is missing")
        self._unused.discard(name)
        array = np.asarray(self._weights[name], np.float64)
        if array.shape != shape:
            raise ShapeError(name, array.shape, shape)
        if not np.isfinite(array).all():
            raise DataError(f"weight {name} holds a number that is not finite")
        return array


class _Writer:
    """Appends layers to a tape."""

    def __init__(self, *, paired: bool) -> None:
        self._paired, self._parts = paired, list[Float32]()

    def linear(self, weight: Float64, biases: Float64) -> None:
        """Append a linear layer or convolution.

        Args:
            weight: `[columns, taps, depth]`.
            biases: `[tables, columns]` bias vectors to choose from.
        """
        columns, taps, depth = weight.shape
        width = -(-columns // PANEL) * PANEL
        wide = np.zeros((width, taps, depth + depth % 2 if self._paired else depth), np.float32)
        wide[:columns, :, :depth] = weight
        tables = np.zeros((len(biases), width), np.float32)
        tables[:, :columns] = biases
        panels = wide.reshape(width // PANEL, PANEL, taps, -1)
        if self._paired:
            halves = _rounded(panels).reshape(*panels.shape[:3], -1, 2).transpose(0, 2, 3, 1, 4)
            words = np.ascontiguousarray(halves).view(np.float32)
        else:
            words = panels.transpose(0, 2, 3, 1)
        self._parts += [tables.ravel(), words.ravel()]

    def gain(self, weight: Float64, bias: Float64) -> None:
        """Append the gain and bias of a layer norm, `[columns]` each."""
        for row in (weight, bias):
            wide = np.zeros(-(-len(row) // PANEL) * PANEL, np.float32)
            wide[: len(row)] = row
            self._parts.append(wide)

    def finished(self) -> Float32:
        """The tape as one array that is aligned to a cache line."""
        total = sum(map(len, self._parts))
        buffer = np.empty(total + _CACHE_LINE // 4, np.float32)
        skipped = (-buffer.ctypes.data % _CACHE_LINE) // 4
        tape: Float32 = buffer[skipped : skipped + total]
        tape[:] = np.concatenate(self._parts)
        return tape


def _encoder(named: _Weights, config: ModelConfig, tape: _Writer) -> Float32:
    """Pack each block: the shortcut if the block has one, then both convolutions."""
    channels, taps = config.temporal_channels, config.kernel_size
    for block in range(config.encoder_blocks):
        inputs = channels if block else config.temporal_features
        prefix = f"encoder.blocks.{block}"
        if inputs != channels:
            shortcut = named.get(f"{prefix}.shortcut.weight", channels, inputs, 1)
            tape.linear(shortcut.transpose(0, 2, 1), named.get(f"{prefix}.shortcut.bias", channels)[None])
        for which, width in ((1, inputs), (2, channels)):
            weight = named.get(f"{prefix}.conv{which}.weight", channels, width, taps)
            bias = named.get(f"{prefix}.conv{which}.bias", channels)
            norm = {
                part: named.get(f"{prefix}.norm{which}.{part}", channels)
                for part in ("weight", "bias", "running_mean", "running_var")
            }
            scale = norm["weight"] / np.sqrt(norm["running_var"] + _EPSILON)
            folded_bias = (bias - norm["running_mean"]) * scale + norm["bias"]
            tape.linear((weight * scale[:, None, None]).transpose(0, 2, 1), folded_bias[None])
    return tape.finished()


def _representation(named: _Weights, config: ModelConfig, tape: _Writer) -> Float32:
    """Pack the two layers of the static features, then the layer norm of the hidden state."""
    channels = config.static_channels
    for layer, inputs in ((0, config.static_features), (2, channels)):
        weight = named.get(f"static.{layer}.weight", channels, inputs)
        tape.linear(weight[:, None], named.get(f"static.{layer}.bias", channels)[None])
    _gain(named, "hidden_norm", config.hidden_size, tape)
    return tape.finished()


def _head(
    named: _Weights, head: str, blocks: int, outputs: int, config: ModelConfig, tape: _Writer
) -> Float32:
    """Pack the residual blocks, then the linear layer of the logits."""
    _blocks(named, head, blocks, config.hidden_size, tape)
    tape.linear(*_last(named, head, config.hidden_size, outputs))
    return tape.finished()


def _afterstate(named: _Weights, config: ModelConfig, tape: _Writer) -> Float32:
    """Pack the transition with a bias per action, then one layer for Q-value and outcome logits."""
    size = config.hidden_size
    _transition(named, "to_afterstate", config.afterstate_blocks, size, (config.num_actions,), tape)
    heads = (("q_head", config.value_bins), ("outcome_head", config.num_outcomes))
    weights, biases = zip(*(_last(named, head, size, outputs) for head, outputs in heads), strict=True)
    tape.linear(np.concatenate(weights), np.concatenate(biases, axis=1))
    return tape.finished()


def _dynamics(named: _Weights, config: ModelConfig, tape: _Writer) -> Float32:
    """Pack the transition with biases indexed by `[action, outcome]`, then the reward head."""
    size, events = config.hidden_size, (config.num_actions, config.num_outcomes)
    _transition(named, "to_hidden", config.dynamics_blocks, size, events, tape)
    tape.linear(*_last(named, "reward_head", size, config.value_bins))
    return tape.finished()


def _transition(
    named: _Weights, prefix: str, blocks: int, size: int, events: tuple[int, ...], tape: _Writer
) -> None:
    weight = named.get(f"{prefix}.first.weight", size, size + sum(events))
    biases = named.get(f"{prefix}.first.bias", size)[None]
    begin = size
    for count in events:
        chosen = weight[:, begin : begin + count].T
        biases = (biases[:, None] + chosen[None]).reshape(-1, size)
        begin += count
    tape.linear(weight[:, None, :size], biases)
    _blocks(named, prefix, blocks, size, tape)
    _gain(named, f"{prefix}.norm", size, tape)


def _blocks(named: _Weights, prefix: str, blocks: int, size: int, tape: _Writer) -> None:
    """Pack the inner layer of each residual block, with its layer norm folded in, then the outer layer."""
    for block in range(blocks):
        at = f"{prefix}.blocks.{block}"
        gain, shift = named.get(f"{at}.norm.weight", size), named.get(f"{at}.norm.bias", size)
        inner = named.get(f"{at}.inner.weight", size, size)
        tape.linear((inner * gain)[:, None], (named.get(f"{at}.inner.bias", size) + inner @ shift)[None])
        outer = named.get(f"{at}.outer.weight", size, size)
        tape.linear(outer[:, None], named.get(f"{at}.outer.bias", size)[None])


def _last(named: _Weights, head: str, size: int, outputs: int) -> tuple[Float64, Float64]:
    weight = named.get(f"{head}.last.weight", outputs, size)
    return weight[:, None], named.get(f"{head}.last.bias", outputs)[None]


def _gain(named: _Weights, prefix: str, size: int, tape: _Writer) -> None:
    tape.gain(named.get(f"{prefix}.weight", size), named.get(f"{prefix}.bias", size))


def _rounded(values: Float32) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
