"""Random and real series for tests of features and environment."""

from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from shared.market.bar import BarSeries, Instrument
from shared.numeric import Float64, Int64

START_S = 1_680_470_000 // 60 * 60  # a Sunday evening, in the first hour of the trading week


def bars_of(time_s: Int64, close: Float64) -> BarSeries:
    empty = np.zeros(len(close))
    return BarSeries(
        Instrument.named("GBP_JPY"), time_s, close, close, close, close, np.zeros(len(close), np.int64), empty
    )


@st.composite
def random_bars(draw: st.DrawFn, min_size: int = 1, max_size: int = 400) -> BarSeries:
    """Bars with gaps of up to days, whose closes move, stay constant for a while, or often repeat."""
    size = draw(st.integers(min_size, max_size))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    steps_pips = random.normal(0.0, draw(st.sampled_from([0.0, 0.3, 5.0, 80.0])), size)
    flat_from, flat_bars = random.integers(0, size), random.choice([0, 3, 130])
    steps_pips[flat_from : flat_from + flat_bars] = 0.0
    close = np.round(160.0 + np.cumsum(steps_pips) * 0.01, draw(st.sampled_from([1, 3, 15])))
    gaps_s = random.choice([60, 60, 60, 120, 7_200, 199_980], size, p=[0.5, 0.2, 0.2, 0.05, 0.04, 0.01])
    return bars_of(START_S + np.cumsum(gaps_s), close)


def read_real_bars(folder: Path) -> BarSeries:
    """Six weeks of GBP/JPY, read by pandas only."""
    frame = pd.read_parquet(folder / "GBPJPY_M1_20230402_20230515__gemforex.parquet")
    return BarSeries(
        instrument=Instrument.named("GBP_JPY"),
        time_s=frame["time"].to_numpy("datetime64[s]").astype(np.int64),
        open=frame["open"].to_numpy(np.float64),
        high=frame["high"].to_numpy(np.float64),
        low=frame["low"].to_numpy(np.float64),
        close=frame["close"].to_numpy(np.float64),
        volume=frame["volume"].to_numpy(np.int64),
        spread_pips=np.full(len(frame), np.nan),
    )
