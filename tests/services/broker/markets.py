"""Hand-made bars and prices."""

from collections.abc import Sequence
from decimal import Decimal

import numpy as np

from services.broker.exchange.checks import InstrumentRules
from services.broker.exchange.planning import Quote
from shared.market.bar import BarSeries, Instrument

GBP_JPY = Instrument.named("GBP_JPY")
RULES = InstrumentRules.of(GBP_JPY, Decimal("0.05"))

#: Monday 2024-03-04 12:00 UTC.
START_S = 1_709_553_600


def bars_of(closes: Sequence[float], *, times_s: Sequence[int] | None = None) -> BarSeries:
    """Bars that open at the previous close and whose extremes are 3 points beyond open and close."""
    close = np.round(np.array(closes), 3)
    opened = np.concatenate([close[:1], close[:-1]])
    times = START_S + 60 * np.arange(len(close)) if times_s is None else np.array(times_s)
    return BarSeries(
        GBP_JPY,
        times.astype(np.int64),
        opened,
        np.round(np.maximum(opened, close) + 0.003, 3),
        np.round(np.minimum(opened, close) - 0.003, 3),
        close,
        np.full(len(close), 4, np.int64),
        np.full(len(close), np.nan),
    )


def quote(bid: str, ask: str, *, time: int = 1, tradeable: bool = True, liquidity: int = 1_000_000) -> Quote:
    """A price."""
    return Quote(time, Decimal(bid), Decimal(ask), tradeable, liquidity)
