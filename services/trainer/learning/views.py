"""What the steps of a batch look back on, each stretch of bars once.

A temporal embedding depends on its bar alone, and neighbouring bars look back on nearly the same past. So
steps that are drawn as stretches of a trajectory are encoded in one convolution pass per stretch, at a
fraction of what a window each costs.
"""

from dataclasses import dataclass

import numpy as np

from shared.numeric import Float32, Int64


@dataclass(frozen=True)
class Views:
    """Stretches of bars, and where in them each step of a batch is."""

    spans: Float32  # [S, W - 1 + L, 9] temporal features, oldest first; W bars are looked back on
    rows: Int64  # [N] which of the S * L bars that can be embedded is the step's

    @classmethod
    def of(cls, features: Float32, bars: Int64, decisions: Int64, *, length: int, lookback: int) -> "Views":
        """The views of some steps.

        Args:
            features: `[T, 9]` of all bars.
            bars: `[N]` at whose close the steps' decisions were taken.
            decisions: `[N]` their numbers in the session; stretches begin at multiples of `length`.
            length: L, bars of a stretch.
            lookback: W, bars that an embedding depends on.
        """
        offsets = decisions % length
        firsts, segments = np.unique(bars - offsets, return_inverse=True)
        # A stretch may begin in a session and end past the data; nothing that it embeds looks ahead.
        seen = np.minimum(firsts[:, None] + np.arange(1 - lookback, length), len(features) - 1)
        return cls(features[seen], segments * length + offsets)
