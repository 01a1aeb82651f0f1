"""Bars for tests."""

from datetime import UTC, datetime

import numpy as np

from shared.market.bar import BarSeries, Instrument
from shared.numeric import Float64, Int64

GBP_JPY = Instrument.named("GBP_JPY")


def seconds(text: str) -> int:
    """Seconds since the epoch of an ISO time in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def flat_bars(time_s: Int64, range_pips: Float64 | float = 2.0, price: float = 185.0) -> BarSeries:
    """Bars that open and close at one price, each with its own range above it."""
    ranges = np.broadcast_to(np.asarray(range_pips, np.float64), time_s.shape)
    closes = np.full(len(time_s), price)
    highs = np.round(closes + ranges * GBP_JPY.pip, 3)
    return BarSeries(
        GBP_JPY,
        np.asarray(time_s, np.int64),
        closes,
        highs,
        closes,
        closes,
        np.ones(len(time_s), np.int64),
        np.full(len(time_s), np.nan),
    )
