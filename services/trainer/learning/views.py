"""Temporal features for the steps of a batch; steps of one stretch of bars share them.

A temporal embedding depends only on its bar, and the windows of neighbouring bars overlap almost completely.
So a stretch of a trajectory is encoded in one convolution pass, at a fraction of the cost of one window per
step.
"""

from dataclasses import dataclass

import numpy as np

from shared.numeric import Float32, Int64


@dataclass(frozen=True)
class Views:
    """Stretches of bars, and the position of each step in them."""

    spans: Float32  # [S, W - 1 + L, 9] temporal features, oldest first; an embedding sees W bars
    rows: Int64  # [N] index of the step's bar among the S * L bars that are embedded

    @classmethod
    def of(cls, features: Float32, bars: Int64, decisions: Int64, *, length: int, lookback: int) -> "Views":
        """Collect the features of some steps.

        Args:
            features: `[T, 9]` of all bars.
            bars: `[N]` bars at whose close the steps' decisions were taken.
            decisions: `[N]` decision numbers in the session; stretches begin at multiples of `length`.
            length: L, bars of a stretch.
            lookback: W, bars that an embedding depends on.
        """
        offsets = decisions % length
        firsts, segments = np.unique(bars - offsets, return_inverse=True)
        # A stretch may reach past the data. The last bar is then repeated; no embedding of a step sees this.
        seen = np.minimum(firsts[:, None] + np.arange(1 - lookback, length), len(features) - 1)
        return cls(features[seen], segments * length + offsets)
