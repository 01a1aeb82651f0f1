"""The four actions, and which of them a position allows."""

from enum import IntEnum

import numpy as np

from shared.numeric import Bool, Int8

NUM_ACTIONS = 4


class Action(IntEnum):
    """A decision at the close of a bar; it executes at the next bar's open."""

    HOLD = 0
    BUY = 1
    SELL = 2
    CLOSE = 3


class Side(IntEnum):
    """The net position: one unit short, none, or one unit long."""

    SHORT = -1
    FLAT = 0
    LONG = 1


#: Whether each action is legal, `[3, 4]`, row `side + 1`: HOLD, BUY, SELL if flat; HOLD, CLOSE otherwise.
LEGAL: Bool = np.array(
    [
        [True, False, False, True],
        [True, True, True, False],
        [True, False, False, True],
    ]
)
LEGAL.setflags(write=False)

#: The side after each action, plus one, `[3, 4]`, row `side + 1`; -1 where the action is illegal.
SUCCESSOR: Int8 = np.array(
    [
        [0, -1, -1, 1],
        [1, 2, 0, -1],
        [2, -1, -1, 1],
    ],
    dtype=np.int8,
)
SUCCESSOR.setflags(write=False)
