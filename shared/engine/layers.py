"""Kernels of the network layers over a batch of rows. They read their weights from a tape.

A *tape* is one array with the weights of a network in the order of their use (shared/engine/packing.py).
Each layer receives the offset of its weights and returns that of the next layer. Buffers consist of
32-bit words. A word holds one float32 or, if *paired*, two bfloat16.
"""

from typing import NamedTuple

import numpy as np

from shared.engine.tile import PANEL, TILE_ROWS, Rows, tile
from shared.numeric import Float32, Int32, kernel, reordering_kernel

_LOG2_E = np.float32(1.4426950408889634)
_EPSILON = np.float32(1e-5)  # of torch's LayerNorm
_LEAST_EXPONENT = np.float32(-126.0)

#: Taylor coefficients of 2^f for f in [-0.5, 0.5]; the error is below the rounding of float32.
_EXP2 = tuple(
    np.float32(np.log(2.0) ** n / float(np.prod(np.arange(1, n + 1, dtype=float)))) for n in range(8)
)


@kernel
def padded(columns: int) -> int:
    """The number of columns rounded up to a multiple of `PANEL`."""
    return (columns + PANEL - 1) // PANEL * PANEL


@kernel
def words(columns: int, paired: bool) -> int:
    """The number of 32-bit words in a row of `columns` numbers."""
    return (columns + 1) // 2 if paired else columns


class Tape(NamedTuple):
    """The weights of a network, and the offset of the next layer."""

    weights: Float32
    at: int


class Layer(NamedTuple):
    """The shape of a linear layer or convolution; lengths are in 32-bit words."""

    taps: int  # kernel size of a convolution; 1 for a linear layer
    tap_step: int  # distance between the inputs of neighbouring taps
    depth: int  # input length of one tap
    columns: int  # output columns
    tables: int  # number of bias vectors
    relu: bool  # applied to the sum, and again after adding a residual
    paired: bool  # input and weights are bfloat16
    target_paired: bool  # the output is bfloat16


@kernel
def linear(
    tape: Tape, layer: Layer, source: Rows, rows: int, index: Int32, residual: Rows, target: Rows
) -> Tape:
    """Compute a linear layer or convolution with bias, ReLU and residual.

    Args:
        tape: `tables` rows of biases, then the weights by panel, tap and depth.
        layer: the shape of the layer.
        source: input rows.
        rows: the number of rows.
        index: `[rows]` bias vector of each row.
        residual: rows to add; a stride of 0 means that there is no residual.
        target: output rows, with space for a multiple of `PANEL` columns.
    Returns:
        The tape at the next layer.
    """
    floor = np.float32(0.0) if layer.relu else np.float32(-np.inf)
    width = padded(layer.columns)
    panel_words = layer.taps * layer.depth * PANEL
    weights_at = tape.at + layer.tables * width
    for column in range(0, width, PANEL):
        row = 0
        for count in TILE_ROWS:
            while rows - row >= count:
                tile(
                    count, layer.paired, source, layer.taps, layer.tap_step, layer.depth, tape.weights,
                    weights_at, tape.at + column, width, index, floor, residual, target, row, column,
                    layer.target_paired,
                )  # fmt: skip
                row += count
        weights_at += panel_words
    return Tape(tape.weights, weights_at)


@reordering_kernel
def normalise(source: Rows, rows: int, columns: int, target: Rows) -> None:
    """Scale each row to mean 0 and variance 1, without gain and bias (Ba et al. 2016)."""
    inverse = np.float32(1.0 / columns)
    for row in range(rows):
        x = source.buffer[source.at + row * source.stride :][:columns]
        y = target.buffer[target.at + row * target.stride :][:columns]
        total = np.float32(0.0)
        for j in range(columns):
            total += x[j]
        mean = total * inverse
        squares = np.float32(0.0)
        for j in range(columns):
            squares += (x[j] - mean) * (x[j] - mean)
        scale = np.float32(1.0) / np.sqrt(squares * inverse + _EPSILON)
        for j in range(columns):
            y[j] = (x[j] - mean) * scale


