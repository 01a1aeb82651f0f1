"""Time per embedding of the encoder's passes that compute only the necessary steps.

The yardstick is the plain pass, which computes every layer at every step of the padded window. The benchmark
checks first that all passes give the same numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from benchmarks.measure import Measurement, quickest
from benchmarks.networks import require_agreement
from shared.agent.agent import Agent
from shared.engine.precision import Precision
from shared.engine.processor import HAS_BFLOAT16
from shared.environment.environment import EnvironmentConfig
from shared.model.config import ModelConfig
from shared.model.cost import plain_encoding, span_encoding, window_encoding
from shared.model.network import initial_network
from shared.model.tcn import TemporalEncoder
from shared.numeric import Float32

#: Windows per call: one for a live decision, and all of a session.
CALLS = (1, EnvironmentConfig().session_bars)


@dataclass(frozen=True)
class EncodingSpeed:
    """One row of the table, from the fastest repetition."""

    encoding: str
    windows: int  # per call
    microseconds: float  # per embedding
    yardstick_microseconds: float  # per embedding of the plain pass over as many windows
    multiply_adds: float  # per embedding
    saving: float  # multiply-adds of the plain pass divided by these

    @property
    def measurement(self) -> Measurement:
        """The comparison with the plain pass."""
        return Measurement(
            name=f"embedding, {self.windows} at a time, {self.encoding}",
            value=self.microseconds,
            unit="µs",
            yardstick="the plain pass",
            yardstick_value=self.yardstick_microseconds,
        )

    def document(self) -> dict[str, object]:
        """All fields for JSON."""
        own = {"encoding": self.encoding, "windows": self.windows}
        counted = {"multiply_adds": self.multiply_adds, "saving": self.saving}
        return {**own, **counted, **self.measurement.document()}


@dataclass(frozen=True)
class _Encoding:
    name: str
    precision: Precision
    encode: Callable[[], Float32]
    multiply_adds: int  # for all windows


def bench_encodings(
    config: ModelConfig | None = None,
    *,
    calls: tuple[int, ...] = CALLS,
    seconds: float = 1.0,
    seed: int = 0,
) -> list[EncodingSpeed]:
    """Measure every way to encode windows.

    Args:
        config: sizes of the networks; None uses the reference sizes.
        calls: numbers of consecutive windows per call.
        seconds: minimum duration per number, for all ways together.
        seed: seed of weights and bars.
    Raises:
        DataError: the results of two ways differ.
    """
    network = initial_network(config or ModelConfig(), seed).eval().requires_grad_(False)
    agents = [Agent(network, 0, precision) for precision in _precisions()]
    rng = np.random.default_rng(seed)
    speeds = []
    for count in calls:
        rows = rng.normal(size=(count + network.config.window_bars - 1, network.config.temporal_features))
        encodings = _encodings(network.encoder, network.config, agents, rows.astype(np.float32))
        speeds += _measure(encodings, count, seconds)
    return speeds


def _measure(encodings: list[_Encoding], count: int, seconds: float) -> list[EncodingSpeed]:
    plain = encodings[0]
    for encoding in encodings:
        require_agreement(
            encoding.name, ("embeddings",), (encoding.encode(),), (plain.encode(),), encoding.precision
        )
    least = quickest([encoding.encode for encoding in encodings], repeats=5, seconds=seconds)
    return [
        EncodingSpeed(
            encoding.name,
            count,
            1e6 * took / count,
            1e6 * least[0] / count,
            encoding.multiply_adds / count,
            plain.multiply_adds / encoding.multiply_adds,
        )
        for encoding, took in zip(encodings, least, strict=True)
    ]


def _encodings(
    encoder: TemporalEncoder, config: ModelConfig, agents: list[Agent], rows: Float32
) -> list[_Encoding]:
    """Every way to embed the windows of some bars, the plain pass first."""
    length = config.window_bars
    views = np.lib.stride_tricks.sliding_window_view(rows, length, axis=0)
    windows = views.transpose(0, 2, 1).copy()
    count = len(windows)
    plain, each, span = (
        count * plain_encoding(config),
        count * window_encoding(config),
        span_encoding(config, count),
    )
    single = Precision.FLOAT32
    encodings = [
        _Encoding("the plain pass", single, _of_torch(encoder.forward, windows), plain),
        _Encoding("only steps that matter", single, _of_torch(encoder.encode_windows, windows), each),
        *(
            _Encoding(
                f"the agent's windows, {agent.precision}",
                agent.precision,
                partial(agent.embed_windows, windows),
                each,
            )
            for agent in agents
        ),
    ]
    if count == 1:
        return encodings
    return [
        *encodings,
        *(
            _Encoding(
                f"the agent's pass, {agent.precision}", agent.precision, partial(agent.embed_span, rows), span
            )
            for agent in agents
        ),
    ]


def _of_torch(encode: Callable[[torch.Tensor], torch.Tensor], given: Float32) -> Callable[[], Float32]:
    @torch.inference_mode()
    def embeddings() -> Float32:
        return encode(torch.from_numpy(given)).contiguous().numpy()

    return embeddings


def _precisions() -> tuple[Precision, ...]:
    single = (Precision.FLOAT32,)
    return (*single, Precision.BFLOAT16) if HAS_BFLOAT16 else single
