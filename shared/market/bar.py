"""One-minute bars, column by column, and the instrument they price."""

import hashlib
import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from shared.errors import DataError
from shared.numeric import Bool, Float64, Int64, require_shape

BAR_SECONDS = 60


#: Currencies whose pairs with each other have a pip of 0.0001.
_FOUR_DECIMALS = frozenset(
    "AUD CAD CHF CNH CZK DKK EUR GBP HKD MXN NOK NZD PLN SEK SGD TRY USD ZAR".split()  # noqa: SIM905
)
#: Currencies whose pairs with the yen have a pip of 0.01; brokers disagree on HKD_JPY and others.
_YEN_BASES = frozenset(("AUD", "CAD", "CHF", "EUR", "GBP", "NZD", "SGD", "TRY", "USD", "ZAR"))

_NAME = re.compile(r"([A-Z0-9]{2,12})_([A-Z]{3})")
_SIX_LETTERS = re.compile(r"([A-Z]{3})[/-]?([A-Z]{3})")

#: Allowed values of `pip_location`.
_PIP_LOCATIONS = range(-8, 2)


@dataclass(frozen=True)
class Instrument:
    """A currency pair or metal; its pip is `10 ** pip_location` of the quote currency."""

    name: str
    pip_location: int

    @property
    def pip(self) -> float:
        """Size of one pip in units of price, such as 0.01 for GBP_JPY and 0.0001 for EUR_USD."""
        return float(10.0**self.pip_location)

    @property
    def price_decimals(self) -> int:
        """Decimals of a quoted price: one beyond the pip."""
        return 1 - self.pip_location

    @classmethod
    def named(cls, name: str, pip_location: int | None = None) -> Self:
        """Look up an instrument by its name.

        Args:
            name: such as GBP_JPY, GBPJPY, GBP/JPY or gbp_jpy.
            pip_location: power of ten of the pip, from broker or user; None for the pair's convention.
        Raises:
            DataError: the name has another form, or the pip is unknown or out of range.
        """
        name = normalized_name(name)
        if pip_location is None:
            pip_location = known_pip_location(name)
            if pip_location is None:
                raise DataError(
                    f"instrument {name}: the size of its pip is not known; give it to "
                    "`data import` or `data synth` with --pip, for example --pip 0.01"
                )
        if pip_location not in _PIP_LOCATIONS:
            raise DataError(f"instrument {name}: pip 10^{pip_location}, expected 10^-8 to 10")
        return cls(name, pip_location)


def normalized_name(name: str) -> str:
    """An instrument's name as OANDA writes it, such as GBP_JPY.

    Raises:
        DataError: it does not name a pair.
    """
    upper = name.strip().upper()
    if match := _SIX_LETTERS.fullmatch(upper):
        upper = f"{match[1]}_{match[2]}"
    if not _NAME.fullmatch(upper) or not upper.isascii():
        raise DataError(f"instrument {name!r}: expected a name such as GBP_JPY")
    return upper


def known_pip_location(name: str) -> int | None:
    """The pip's power of ten by convention, or None where brokers disagree or the pair is not known."""
    base, _, quote = name.partition("_")
    if base == quote:
        return None
    if quote == "JPY":
        return -2 if base in _YEN_BASES else None
    return -4 if base in _FOUR_DECIMALS and quote in _FOUR_DECIMALS else None


def pip_location_of(pip: float) -> int:
    """The power of ten of a pip's size.

    Raises:
        DataError: it is not a power of ten.
    """
    location = next((n for n in _PIP_LOCATIONS if math.isclose(pip, 10.0**n, rel_tol=1e-9)), None)
    if location is None:
        raise DataError(f"pip {pip:g}: expected a power of ten such as 0.0001, 0.01 or 1")
    return location


@dataclass(frozen=True)
class BarSeries:
    """Bars of one instrument in time order; every column is `[T]`.

    A bar is labelled by its opening time and known only from its close, 60 s later. Minutes
    without a price have no bar: nothing is filled forward.
    """

    instrument: Instrument
    time_s: Int64  # seconds since 1970-01-01 UTC at the bar's open
    open: Float64
    high: Float64
    low: Float64
    close: Float64
    volume: Int64
    spread_pips: Float64  # NaN where the source gives none

    def __post_init__(self) -> None:
        """Check that all columns are as long as the times."""
        for name in ("open", "high", "low", "close", "volume", "spread_pips"):
            require_shape(name, getattr(self, name), len(self.time_s))

    def __len__(self) -> int:
        return len(self.time_s)

    def __getitem__(self, rows: slice | Bool | Int64) -> "BarSeries":
        return BarSeries(
            self.instrument,
            self.time_s[rows],
            self.open[rows],
            self.high[rows],
            self.low[rows],
            self.close[rows],
            self.volume[rows],
            self.spread_pips[rows],
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over instrument and columns, in hex; series with the same fingerprint are equal."""
        digest = hashlib.sha256(f"{self.instrument.name} {self.instrument.pip_location}".encode())
        for integers in (self.time_s, self.volume):
            digest.update(np.ascontiguousarray(integers, "<i8").data)
        for column in (self.open, self.high, self.low, self.close, self.spread_pips):
            digest.update(np.ascontiguousarray(column, "<f8").data)
        return digest.hexdigest()

    @property
    def range_pips(self) -> Float64:
        """High minus low of each bar, `[T]`, in pips."""
        return (self.high - self.low) / self.instrument.pip
