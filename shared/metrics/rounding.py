"""When numbers count as equal or as zero: profits are differences of prices and carry rounding errors.

Forty wins of 6 pips computed from prices differ from each other by 1e-12. Dividing by such a deviation gives
a Sharpe ratio of 1e14. All of `shared.metrics` therefore uses one rule to detect rounding errors.
"""

from typing import Final

import numpy as np

from shared.numeric import Float64

#: Threshold relative to the largest value. Prices are exact to 1e-16 and their differences to about 1e-12 of
#: a pip.
ROUNDING: Final = 1e-9


def settled(values: Float64) -> Float64:
    """Set the values that differ from zero only by rounding to exactly zero.

    Values that are not finite do not affect the others.
    """
    noise = ROUNDING * np.abs(values[np.isfinite(values)]).max(initial=0.0)
    return np.where(np.abs(values) <= noise, 0.0, values)


def mean_over_deviation(values: Float64) -> float | None:
    """Mean over standard deviation (N - 1 degrees of freedom); independent of the scale of the values.

    Returns:
        None for fewer than two values, or values that are all equal up to rounding.
    """
    if len(values) < 2:
        return None
    largest = float(np.abs(values).max())
    if not 0.0 < largest < np.inf:
        return None
    scaled = values / largest
    deviation = float(scaled.std(ddof=1))
    return float(scaled.mean()) / deviation if deviation > ROUNDING else None
