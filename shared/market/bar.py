"""One-minute bars, column by column, and the instrument they price."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from shared.errors import DataError
from shared.numeric import Bool, Float64, Int64, require_shape

BAR_SECONDS = 60


@dataclass(frozen=True)
class Instrument:
    """A currency pair; its pip is `10 ** pip_location` of the quote currency."""

    name: str
    pip_location: int

    @property
    def pip(self) -> float:
        """Size of one pip in units of price: 0.01 for JPY quotes, 0.0001 otherwise."""
        return float(10.0**self.pip_location)

    @classmethod
    def named(cls, name: str) -> Self:
        """The instrument of a name such as GBP_JPY, with the pip location that its quote currency has.

        Raises:
            DataError: the name is not of the form AAA_BBB.
        """
        base, _, quote = name.partition("_")
        if not all(len(code) == 3 and code.isascii() and code.isupper() for code in (base, quote)):
            raise DataError(f"instrument {name!r}: expected a name such as GBP_JPY")
        return cls(name, -2 if quote == "JPY" else -4)


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
        """SHA-256 over instrument and columns, in hex: two series with one fingerprint are equal."""
        digest = hashlib.sha256(f"{self.instrument.name} {self.instrument.pip_location}".encode())
        for whole in (self.time_s, self.volume):
            digest.update(np.ascontiguousarray(whole, "<i8").data)
        for column in (self.open, self.high, self.low, self.close, self.spread_pips):
            digest.update(np.ascontiguousarray(column, "<f8").data)
        return digest.hexdigest()

    @property
    def range_pips(self) -> Float64:
        """High minus low of each bar, `[T]`, in pips."""
        return (self.high - self.low) / self.instrument.pip
