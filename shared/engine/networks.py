"""The networks of the agent as kernels for inference.

They read and write NumPy arrays on one thread, without Python between the layers. Rows are processed in
chunks, so that the activations stay in the cache. Each row of a result has the same bits in any batch.
"""

from typing import NamedTuple

import numpy as np

from shared.engine.layers import (
    Layer,
    Tape,
    copy_rows,
    expectation,
    linear,
    normalise,
    padded,
    pair,
    probabilities,
    scale_and_shift,
    words,
)
from shared.engine.tile import Rows
from shared.model.config import ModelConfig
from shared.numeric import Float32, Int8, Int32, kernel

#: Rows that pass through all layers of a network together.
CHUNK = 64

#: Bars that pass through the encoder together. Neighbouring chunks overlap by the receptive field.
SPAN_CHUNK = 512


class Sizes(NamedTuple):
    """The fields of a `ModelConfig` that the kernels use, and the precision of matrix products."""

    paired: bool
    hidden: int
    temporal: int
    static: int
    outcomes: int
    actions: int
    bins: int
    bound_pips: float
    afterstate_blocks: int
    dynamics_blocks: int
    policy_blocks: int
    value_blocks: int
    encoder_blocks: int
    kernel_size: int

    @classmethod
    def of(cls, config: ModelConfig, *, paired: bool) -> "Sizes":
        """Copy the sizes from the settings."""
        return cls(
            paired,
            config.hidden_size,
            config.temporal_channels,
            config.static_channels,
            config.num_outcomes,
            config.num_actions,
            config.value_bins,
            config.value_bound_pips,
            config.afterstate_blocks,
            config.dynamics_blocks,
            config.policy_blocks,
            config.value_blocks,
            config.encoder_blocks,
            config.kernel_size,
        )


class _Work(NamedTuple):
    """Buffers for the activations of one chunk."""

    stream: Rows
    normal: Rows
    inner: Rows
    input: Rows
    logits: Rows
    none: Rows  # no residual
    zeros: Int32  # bias index of layers with one bias vector


@kernel
def _rows(count: int, columns: int) -> Rows:
    width = padded(columns)
    return Rows(np.empty(count * width, np.float32), 0, width)


@kernel
def _work(sizes: Sizes, count: int) -> _Work:
    size = sizes.hidden
    logits = _rows(count, max(sizes.bins + sizes.outcomes, sizes.actions))
    none = Rows(np.empty(0, np.float32), 0, 0)
    return _Work(
        _rows(count, size),
        _rows(count, size),
        _rows(count, size),
        _rows(count, size),
        logits,
        none,
        np.zeros(count, np.int32),
    )


@kernel
def _dense(
    tape: Tape,
    sizes: Sizes,
    work: _Work,
    source: Rows,
    depth: int,
    rows: int,
    columns: int,
    relu: bool,
    target: Rows,
) -> Tape:
    """Compute a linear layer from float32 rows to float32 rows."""
    inputs = source
    if sizes.paired:
        pair(source, rows, depth, work.input)
        inputs = work.input
    layer = Layer(1, 0, words(depth, sizes.paired), columns, 1, relu, sizes.paired, False)
    return linear(tape, layer, inputs, rows, work.zeros, work.none, target)


@kernel
def _block(tape: Tape, sizes: Sizes, work: _Work, source: Rows, rows: int, target: Rows) -> Tape:
    """Compute a residual block: source + W2 relu(W1 norm(source)). `target` may be `source`."""
    size, paired = sizes.hidden, sizes.paired
    depth = words(size, paired)
    normalise(source, rows, size, work.normal)
    inputs = work.normal
    if paired:
        pair(work.normal, rows, size, work.input)
        inputs = work.input
    inner = Layer(1, 0, depth, size, 1, True, paired, paired)
    tape = linear(tape, inner, inputs, rows, work.zeros, work.none, work.inner)
    outer = Layer(1, 0, depth, size, 1, False, paired, False)
    return linear(tape, outer, work.inner, rows, work.zeros, source, target)


@kernel
def _transition(
    tape: Tape,
    sizes: Sizes,
    work: _Work,
    source: Rows,
    rows: int,
    events: int,
    index: Int32,
    blocks: int,
    target: Rows,
) -> Tape:
    """Compute the next state. `events` is the number of bias vectors, `index` selects one per row."""
    size, paired = sizes.hidden, sizes.paired
    inputs = source
    if paired:
        pair(source, rows, size, work.input)
        inputs = work.input
    first = Layer(1, 0, words(size, paired), size, events, True, paired, False)
    tape = linear(tape, first, inputs, rows, index, work.none, work.stream)
    for _ in range(blocks):
        tape = _block(tape, sizes, work, work.stream, rows, work.stream)
    normalise(work.stream, rows, size, target)
    return scale_and_shift(tape, rows, size, target)


