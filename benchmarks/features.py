"""Temporal features of a long history, compared with pandas.

The yardstick is a straightforward pandas version of the same formulas: expressions over columns that compute
each rolling minimum and maximum once. Both must give the same numbers for the same bars.
"""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.measure import Measurement, quickest
from shared.errors import ServiceError
from shared.features.kernels import FIRST_VALID_BAR
from shared.features.window import FEATURE_NAMES, temporal_features
from shared.market.bar import BarSeries
from shared.market.synthetic import Market, synthesize
from shared.numeric import Float32

if TYPE_CHECKING:
    import pandas as pd

#: 3.59 years of GBP/JPY, and the goals for this size.
GOAL_BARS = 1_330_000
GOAL_SECONDS = 0.5
GOAL_RATIO = 20.0


def bench_features(num_bars: int = GOAL_BARS, *, repeats: int = 7, seed: int = 1) -> Measurement:
    """Measure the kernel and pandas on a synthetic market.

    Args:
        num_bars: length of the history; the first 119 bars have no features.
        repeats: number of measurements of each, after a warm-up.
        seed: seed of the market.
    Raises:
        ServiceError: pandas is not installed.
        AssertionError: the results differ.
    """
    bars = synthesize(Market.REGIMES, num_bars, seed)
    frame = _frame(bars)
    ours, theirs = partial(temporal_features, bars), partial(pandas_features, frame, bars.instrument.pip)
    _require_equal(ours(), theirs().to_numpy())
    seconds, pandas_seconds = quickest((ours, theirs), repeats=repeats)
    return Measurement(
        name=f"temporal features, {num_bars:,} bars",
        value=seconds,
        unit="s",
        yardstick="pandas, the same formulas",
        yardstick_value=pandas_seconds,
        goal_value=GOAL_SECONDS * num_bars / GOAL_BARS,
        goal_ratio=GOAL_RATIO,
    )


def pandas_features(bars: "pd.DataFrame", pip: float) -> "pd.DataFrame":
    """The nine columns of docs/algorithm.md as pandas expressions.

    Args:
        bars: columns `time`, with time zone, and `close`.
        pip: size of a pip in units of the price.
    """
    import pandas as pd

    def min_max_scaled(
        values: "pd.Series[float]", lowest: "pd.Series[float]", highest: "pd.Series[float]"
    ) -> "pd.Series[float]":
        return ((values - lowest) / (highest - lowest)).where(highest != lowest, 0.5)

    def scaled_over_60(values: "pd.Series[float]") -> "pd.Series[float]":
        window = values.rolling(60)
        return min_max_scaled(values, window.min(), window.max())

    close = bars["close"]
    lowest, highest = close.rolling(60).min(), close.rolling(60).max()
    new_york = bars["time"].dt.tz_convert("America/New_York").dt.tz_localize(None)
    week = (new_york + pd.Timedelta(hours=7)).dt  # Sunday 17:00 becomes Monday 0:00
    day_angle = 2 * np.pi * week.day_of_week / 5
    hour_angle = 2 * np.pi * (24 * week.day_of_week + week.hour + week.minute / 60) / 120
    columns = [
        min_max_scaled(close, lowest, highest),
        scaled_over_60(close.diff(60)),
        scaled_over_60(highest - lowest),
        scaled_over_60(close.diff(5)),
        np.tanh(close.diff() / pip / 10),
        np.cos(day_angle),
        np.sin(day_angle),
        np.cos(hour_angle),
        np.sin(hour_angle),
    ]
    return pd.DataFrame(dict(zip(FEATURE_NAMES, columns, strict=True))).astype(np.float32)


def _frame(bars: BarSeries) -> "pd.DataFrame":
    try:
        import pandas as pd
    except ImportError as missing:
        raise ServiceError(
            "bench features needs pandas, which is not installed; the extra `dev` includes it"
        ) from missing
    return pd.DataFrame({"time": pd.to_datetime(bars.time_s, unit="s", utc=True), "close": bars.close})


def _require_equal(ours: Float32, theirs: Float32) -> None:
    """Compare to the seven digits of float32. Near 0 the cosines differ by the rounding of pandas."""
    np.testing.assert_allclose(ours[FIRST_VALID_BAR:], theirs[FIRST_VALID_BAR:], rtol=2e-6, atol=2e-7)
