"""The chance outcome of a bar: which way the next close went, against recent dispersion (SPEC section 5)."""

from enum import IntEnum

NUM_OUTCOMES = 3

#: A move counts when it is larger than this share of the standard deviation of the last closes.
THRESHOLD_SIGMA = 0.33

#: Number of closes, the current one included, whose population standard deviation is taken.
SIGMA_BARS = 20

#: Marks a bar whose outcome is not defined: too early, or the last one.
UNDEFINED = -1


class ChanceOutcome(IntEnum):
    """The encoding used by labels, the chance head, the tree and messages alike."""

    UP = 0
    NEUTRAL = 1
    DOWN = 2
