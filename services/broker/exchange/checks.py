"""Checks of a market order that need no price."""

from dataclasses import dataclass
from decimal import Decimal

from services.broker.exchange.transactions import (
    MarketOrderFields,
    RejectReason,
    StopLossDetails,
    TakeProfitDetails,
)
from services.broker.wire import Json
from shared.market.bar import Instrument

_TIMES_IN_FORCE = ("FOK", "IOC")
_EXIT_TIMES_IN_FORCE = ("GTC",)


@dataclass(frozen=True)
class InstrumentRules:
    """Precision and size limits of the instrument, as in `/accounts/{id}/instruments`."""

    name: str
    pip_location: int
    display_precision: int
    margin_rate: Decimal
    maximum_units: int = 100_000_000

    @classmethod
    def of(cls, instrument: Instrument, margin_rate: Decimal) -> "InstrumentRules":
        """Rules of an instrument; as at OANDA, prices have one decimal more than the pip."""
        return cls(instrument.name, instrument.pip_location, instrument.price_decimals, margin_rate)

    @property
    def point(self) -> Decimal:
        """Smallest step of a price."""
        return Decimal(1).scaleb(-self.display_precision)

    def json_object(self) -> Json:
        """The instrument as an element of the `instruments` list in OANDA's JSON."""
        pip = Decimal(1).scaleb(self.pip_location)
        trailing = [f"{pips * pip:.{self.display_precision}f}" for pips in (5, 10_000)]
        return {
            "name": self.name,
            "type": "METAL" if self.name.startswith(("XAU_", "XAG_", "XPT_", "XPD_")) else "CURRENCY",
            "displayName": self.name.replace("_", "/"),
            "pipLocation": self.pip_location,
            "displayPrecision": self.display_precision,
            "tradeUnitsPrecision": 0,
            "minimumTradeSize": "1",
            "minimumTrailingStopDistance": trailing[0],
            "maximumTrailingStopDistance": trailing[1],
            "maximumPositionSize": "0",
            "maximumOrderUnits": str(self.maximum_units),
            "marginRate": f"{self.margin_rate:f}",
        }


def check_market_order(fields: MarketOrderFields, rules: InstrumentRules) -> RejectReason | None:
    """The reason to reject an order, from the first rule that it breaks; None if it breaks none."""
    if fields.instrument != rules.name:
        return RejectReason.INSTRUMENT_UNKNOWN
    if fields.units == 0:
        return RejectReason.UNITS_INVALID
    if _decimals(fields.units) > 0:
        return RejectReason.UNITS_PRECISION_EXCEEDED
    if abs(fields.units) > rules.maximum_units:
        return RejectReason.UNITS_LIMIT_EXCEEDED
    if fields.time_in_force not in _TIMES_IN_FORCE:
        return RejectReason.TIME_IN_FORCE_INVALID
    if fields.price_bound is not None:
        if fields.price_bound <= 0:
            return RejectReason.PRICE_BOUND_INVALID
        if _decimals(fields.price_bound) > rules.display_precision:
            return RejectReason.PRICE_BOUND_PRECISION_EXCEEDED
    return _check_take_profit(fields.take_profit_on_fill, rules) or _check_stop_loss(
        fields.stop_loss_on_fill, rules
    )


def _check_take_profit(target: TakeProfitDetails | None, rules: InstrumentRules) -> RejectReason | None:
    if target is None:
        return None
    if target.price <= 0:
        return RejectReason.TAKE_PROFIT_ON_FILL_PRICE_INVALID
    if _decimals(target.price) > rules.display_precision:
        return RejectReason.TAKE_PROFIT_ON_FILL_PRICE_PRECISION_EXCEEDED
    if target.time_in_force not in _EXIT_TIMES_IN_FORCE:
        return RejectReason.TAKE_PROFIT_ON_FILL_TIME_IN_FORCE_INVALID
    return None


def _check_stop_loss(stop: StopLossDetails | None, rules: InstrumentRules) -> RejectReason | None:
    if stop is None:
        return None
    if stop.price is not None and stop.distance is not None:
        return RejectReason.STOP_LOSS_ON_FILL_PRICE_AND_DISTANCE_BOTH_SPECIFIED
    if stop.time_in_force not in _EXIT_TIMES_IN_FORCE:
        return RejectReason.STOP_LOSS_ON_FILL_TIME_IN_FORCE_INVALID
    if stop.price is not None:
        if stop.price <= 0:
            return RejectReason.STOP_LOSS_ON_FILL_PRICE_INVALID
        if _decimals(stop.price) > rules.display_precision:
            return RejectReason.STOP_LOSS_ON_FILL_PRICE_PRECISION_EXCEEDED
        return None
    if stop.distance is None:
        return RejectReason.STOP_LOSS_ON_FILL_PRICE_AND_DISTANCE_BOTH_MISSING
    if stop.distance <= 0:
        return RejectReason.STOP_LOSS_ON_FILL_DISTANCE_INVALID
    if _decimals(stop.distance) > rules.display_precision:
        return RejectReason.STOP_LOSS_ON_FILL_DISTANCE_PRECISION_EXCEEDED
    return None


def _decimals(value: Decimal) -> int:
    """Number of written decimals; as at OANDA, trailing zeros count."""
    exponent = value.as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0