@kernel
def scale_and_shift(tape: Tape, rows: int, columns: int, target: Rows) -> Tape:
    """Apply the gain and bias of a layer norm. Both are on the tape, padded to a multiple of `PANEL`."""
    width = padded(columns)
    gain, bias = tape.weights[tape.at :], tape.weights[tape.at + width :]
    for row in range(rows):
        y = target.buffer[target.at + row * target.stride :][:columns]
        for j in range(columns):
            y[j] = y[j] * gain[j] + bias[j]
    return Tape(tape.weights, tape.at + 2 * width)


@kernel
def pair(source: Rows, rows: int, columns: int, target: Rows) -> None:
    """Round rows to bfloat16, two per word. An odd last column is paired with a zero."""
    for row in range(rows):
        x = source.buffer[source.at + row * source.stride :][:columns].view(np.uint32)
        y = target.buffer[target.at + row * target.stride :][: (columns + 1) // 2].view(np.uint32)
        for j in range(columns // 2):
            y[j] = np.uint32(_bfloat16(x[2 * j]) | np.uint32(_bfloat16(x[2 * j + 1]) << np.uint32(16)))
        if columns % 2:
            y[columns // 2] = _bfloat16(x[columns - 1])


@kernel
def _bfloat16(bits: np.uint32) -> np.uint32:
    """The bits of the nearest bfloat16, ties to even."""
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    return np.uint32(np.uint32(bits + np.uint32(np.uint32(0x7FFF) + odd)) >> np.uint32(16))


@kernel
def copy_rows(source: Rows, rows: int, columns: int, target: Rows) -> None:
    """Copy rows to another buffer."""
    for row in range(rows):
        x_at, y_at = source.at + row * source.stride, target.at + row * target.stride
        for j in range(columns):
            target.buffer[y_at + j] = source.buffer[x_at + j]


@reordering_kernel
def expectation(source: Rows, rows: int, bins: int, bound: float, out: Float32) -> None:
    """Mean of the categorical distribution of each row of logits over bins in [-bound, bound]."""
    first, step = np.float32(-bound), np.float32(2.0 * bound / (bins - 1))
    for row in range(rows):
        logits = source.buffer[source.at + row * source.stride :][:bins]
        highest = _highest(logits)
        total, weighted = np.float32(0.0), np.float32(0.0)
        for j in range(bins):
            share = _exp(logits[j] - highest)
            total += share
            weighted += share * (first + step * np.float32(j))
        out[row] = weighted / total


@kernel
def probabilities(source: Rows, rows: int, columns: int, out: Float32) -> None:
    """Write the softmax of the first `columns` logits of each row into `out` `[rows, columns]`."""
    for row in range(rows):
        logits = source.buffer[source.at + row * source.stride :][:columns]
        highest = _highest(logits)
        total = np.float32(0.0)
        for j in range(columns):
            out[row, j] = _exp(logits[j] - highest)
            total += out[row, j]
        for j in range(columns):
            out[row, j] /= total


@kernel
def _highest(logits: Float32) -> np.float32:
    """The largest logit. The loop compares integers of the same order, so that it is vectorised."""
    bits = logits.view(np.int32)
    highest = np.int32(-(2**31))
    for j in range(len(bits)):
        highest = max(highest, _ordered(bits[j]))
    return _as_float(_ordered(highest))


@kernel
def _ordered(bits: np.int32) -> np.int32:
    """Map the bits of a float32 to an integer of the same order. The function is its own inverse."""
    return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@reordering_kernel
def _exp(x: np.float32) -> np.float32:
    """e^x for x ≤ 0 as 2^n 2^f. It uses only arithmetic, so that loops over it are vectorised."""
    power = max(np.float32(x) * _LOG2_E, _LEAST_EXPONENT)
    whole = np.floor(power + np.float32(0.5))
    f = power - whole
    value = _EXP2[7]
    for n in (6, 5, 4, 3, 2, 1, 0):
        value = value * f + _EXP2[n]
    exponent = np.int32(np.int32(whole) << np.int32(23))
    return _as_float(np.int32(np.float32(value).view(np.int32) + exponent))


@kernel
def _as_float(bits: np.int32) -> np.float32:
    """The float32 with these bits."""
    return np.int32(bits).view(np.float32)
