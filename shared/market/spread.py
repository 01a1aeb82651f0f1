"""Convert the spread column of a bar file to pips, or refuse it if its unit cannot be determined."""

from dataclasses import replace
from enum import StrEnum

import numpy as np

from shared.errors import FormatError
from shared.market.bar import Instrument
from shared.market.rows import RawRows
from shared.numeric import Float64

#: Plausible range of a currency pair's spread, in pips.
_PLAUSIBLE_PIPS = (0.1, 30.0)


class SpreadUnit(StrEnum):
    """The unit of a file's spread column."""

    PIPS = "pips"
    PRICE = "price"  # units of the quote currency
    POINTS = "points"  # units of the price's last decimal, as in MetaTrader
    NONE = "none"  # ignore the column


def in_pips(path: str, rows: RawRows, unit: SpreadUnit | None, instrument: Instrument) -> RawRows:
    """The rows with their spread in pips.

    Args:
        path: path of the file, for the error.
        rows: rows with the spread in the file's unit, and without faulty prices, which could change the
            size of a point.
        unit: unit from the user or the file's layout; None to infer it from the size of the spreads.
        instrument: instrument of the bars.
    Raises:
        FormatError: the unit is not known, and the spreads fit several units or none.
    """
    sizes = {
        SpreadUnit.PIPS: 1.0,
        SpreadUnit.PRICE: 1.0 / instrument.pip,
        SpreadUnit.POINTS: _point(rows, instrument) / instrument.pip,
    }
    if unit is SpreadUnit.NONE:
        return replace(rows, spread=np.full(len(rows), np.nan))
    known = rows.spread[rows.spread > 0]
    if len(known) == 0:
        return rows
    if unit is None:
        unit = _inferred_unit(path, float(np.median(known)), sizes)
    return replace(rows, spread=np.round(rows.spread * sizes[unit], 6))


def _inferred_unit(path: str, median: float, sizes: dict[SpreadUnit, float]) -> SpreadUnit:
    low, high = _PLAUSIBLE_PIPS
    fitting = [unit for unit, size in sizes.items() if low <= median * size <= high]
    if len(fitting) == 1:
        return fitting[0]
    may_be = f"it may be {' or '.join(fitting)}" if fitting else "it fits neither pips, price nor points"
    raise FormatError(
        path,
        f"the unit of the column `spread` is not known (median {median:g}, {may_be}): name the column "
        "spread_pips, or use `data import --spread-unit` with pips, price, points or none",
    )


def _point(rows: RawRows, instrument: Instrument) -> float:
    """Size of the last decimal that the prices use, at most one beyond the pip, ignoring trailing zeros."""
    prices: Float64 = np.stack([rows.open, rows.high, rows.low, rows.close])
    prices = prices[np.isfinite(prices)]
    for decimals in range(instrument.price_decimals):
        scaled = prices * 10.0**decimals
        if (np.abs(scaled - np.rint(scaled)) < 1e-4).all():
            return float(10.0**-decimals)
    return float(10.0**-instrument.price_decimals)
