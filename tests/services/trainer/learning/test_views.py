"""The features of a batch equal the windows that self-play and trading decide from."""

import numpy as np
import pytest

from services.trainer.learning.views import Views
from shared.features.window import FIRST_WINDOW_BAR, windows
from shared.market.session import SESSION_BARS

NUM_BARS = FIRST_WINDOW_BAR + SESSION_BARS
LOOKBACK = 29


@pytest.mark.parametrize("length", [1, 8])
def test_every_step_sees_the_bars_of_its_window(length: int) -> None:
    """For decisions of a session that begins at the first bar with a window and ends at the last bar."""
    features = np.random.default_rng(0).normal(size=(NUM_BARS, 9)).astype(np.float32)
    decisions = np.array([0, 1, length - 1, length, 100, SESSION_BARS - 2, SESSION_BARS - 1])
    bars = FIRST_WINDOW_BAR + decisions
    views = Views.of(features, bars, decisions, length=length, lookback=LOOKBACK)
    for window, row in zip(windows(features, bars), views.rows, strict=True):
        span, offset = divmod(int(row), length)
        assert np.array_equal(views.spans[span, offset : offset + LOOKBACK], window[-LOOKBACK:])