@kernel
def _head(tape: Tape, sizes: Sizes, work: _Work, hidden: Rows, rows: int, blocks: int, outputs: int) -> None:
    """Compute residual blocks and a linear layer; write the logits to `work.logits`."""
    source = hidden
    for _ in range(blocks):
        tape = _block(tape, sizes, work, source, rows, work.stream)
        source = work.stream
    _dense(tape, sizes, work, source, sizes.hidden, rows, outputs, False, work.logits)


@kernel
def _policies(
    policy: Float32, sizes: Sizes, work: _Work, hidden: Rows, rows: int, policy_logits: Float32
) -> None:
    _head(Tape(policy, 0), sizes, work, hidden, rows, sizes.policy_blocks, sizes.actions)
    copy_rows(work.logits, rows, sizes.actions, Rows(policy_logits.reshape(-1), 0, sizes.actions))


@kernel
def _values(value: Float32, sizes: Sizes, work: _Work, hidden: Rows, rows: int, values: Float32) -> None:
    _head(Tape(value, 0), sizes, work, hidden, rows, sizes.value_blocks, sizes.bins)
    expectation(work.logits, rows, sizes.bins, sizes.bound_pips, values)


@kernel
def predict_roots(
    representation: Float32,
    policy: Float32,
    value: Float32,
    sizes: Sizes,
    temporal: Float32,
    static: Float32,
    hidden: Float32,
    policy_logits: Float32,
    values: Float32,
) -> None:
    """Temporal `[N, E]`, static `[N, S]` -> hidden `[N, H]`, policy logits `[N, A]`, values `[N]`."""
    count, size = len(temporal), sizes.hidden
    features = static.shape[1]
    work = _work(sizes, min(count, CHUNK))
    for start in range(0, count, CHUNK):
        rows = min(count - start, CHUNK)
        source = Rows(static.reshape(-1), start * features, features)
        channels = sizes.static
        tape = Tape(representation, 0)
        tape = _dense(tape, sizes, work, source, features, rows, channels, True, work.inner)
        tape = _dense(tape, sizes, work, work.inner, channels, rows, channels, False, work.stream)
        target = Rows(hidden.reshape(-1), start * size, size)
        embedded = sizes.temporal
        copy_rows(Rows(temporal.reshape(-1), start * embedded, embedded), rows, embedded, target)
        copy_rows(work.stream, rows, channels, Rows(target.buffer, target.at + embedded, size))
        normalise(target, rows, size, target)
        scale_and_shift(tape, rows, size, target)
        end = start + rows
        _policies(policy, sizes, work, target, rows, policy_logits[start:end])
        _values(value, sizes, work, target, rows, values[start:end])


@kernel
def evaluate_policies(policy: Float32, sizes: Sizes, hidden: Float32, policy_logits: Float32) -> None:
    """Hidden states `[N, H]` -> policy logits `[N, A]`."""
    count, size = len(hidden), sizes.hidden
    work = _work(sizes, min(count, CHUNK))
    for start in range(0, count, CHUNK):
        rows = min(count - start, CHUNK)
        source = Rows(hidden.reshape(-1), start * size, size)
        _policies(policy, sizes, work, source, rows, policy_logits[start : start + rows])


@kernel
def evaluate_afterstates(
    afterstate: Float32,
    sizes: Sizes,
    hidden: Float32,
    actions: Int8,
    afterstates: Float32,
    outcome_probabilities: Float32,
    q_values: Float32,
) -> None:
    """Hidden `[N, H]`, actions `[N]` -> afterstates `[N, H]`, probabilities `[N, C]`, Q-values `[N]`."""
    count, size = len(actions), sizes.hidden
    work = _work(sizes, min(count, CHUNK))
    index = np.empty(CHUNK, np.int32)
    for start in range(0, count, CHUNK):
        rows = min(count - start, CHUNK)
        end = start + rows
        for row in range(rows):
            index[row] = actions[start + row]
        source = Rows(hidden.reshape(-1), start * size, size)
        target = Rows(afterstates.reshape(-1), start * size, size)
        tape, blocks = Tape(afterstate, 0), sizes.afterstate_blocks
        tape = _transition(tape, sizes, work, source, rows, sizes.actions, index, blocks, target)
        heads = sizes.bins + sizes.outcomes
        _dense(tape, sizes, work, target, size, rows, heads, False, work.logits)
        expectation(work.logits, rows, sizes.bins, sizes.bound_pips, q_values[start:end])
        outcomes = Rows(work.logits.buffer, sizes.bins, work.logits.stride)
        probabilities(outcomes, rows, sizes.outcomes, outcome_probabilities[start:end])


