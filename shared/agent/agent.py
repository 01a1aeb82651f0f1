"""Networks of one checkpoint version, made ready to decide: NumPy in, NumPy out.

How many threads torch uses is the process's business; one a process is right here (`torch.set_num_threads`).
"""

import copy

import numpy as np
import torch
from torch import Tensor

from shared.errors import DataError
from shared.model.config import ModelConfig
from shared.model.network import Network
from shared.numeric import Float32, Int8, require_shape
from shared.search.model import Roots

#: Below this many rows, matrix libraries sum in another order, and a row's last bits depend on how many
#: rows there are. Smaller calls are filled up. From here on rows were seen to be independent (MKL, oneDNN;
#: tests/shared/agent/test_agent.py looks again); a library that breaks this changes last bits only.
MIN_ROWS = 4


class Agent:
    """A network in evaluation mode with batch norm folded; implements `shared.search.model.Model`."""

    def __init__(self, network: Network, version: int) -> None:
        self.version = version
        self._network = copy.deepcopy(network).eval().requires_grad_(False)
        self._network.encoder.fold_batch_norm()

    @property
    def config(self) -> ModelConfig:
        """Sizes of the networks."""
        return self._network.config

    @torch.inference_mode()
    def embed_windows(self, windows: Float32) -> Float32:
        """Temporal embeddings of windows: `[N, window, F]` -> `[N, E]`.

        Raises:
            ShapeError: the windows have another length or number of features.
            DataError: a number is not finite, as before the first valid bar.
        """
        config = self.config
        require_shape("windows", windows, None, config.window_bars, config.temporal_features)
        _require_finite("windows", windows)
        return self._network.encoder.encode_windows(torch.from_numpy(windows)).numpy()

    @torch.inference_mode()
    def embed_span(self, rows: Float32) -> Float32:
        """Temporal embeddings of consecutive bars in one pass: `[R + window - 1, F]` -> `[R, E]`.

        Row r is the embedding of the window that ends at input row `r + window - 1`; it equals
        `embed_windows` of that window up to rounding.

        Raises:
            ShapeError: there is less than one window, or another number of features.
            DataError: a number is not finite, as before the first valid bar.
        """
        config = self.config
        require_shape("rows", rows, max(len(rows), config.window_bars), config.temporal_features)
        _require_finite("rows", rows)
        embeddings = self._network.encoder.encode_span(torch.from_numpy(rows))
        return embeddings.contiguous().numpy()

    @torch.inference_mode()
    def roots(self, temporal: Float32, static: Float32, phases: Int8) -> Roots:
        """The states to search from: embeddings `[B, E]`, static features `[B, S]`, phases `[B]`."""
        require_shape("temporal", temporal, None, self.config.temporal_channels)
        require_shape("static", static, len(temporal), self.config.static_features)
        _require_finite("temporal", temporal)
        _require_finite("static", static)
        network = self._network
        hidden = network.combine(_rows(temporal), _rows(static))
        policy_logits, value_logits = network.prediction(hidden)
        values = network.support.decode(value_logits)
        first, second, third = _first(len(temporal), hidden, policy_logits, values)
        return Roots(first, second, third, phases)

    @torch.inference_mode()
    def afterstates(self, hidden: Float32, actions: Int8) -> tuple[Float32, Float32, Float32]:
        """See `Model.afterstates`."""
        network = self._network
        afterstates = network.afterstate(_rows(hidden), _rows(actions).long())
        outcome_logits, q_logits = network.afterstate_heads(afterstates)
        probabilities = torch.softmax(outcome_logits, dim=-1)
        first, second, third = _first(
            len(hidden), afterstates, probabilities, network.support.decode(q_logits)
        )
        return first, second, third

    @torch.inference_mode()
    def successors(
        self, afterstates: Float32, actions: Int8, outcomes: Int8
    ) -> tuple[Float32, Float32, Float32, Float32]:
        """See `Model.successors`."""
        network = self._network
        hidden, reward_logits = network.dynamics(
            _rows(afterstates), _rows(actions).long(), _rows(outcomes).long()
        )
        policy_logits, value_logits = network.prediction(hidden)
        decode = network.support.decode
        first, second, third, fourth = _first(
            len(afterstates), hidden, decode(reward_logits), policy_logits, decode(value_logits)
        )
        return first, second, third, fourth


def _rows(array: Float32 | Int8) -> Tensor:
    """The array as a tensor of at least `MIN_ROWS` rows; what is filled up repeats rows."""
    if len(array) >= MIN_ROWS:
        return torch.from_numpy(array)
    return torch.from_numpy(np.resize(array, (MIN_ROWS, *array.shape[1:])))


def _first(num_rows: int, *tensors: Tensor) -> tuple[Float32, ...]:
    return tuple(tensor[:num_rows].numpy() for tensor in tensors)


def _require_finite(name: str, array: Float32) -> None:
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        raise DataError(f"{name}: row {int(finite.argmin())} holds a number that is not finite")
