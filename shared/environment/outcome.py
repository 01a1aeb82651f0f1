"""The chance outcome of a bar: the direction of the next close, relative to recent volatility."""

import math
from enum import IntEnum

import numpy as np

from shared.errors import DataError
from shared.numeric import Float64, Int8, kernel, require_shape

NUM_OUTCOMES = 3

#: A move is UP or DOWN if it exceeds this share of the standard deviation of the last closes.
THRESHOLD_SIGMA = 0.33

#: Number of closes in that (population) standard deviation, including the current one.
SIGMA_BARS = 20

#: Label of the first 19 bars and the last bar, which have no outcome.
UNDEFINED = -1


class ChanceOutcome(IntEnum):
    """The outcomes, with the same codes in labels, chance head, search tree and messages."""

    UP = 0
    NEUTRAL = 1
    DOWN = 2


def label_outcomes(close: Float64) -> Int8:
    """The outcome of every bar: the next close's move relative to the deviation of the last 20 closes.

    UP where c_{t+1} - c_t > 0.33 sigma_t, DOWN where it is < -0.33 sigma_t, else NEUTRAL; sigma_t is
    the population standard deviation of the closes (levels) of bars t-19..t.

    Args:
        close: `[T]` closes.
    Returns:
        Labels, `[T]`, `UNDEFINED` before bar 19 and at the last bar.
    Raises:
        DataError: a close is not finite.
    Source: docs/algorithm.md, Features. Oracle: tests/oracles/features.py.
    """
    require_shape("close", close, None)
    finite = np.isfinite(close)
    if not finite.all():
        bar = int(np.argmin(finite))
        raise DataError(f"bar {bar}: close {close[bar]}, expected a finite number")
    return _label(np.ascontiguousarray(close, np.float64))


@kernel
def _label(close: Float64) -> Int8:
    """Label each bar in two passes over its window; a running sum would accumulate rounding errors."""
    outcomes = np.full(len(close), UNDEFINED, np.int8)
    for bar in range(SIGMA_BARS - 1, len(close) - 1):
        current = close[bar]
        total = 0.0
        for earlier in range(bar - SIGMA_BARS + 1, bar):
            total += close[earlier] - current
        mean = current + total / SIGMA_BARS
        squares = 0.0
        for earlier in range(bar - SIGMA_BARS + 1, bar + 1):
            squares += (close[earlier] - mean) ** 2
        threshold = THRESHOLD_SIGMA * math.sqrt(squares / SIGMA_BARS)
        move = close[bar + 1] - current
        if move > threshold:
            outcomes[bar] = ChanceOutcome.UP
        elif move < -threshold:
            outcomes[bar] = ChanceOutcome.DOWN
        else:
            outcomes[bar] = ChanceOutcome.NEUTRAL
    return outcomes