@kernel
def evaluate_successors(
    dynamics: Float32,
    value: Float32,
    sizes: Sizes,
    afterstates: Float32,
    actions: Int8,
    outcomes: Int8,
    hidden: Float32,
    rewards: Float32,
    values: Float32,
) -> None:
    """Afterstates `[N, H]`, actions `[N]`, outcomes `[N]` -> hidden `[N, H]`, rewards `[N]`, values `[N]`."""
    count, size = len(actions), sizes.hidden
    work = _work(sizes, min(count, CHUNK))
    index = np.empty(CHUNK, np.int32)
    for start in range(0, count, CHUNK):
        rows = min(count - start, CHUNK)
        end = start + rows
        for row in range(rows):
            index[row] = actions[start + row] * sizes.outcomes + outcomes[start + row]
        source = Rows(afterstates.reshape(-1), start * size, size)
        target = Rows(hidden.reshape(-1), start * size, size)
        tape, blocks = Tape(dynamics, 0), sizes.dynamics_blocks
        events = sizes.actions * sizes.outcomes
        tape = _transition(tape, sizes, work, source, rows, events, index, blocks, target)
        _dense(tape, sizes, work, target, size, rows, sizes.bins, False, work.logits)
        expectation(work.logits, rows, sizes.bins, sizes.bound_pips, rewards[start:end])
        _values(value, sizes, work, target, rows, values[start:end])


@kernel
def encode_span(encoder: Float32, sizes: Sizes, features: Float32, embeddings: Float32) -> None:
    """Embed consecutive bars: `[R + receptive field - 1, F]` -> `[R, E]`."""
    count, reach = len(embeddings), len(features) - len(embeddings)
    for start in range(0, count, SPAN_CHUNK):
        end = min(count, start + SPAN_CHUNK)
        _encode(encoder, sizes, features[start : end + reach], False, embeddings[start:end])


@kernel
def encode_windows(encoder: Float32, sizes: Sizes, windows: Float32, embeddings: Float32) -> None:
    """Embed the last bar of each window: `[N, receptive field, F]` -> `[N, E]`."""
    for n in range(len(windows)):
        _encode(encoder, sizes, windows[n], True, embeddings[n : n + 1])


@kernel
def _encode(encoder: Float32, sizes: Sizes, features: Float32, thinned: bool, embeddings: Float32) -> None:
    """Compute residual blocks of two causal convolutions over bars, without padding.

    The dilation doubles with each block. With `thinned` every second bar is dropped after each block instead,
    which keeps the bars that the last bar depends on.
    """
    bars, inputs, channels, paired = len(features), features.shape[1], sizes.temporal, sizes.paired
    taps = sizes.kernel_size
    zeros, none = np.zeros(bars, np.int32), Rows(np.empty(0, np.float32), 0, 0)
    state = Rows(np.ascontiguousarray(features).reshape(-1), 0, inputs)
    halves = _rows(bars, max(inputs, channels))
    first, shortcuts = _rows(bars, channels), _rows(bars, channels)
    tape = Tape(encoder, 0)
    for block in range(sizes.encoder_blocks):
        dilation = 1 if thinned else 1 << block
        stride = 2 if thinned and block < sizes.encoder_blocks - 1 else 1
        source = state
        if paired:
            pair(state, bars, inputs, halves)
            source = halves
        depth, between = words(inputs, paired), words(channels, paired)
        middle = bars - (taps - 1) * dilation
        left = (middle - (taps - 1) * dilation - 1) // stride + 1
        skipped = bars - ((left - 1) * stride + 1)
        residual = _each(state, skipped, stride)
        if inputs != channels:
            shortcut = Layer(1, 0, depth, channels, 1, False, paired, False)
            tape = linear(tape, shortcut, _each(source, skipped, stride), left, zeros, none, shortcuts)
            residual = shortcuts
        layer = Layer(taps, dilation * source.stride, depth, channels, 1, True, paired, paired)
        tape = linear(tape, layer, source, middle, zeros, none, first)
        layer = Layer(taps, dilation * first.stride, between, channels, 1, True, paired, False)
        target = _rows(left, channels)
        tape = linear(tape, layer, _each(first, 0, stride), left, zeros, residual, target)
        state, bars, inputs = target, left, channels
    copy_rows(state, bars, channels, Rows(embeddings.reshape(-1), 0, channels))


@kernel
def _each(rows: Rows, skipped: int, stride: int) -> Rows:
    """Every `stride`-th row after the first `skipped` rows."""
    return Rows(rows.buffer, rows.at + skipped * rows.stride, stride * rows.stride)
