"""The networks of one checkpoint version for inference, on NumPy arrays and the calling thread."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from shared.engine.networks import (
    Sizes,
    encode_span,
    encode_windows,
    evaluate_afterstates,
    evaluate_policies,
    evaluate_successors,
    predict_roots,
)
from shared.engine.packing import packed
from shared.engine.precision import Precision
from shared.errors import DataError
from shared.model.config import ModelConfig
from shared.numeric import Float32, Int8, require_shape
from shared.search.model import Roots


class Weights(Protocol):
    """Trained weights and the sizes of their networks."""

    @property
    def config(self) -> ModelConfig:
        """Sizes of the networks."""
        ...

    def arrays(self) -> Mapping[str, Float32]:
        """Every weight and running statistic by its name in `Network.state_dict`."""
        ...


@dataclass(frozen=True)
class StoredWeights:
    """Weights read from a checkpoint."""

    config: ModelConfig
    by_name: Mapping[str, Float32]

    def arrays(self) -> Mapping[str, Float32]:
        """See `Weights.arrays`."""
        return self.by_name


class Agent:
    """Packed weights of one version; implements `shared.search.model.Model`.

    Each row of a result has the same bits in any batch. The embedding of a bar has the same bits whether it
    is computed from a window or from any span.
    """

    def __init__(self, weights: Weights, version: int, precision: Precision = Precision.AUTO) -> None:
        """Copy and pack the weights.

        Raises:
            ShapeError: the shape of a weight does not fit the sizes.
            DataError: a weight is missing, unknown or not finite.
        """
        self.version, self.config, self.precision = version, weights.config, precision.resolved()
        paired = self.precision is Precision.BFLOAT16
        self._tapes = packed(weights.arrays(), self.config, paired=paired)
        self._sizes = Sizes.of(self.config, paired=paired)

    def embed_windows(self, windows: Float32) -> Float32:
        """Temporal embeddings of windows: `[N, window, F]` -> `[N, E]`.

        Raises:
            ShapeError: the length of the windows or the number of features is wrong.
            DataError: a feature is not finite, for example before the first valid bar.
        """
        config = self.config
        require_shape("windows", windows, None, config.window_bars, config.temporal_features)
        _require_finite("windows", windows)
        embeddings = np.empty((len(windows), config.temporal_channels), np.float32)
        encode_windows(
            self._tapes.encoder, self._sizes, _plain(windows[:, -config.receptive_field :]), embeddings
        )
        return embeddings

    def embed_span(self, rows: Float32) -> Float32:
        """Temporal embeddings of consecutive bars in one pass: `[R + window - 1, F]` -> `[R, E]`.

        Output row r is the embedding of the window that ends at input row `r + window - 1`.

        Raises:
            ShapeError: there are fewer rows than a window has, or the number of features is wrong.
            DataError: a feature is not finite, for example before the first valid bar.
        """
        config = self.config
        require_shape("rows", rows, max(len(rows), config.window_bars), config.temporal_features)
        _require_finite("rows", rows)
        embeddings = np.empty((len(rows) - config.window_bars + 1, config.temporal_channels), np.float32)
        unused = config.window_bars - config.receptive_field
        encode_span(self._tapes.encoder, self._sizes, _plain(rows[unused:]), embeddings)
        return embeddings

    def roots(self, temporal: Float32, static: Float32, phases: Int8) -> Roots:
        """Search roots from embeddings `[B, E]`, static features `[B, S]` and phases `[B]`."""
        require_shape("temporal", temporal, None, self.config.temporal_channels)
        require_shape("static", static, len(temporal), self.config.static_features)
        _require_finite("temporal", temporal)
        _require_finite("static", static)
        batch = len(temporal)
        hidden = np.empty((batch, self.config.hidden_size), np.float32)
        policy_logits = np.empty((batch, self.config.num_actions), np.float32)
        values = np.empty(batch, np.float32)
        predict_roots(
            self._tapes.representation,
            self._tapes.policy,
            self._tapes.value,
            self._sizes,
            _plain(temporal),
            _plain(static),
            hidden,
            policy_logits,
            values,
        )
        return Roots(hidden, policy_logits, values, phases)

    def afterstates(self, hidden: Float32, actions: Int8) -> tuple[Float32, Float32, Float32]:
        """See `Model.afterstates`."""
        batch = len(actions)
        require_shape("hidden", hidden, batch, self.config.hidden_size)
        _require_within("actions", actions, self.config.num_actions)
        afterstates = np.empty((batch, self.config.hidden_size), np.float32)
        outcome_probabilities = np.empty((batch, self.config.num_outcomes), np.float32)
        q_values = np.empty(batch, np.float32)
        evaluate_afterstates(
            self._tapes.afterstate,
            self._sizes,
            _plain(hidden),
            actions,
            afterstates,
            outcome_probabilities,
            q_values,
        )
        return afterstates, outcome_probabilities, q_values

    def successors(
        self, afterstates: Float32, actions: Int8, outcomes: Int8
    ) -> tuple[Float32, Float32, Float32]:
        """See `Model.successors`."""
        batch = len(actions)
        require_shape("afterstates", afterstates, batch, self.config.hidden_size)
        require_shape("outcomes", outcomes, batch)
        _require_within("actions", actions, self.config.num_actions)
        _require_within("outcomes", outcomes, self.config.num_outcomes)
        hidden = np.empty((batch, self.config.hidden_size), np.float32)
        rewards, values = np.empty(batch, np.float32), np.empty(batch, np.float32)
        evaluate_successors(
            self._tapes.dynamics,
            self._tapes.value,
            self._sizes,
            _plain(afterstates),
            actions,
            outcomes,
            hidden,
            rewards,
            values,
        )
        return hidden, rewards, values

    def policies(self, hidden: Float32) -> Float32:
        """See `Model.policies`."""
        require_shape("hidden", hidden, None, self.config.hidden_size)
        policy_logits = np.empty((len(hidden), self.config.num_actions), np.float32)
        evaluate_policies(self._tapes.policy, self._sizes, _plain(hidden), policy_logits)
        return policy_logits


def _plain(array: Float32) -> Float32:
    """The array in the layout that the kernels are compiled for, copied only if necessary."""
    return np.require(array, np.float32, ("C", "W"))


def _require_finite(name: str, array: Float32) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        rows = finite.reshape(len(array), -1).all(axis=1)
        raise DataError(f"{name}: row {int(rows.argmin())} holds a number that is not finite")


def _require_within(name: str, choices: Int8, count: int) -> None:
    """Check indices before they reach the kernels, which do not check bounds."""
    if len(choices) and not (choices.min() >= 0 and choices.max() < count):
        raise DataError(f"{name}: {int(choices.min())}..{int(choices.max())}, expected 0..{count - 1}")
