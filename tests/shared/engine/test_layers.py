"""The kernel of every layer compared with NumPy in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.engine.layers import (
    Layer,
    Tape,
    expectation,
    linear,
    normalise,
    pair,
    probabilities,
    scale_and_shift,
    words,
)
from shared.engine.packing import _Writer
from shared.engine.tile import PANEL, Rows
from shared.numeric import Float32, Float64

NONE = Rows(np.empty(0, np.float32), 0, 0)


def rows_of(array: Float32) -> Rows:
    return Rows(array.reshape(-1), 0, array.shape[1])


def rounded(values: Float64) -> Float64:
    """Round to the nearest bfloat16, ties to even."""
    exact = values.astype(np.float32)
    below = (exact.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    above = ((exact.view(np.uint32) & np.uint32(0xFFFF0000)) + np.uint32(0x10000)).view(np.float32)
    to_below, to_above = np.abs(exact - below), np.abs(above.astype(np.float64) - exact)
    even = (exact.view(np.uint32) >> np.uint32(16)) % 2 == 0
    return np.where((to_below < to_above) | ((to_below == to_above) & even), below, above)


@pytest.mark.parametrize("paired", [False, True])
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 23),
    depth=st.integers(1, 40),
    columns=st.integers(1, 3 * PANEL),
    taps=st.integers(1, 3),
    dilation=st.integers(1, 2),
    stride=st.integers(1, 2),
    tables=st.integers(1, 4),
    relu=st.booleans(),
    with_residual=st.booleans(),
    halves=st.booleans(),
)
def test_a_linear_layer_equals_a_matrix_product(
    paired: bool,
    seed: int,
    count: int,
    depth: int,
    columns: int,
    taps: int,
    dilation: int,
    stride: int,
    tables: int,
    relu: bool,
    with_residual: bool,
    halves: bool,
) -> None:
    rng = np.random.default_rng(seed)
    weight, biases = rng.normal(size=(columns, taps, depth)), rng.normal(size=(tables, columns))
    x = rng.normal(size=((count - 1) * stride + (taps - 1) * dilation + 1, depth)).astype(np.float32)
    index = rng.integers(tables, size=count).astype(np.int32)
    writer = _Writer(paired=paired)
    writer.linear(weight, biases)
    tape = writer.finished()

    operand, left = weight.astype(np.float32).astype(np.float64), x.astype(np.float64)
    source, size = rows_of(x), words(depth, paired)
    if paired:
        operand, left = rounded(operand), rounded(left)
        source = rows_of(np.empty((len(x), size), np.float32))
        pair(rows_of(x), len(x), depth, source)
    reach = np.arange(count)[:, None] * stride + np.arange(taps) * dilation
    expected = biases[index] + np.einsum("ctk,ntk->nc", operand, left[reach])
    residual = rng.normal(size=(count, -(-columns // PANEL) * PANEL)).astype(np.float32)
    if relu:
        expected = np.maximum(expected, 0.0)
    if with_residual:
        expected += residual[:, :columns]
        if relu:
            expected = np.maximum(expected, 0.0)

    target = np.full(residual.shape, np.nan, np.float32)
    layer = Layer(taps, dilation * source.stride, size, columns, tables, relu, paired, halves)
    end = linear(
        Tape(tape, 0),
        layer,
        Rows(source.buffer, 0, stride * source.stride),
        count,
        index,
        rows_of(residual) if with_residual else NONE,
        rows_of(target),
    )
    assert end.at == len(tape)
    if halves:
        got = target.view(np.uint16).reshape(count, -1)[:, :columns].astype(np.uint32) << np.uint32(16)
        np.testing.assert_allclose(got.view(np.float32), expected, rtol=2**-8, atol=1e-4)
    else:
        np.testing.assert_allclose(target[:, :columns], expected, rtol=1e-5, atol=1e-4)


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=9).map(
        lambda x: np.array(x, np.float32)
    )
)
def test_pairs_round_to_the_nearest_bfloat16(values: Float32) -> None:
    halves = np.zeros((1, words(len(values), True)), np.float32)
    pair(rows_of(values[None]), 1, len(values), rows_of(halves))
    got = (halves.view(np.uint16)[0].astype(np.uint32) << np.uint32(16)).view(np.float32)
    np.testing.assert_array_equal(got[: len(values)], rounded(values.astype(np.float64)))
    assert not got[len(values) :].any()


@pytest.mark.parametrize("columns", [1, 2, 31, 256])
def test_a_norm_has_mean_0_and_variance_1(columns: int) -> None:
    rng = np.random.default_rng(columns)
    x = rng.normal(7.0, 3.0, size=(5, columns)).astype(np.float32)
    gain, bias = rng.normal(size=(2, columns))
    writer = _Writer(paired=False)
    writer.gain(gain, bias)
    y = np.empty_like(x)
    normalise(rows_of(x), 5, columns, rows_of(y))
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    scale_and_shift(Tape(writer.finished(), 0), 5, columns, rows_of(y))
    np.testing.assert_allclose(y, expected * gain + bias, rtol=1e-4, atol=1e-4)


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 60.0), st.integers(2, 601))
def test_an_expectation_is_the_mean_of_the_bins_under_the_softmax(
    seed: int, spread: float, bins: int
) -> None:
    logits = np.random.default_rng(seed).normal(50.0, spread, size=(3, bins)).astype(np.float32)
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    out, soft = np.empty(3, np.float32), np.empty((3, bins), np.float32)
    expectation(rows_of(logits), 3, bins, 300.0, out)
    np.testing.assert_allclose(out, shares @ np.linspace(-300.0, 300.0, bins), rtol=1e-5, atol=1e-3)
    probabilities(rows_of(logits), 3, bins, soft)
    np.testing.assert_allclose(soft, shares, rtol=3e-6, atol=1e-12)


@pytest.mark.parametrize("nan", [np.nan, -np.nan])
def test_a_nan_input_gives_a_nan_output(nan: float) -> None:
    logits = np.zeros((2, 21), np.float32)
    logits[1, 4] = nan
    out = np.empty(2, np.float32)
    expectation(rows_of(logits), 2, 21, 300.0, out)
    assert np.isfinite(out).tolist() == [True, False]
    writer = _Writer(paired=False)
    writer.linear(np.ones((1, 1, 21)), np.zeros((1, 1)))
    target = np.zeros((2, PANEL), np.float32)
    layer = Layer(1, 0, 21, 1, 1, True, False, False)
    linear(
        Tape(writer.finished(), 0), layer, rows_of(logits), 2, np.zeros(2, np.int32), NONE, rows_of(target)
    )
    assert np.isfinite(target[:, 0]).tolist() == [True, False]
