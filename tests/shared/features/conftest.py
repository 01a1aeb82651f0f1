"""Bars that the feature tests share."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shared.market.bar import BarSeries, Instrument


@pytest.fixture(scope="session")
def real_bars(real_data: Path) -> BarSeries:
    """Six weeks of GBP/JPY, read by pandas alone."""
    frame = pd.read_parquet(real_data / "GBPJPY_M1_20230402_20230515__gemforex.parquet")
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
