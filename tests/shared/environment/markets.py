"""Random markets and legal action lists for the environment tests."""

import numpy as np
from hypothesis import strategies as st

from shared.environment.action import LEGAL, SUCCESSOR
from shared.environment.environment import Prices
from shared.numeric import Float64

NUM_BARS = 80


def market(open_: list[float] | Float64, close: list[float] | Float64 | None = None) -> Prices:
    """Prices without a rollover; without `close` each bar closes at its open."""
    opens = np.array(open_, np.float64)
    closes = opens if close is None else np.array(close, np.float64)
    return Prices(opens, closes, np.zeros(len(opens), np.int8), 0.01)


@st.composite
def random_prices(draw: st.DrawFn) -> Prices:
    """Prices on a grid of 1/64, so that their differences are exact, with occasional rollovers."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0, 1, 8, 200]))
    open_, close = 160.0 + np.cumsum(random.integers(-scale, scale + 1, (2, NUM_BARS)), axis=1) / 64
    nights = random.choice(np.array([0, 1, 3], np.int8), NUM_BARS, p=[0.8, 0.15, 0.05])
    return Prices(open_, close, nights, draw(st.sampled_from([0.01, 0.0001])))


@st.composite
def legal_actions(draw: st.DrawFn, min_size: int = 1, max_size: int = 60) -> list[int]:
    """A list of actions that are legal in turn."""
    side, actions = 0, []
    for choice in draw(st.lists(st.integers(0, 5), min_size=min_size, max_size=max_size)):
        allowed = np.flatnonzero(LEGAL[side + 1]).tolist()
        action = allowed[choice % len(allowed)]
        side = int(SUCCESSOR[side + 1, action]) - 1
        actions.append(action)
    return actions
