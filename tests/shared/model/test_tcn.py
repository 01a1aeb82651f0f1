"""The passes of the encoder and the kernels of the agent give the numbers of the definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shared.agent.agent import Agent
from shared.engine.networks import SPAN_CHUNK
from shared.engine.precision import Precision
from shared.model.config import ModelConfig
from shared.model.tcn import TemporalEncoder
from shared.numeric import Float32
from tests.oracles import tcn as oracle
from tests.shared.model.networks import SMALL, randomized_network


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _encoder(config: ModelConfig = SMALL, seed: int = 0) -> TemporalEncoder:
    return randomized_network(config, seed).encoder


def test_the_plain_pass_equals_the_definition() -> None:
    encoder, windows = _encoder(), _random(3, 32, 9)
    expected = np.stack([oracle.encode(encoder, window.double().numpy()) for window in windows])
    with torch.inference_mode():
        np.testing.assert_allclose(encoder(windows).numpy(), expected, atol=1e-5)


@st.composite
def _configs(draw: st.DrawFn) -> ModelConfig:
    blocks, kernel_size = draw(st.integers(1, 3)), draw(st.integers(2, 3))
    receptive_field = 1 + 2 * (kernel_size - 1) * (2**blocks - 1)
    return ModelConfig(
        temporal_features=draw(st.integers(1, 12)),
        temporal_channels=draw(st.sampled_from([1, 7, 12, 32])),
        static_channels=4,
        encoder_blocks=blocks,
        kernel_size=kernel_size,
        window_bars=receptive_field + draw(st.integers(0, 3)),
    )


@settings(max_examples=40)
@given(
    config=_configs(),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.1, 1.0, 3.0]),
    num_bars=st.integers(1, 120),
    batch=st.integers(1, 70),
    cut=st.integers(0, 120),
)
def test_windows_and_spans_equal_the_plain_pass(
    config: ModelConfig, seed: int, scale: float, num_bars: int, batch: int, cut: int
) -> None:
    network, length = randomized_network(config, seed), config.window_bars
    encoder, agent = network.encoder, Agent(network, 0, Precision.FLOAT32)
    rows = scale * _random(num_bars + length - 1, config.temporal_features, seed=seed)
    windows = rows.unfold(0, length, 1).transpose(1, 2)
    chosen = torch.randint(num_bars, (batch,), generator=torch.Generator().manual_seed(seed))
    cut = min(cut, num_bars)
    with torch.inference_mode():
        plain = encoder(windows)
        assert plain.shape == (num_bars, config.temporal_channels)
        _assert_equal(encoder.encode_windows(windows), plain)
        _assert_equal(encoder.encode_windows(windows[chosen]), plain[chosen])
        span = rows[length - config.receptive_field :]
        _assert_equal(encoder.encode_spans(torch.stack((span, -span)))[:num_bars], plain)
    _assert_equal(agent.embed_windows(windows.numpy()), plain)
    _assert_equal(agent.embed_windows(windows[chosen].numpy()), plain[chosen])
    _assert_equal(agent.embed_span(rows.numpy()), plain)
    for first, last in ((0, cut), (cut, num_bars)):
        if first < last:
            _assert_equal(agent.embed_span(rows[first : last + length - 1].numpy()), plain[first:last])


def _assert_equal(embeddings: Tensor | Float32, plain: Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(embeddings), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_bars", [360, SPAN_CHUNK, SPAN_CHUNK + 1])
def test_the_passes_agree_over_a_session_at_the_reference_sizes(num_bars: int) -> None:
    network = randomized_network(ModelConfig())
    rows = _random(num_bars + 31, 9)
    windows = rows.unfold(0, 32, 1).transpose(1, 2)
    agent = Agent(network, 0, Precision.FLOAT32)
    with torch.inference_mode():
        plain = network.encoder(windows)
        _assert_equal(network.encoder.encode_windows(windows), plain)
    _assert_equal(agent.embed_windows(windows.numpy()), plain)
    _assert_equal(agent.embed_span(rows.numpy()), plain)


def test_the_last_step_depends_on_29_bars_and_no_more() -> None:
    encoder, window = _encoder(), _random(1, 32, 9)
    with torch.inference_mode():
        before = encoder(window)
        window[:, :3] += 10.0
        torch.testing.assert_close(encoder(window), before, atol=0.0, rtol=0.0)
        window[:, 3] += 10.0
        assert not torch.allclose(encoder(window), before)


def test_an_embedding_does_not_depend_on_later_bars() -> None:
    agent, rows = Agent(randomized_network(SMALL), 0), _random(60, 9).numpy()
    before = agent.embed_span(rows)
    rows[50:] += 10.0
    np.testing.assert_array_equal(agent.embed_span(rows)[:19], before[:19])


def test_batch_statistics_do_not_include_padding() -> None:
    encoder = _encoder().train()
    first = next(module for module in encoder.modules() if isinstance(module, nn.BatchNorm1d))
    first.momentum = 1.0  # only the statistics of this batch
    windows = torch.full((4, 32, 9), 3.0)
    encoder.encode_windows(windows)
    # All bars are equal, so without padding the variance of each channel is 0.
    assert first.running_var is not None
    torch.testing.assert_close(first.running_var, torch.zeros(SMALL.temporal_channels), atol=1e-6, rtol=0.0)
