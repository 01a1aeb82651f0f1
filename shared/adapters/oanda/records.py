"""OANDA v20 responses as typed records: market data in float64, money and units in exact decimals.

In the protocol every number is a string and every time is RFC 3339 with up to nine decimals; only this module
parses them. Unknown fields are ignored, so a server may add some. A response with a missing or unreadable
field raises UnreadableAnswerError, which names the field. Stream lines and transactions are parsed one by
one: an unreadable one becomes a record with the reason.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

from shared.errors import BrokerError, UnreadableAnswerError
from shared.market.clock import FIRST_TIME_S, LAST_TIME_S

NANOSECONDS = 1_000_000_000

#: Ids and counts have 64 bits.
MAX_ID = 2**63 - 1

#: Most digits of a price, size or amount of money, before and after the decimal point.
MAX_DIGITS = 18

#: Names and reasons are cut to this length; OANDA's client ids have at most 128 characters.
MAX_TEXT = 256

Json = Mapping[str, Any]

#: Errors of a parser whose input does not match OANDA's schema.
_UNREADABLE = (KeyError, ValueError, TypeError, IndexError, AttributeError, ArithmeticError)

_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z", re.ASCII)
_R = TypeVar("_R")


def format_time(time_ns: int) -> str:
    """RFC 3339 in UTC with nine decimals, as OANDA writes it."""
    seconds, nanoseconds = divmod(time_ns, NANOSECONDS)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def parse_time(text: str) -> int:
    """Nanoseconds since 1970 UTC of an RFC 3339 time ending in Z.

    Raises:
        ValueError: the text is not such a time, or the trading calendar does not cover it.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"time {text!r}: expected RFC 3339 in UTC such as 2024-03-08T15:00:00.000000000Z")
    seconds = int(datetime.fromisoformat(match[1] + "+00:00").timestamp())
    if not FIRST_TIME_S <= seconds < LAST_TIME_S:
        raise ValueError(f"time {text!r}: expected a time in 1970 to 2099")
    return seconds * NANOSECONDS + int((match[2] or "").ljust(9, "0"))


@dataclass(frozen=True)
class Quote:
    """Open, high, low and close of one price component of a candle."""

    open: float
    high: float
    low: float
    close: float


@dataclass(frozen=True)
class Candle:
    """One bar; a price component that was not requested is None."""

    time_s: int  # seconds since 1970 UTC at the bar's open
    volume: int  # number of price updates
    complete: bool
    mid: Quote | None = None
    bid: Quote | None = None
    ask: Quote | None = None

    @classmethod
    def parse(cls, item: Json) -> "Candle":
        """Read one element of `candles`."""
        quotes = {name: _quote(item[name]) for name in ("mid", "bid", "ask") if item.get(name) is not None}
        return cls(
            parse_time(item["time"]) // NANOSECONDS, _id(item["volume"]), _flag(item["complete"]), **quotes
        )


def _quote(item: Json) -> Quote:
    return Quote(*(_float(item[name]) for name in "ohlc"))


@dataclass(frozen=True)
class Price:
    """Best bid and ask; both None while the book is empty."""

    instrument: str
    time_ns: int
    bid: float | None
    ask: float | None
    tradeable: bool

    @property
    def spread(self) -> Decimal | None:
        """Ask minus bid in units of price, without float noise; None while the book is empty."""
        if self.bid is None or self.ask is None:
            return None
        return Decimal(str(self.ask)) - Decimal(str(self.bid))

    @classmethod
    def parse(cls, item: Json) -> "Price":
        """Read a PRICE line or an element of `prices`.

        Raises:
            ValueError: the line has another type.
        """
        if item.get("type", "PRICE") != "PRICE":
            raise ValueError(f"type {str(item['type'])[:40]!r}: expected PRICE or HEARTBEAT")
        bids, asks = item["bids"], item["asks"]
        return cls(
            _text(item["instrument"]),
            parse_time(item["time"]),
            _float(bids[0]["price"]) if bids else None,
            _float(asks[0]["price"]) if asks else None,
            _flag(item["tradeable"]),
        )


@dataclass(frozen=True)
class Heartbeat:
    """The stream is alive."""

    time_ns: int

    @classmethod
    def parse(cls, item: Json) -> "Heartbeat":
        """Read a HEARTBEAT line."""
        return cls(parse_time(item["time"]))


@dataclass(frozen=True)
class UnreadableLine:
    """A stream line that cannot be read. The stream continues."""

    reason: str


@dataclass(frozen=True)
class InstrumentDetails:
    """How an instrument is quoted and traded on this account."""

    name: str
    pip_location: int
    display_precision: int  # decimals of a price
    units_precision: int  # decimals of units
    minimum_units: Decimal

    def format_price(self, price: float | Decimal) -> str:
        """The price, rounded to the decimals that the server accepts."""
        return f"{Decimal(str(price)):.{self.display_precision}f}"

    def format_units(self, units: int | Decimal) -> str:
        """The signed units with the decimals that the server accepts.

        Raises:
            BrokerError: the units are zero, or have more decimals; rounding would trade another size.
        """
        value = Decimal(units)
        if not value.is_finite() or value == 0 or value != round(value, self.units_precision):
            raise BrokerError(
                f"units {units} of {self.name}: expected a number other than 0 with at most "
                f"{self.units_precision} decimals"
            )
        return f"{value:.{self.units_precision}f}"

    @classmethod
    def parse(cls, item: Json) -> "InstrumentDetails":
        """Read one element of `instruments`."""
        return cls(
            _text(item["name"]),
            _exponent(item["pipLocation"]),
            _decimals(item["displayPrecision"]),
            _decimals(item["tradeUnitsPrecision"]),
            _decimal(item["minimumTradeSize"]),
        )


@dataclass(frozen=True)
class AccountSummary:
    """Money and counts of the account; amounts are in its home currency."""

    account: str
    currency: str
    balance: Decimal
    nav: Decimal
    unrealized_pl: Decimal
    margin_used: Decimal
    margin_available: Decimal
    open_trades: int
    open_positions: int
    pending_orders: int
    hedging_enabled: bool
    last_transaction_id: int

    @classmethod
    def parse(cls, item: Json) -> "AccountSummary":
        """Read `account` of a summary or of a snapshot."""
        return cls(
            _text(item["id"]),
            _text(item["currency"]),
            _decimal(item["balance"]),
            _decimal(item["NAV"]),
            _decimal(item["unrealizedPL"]),
            _decimal(item["marginUsed"]),
            _decimal(item["marginAvailable"]),
            _id(item["openTradeCount"]),
            _id(item["openPositionCount"]),
            _id(item["pendingOrderCount"]),
            _flag(item["hedgingEnabled"]),
            _id(item["lastTransactionID"]),
        )


@dataclass(frozen=True)
class OpenTrade:
    """One open trade. A position is the sum of its trades."""

    trade_id: int
    instrument: str
    units: Decimal  # still open, signed
    price: Decimal
    open_time_ns: int
    client_id: str | None

    @classmethod
    def parse(cls, item: Json) -> "OpenTrade":
        """Read one element of `trades`."""
        return cls(
            _id(item["id"]),
            _text(item["instrument"]),
            _decimal(item["currentUnits"]),
            _price(item["price"]),
            parse_time(item["openTime"]),
            _client_id(item.get("clientExtensions")),
        )


@dataclass(frozen=True)
class Order:
    """An order in its present state: PENDING, FILLED, TRIGGERED or CANCELLED."""

    order_id: int
    kind: str
    state: str
    client_id: str | None
    filling_transaction_id: int | None
    cancelling_transaction_id: int | None

    @property
    def ended_by(self) -> tuple[int, ...]:
        """Ids of the transactions that filled or cancelled it."""
        ends = (self.filling_transaction_id, self.cancelling_transaction_id)
        return tuple(end for end in ends if end is not None)

    @classmethod
    def parse(cls, item: Json) -> "Order":
        """Read `order` or one element of `orders`."""
        return cls(
            _id(item["id"]),
            _text(item["type"]),
            _text(item["state"]),
            _client_id(item.get("clientExtensions")),
            _optional_id(item.get("fillingTransactionID")),
            _optional_id(item.get("cancellingTransactionID")),
        )


@dataclass(frozen=True)
class Transaction:
    """One entry of the account's history. Ids increase strictly; those of one request share a batch."""

    transaction_id: int
    batch_id: int
    time_ns: int
    kind: str  # OANDA's `type`: MARKET_ORDER, ORDER_FILL, ORDER_CANCEL ...

    @staticmethod
    def parse(item: Json) -> "Transaction":
        """Read one transaction as the record of its type."""
        kind = _text(item["type"])
        base = (_id(item["id"]), _id(item["batchID"]), parse_time(item["time"]), kind)
        if kind == "ORDER_FILL":
            return Fill(*base, *_fill_fields(item))
        if kind == "ORDER_CANCEL":
            return OrderCancelled(
                *base, _id(item["orderID"]), _optional_text(item.get("clientOrderID")), _text(item["reason"])
            )
        if kind == "MARKET_ORDER":
            return OrderCreated(
                *base,
                _text(item["instrument"]),
                _decimal(item["units"]),
                _client_id(item.get("clientExtensions")),
            )
        if kind.endswith("_REJECT"):
            return OrderRejected(*base, _text(item["rejectReason"]), _client_id(item.get("clientExtensions")))
        return Transaction(*base)

    @staticmethod
    def parse_leniently(item: Json) -> "Transaction":
        """Read one transaction; if only its id is readable, return an UnreadTransaction.

        The account's history is read again and again. One bad entry must not hide all later entries from the
        trader.
        """
        try:
            return Transaction.parse(item)
        except _UNREADABLE as broken:
            return UnreadTransaction(_id(item["id"]), 0, 0, str(item.get("type"))[:40], explain(broken))


@dataclass(frozen=True)
class UnreadTransaction(Transaction):
    """A transaction of which only the id can be read. Only a snapshot shows its effect."""

    reason: str


@dataclass(frozen=True)
class OrderCreated(Transaction):
    """A market order was accepted. Another transaction reports its fill or cancellation."""

    instrument: str
    units: Decimal
    client_order_id: str | None


@dataclass(frozen=True)
class OrderCancelled(Transaction):
    """An order, or the unfilled rest of one, was cancelled."""

    order_id: int
    client_order_id: str | None
    reason: str


@dataclass(frozen=True)
class OrderRejected(Transaction):
    """A request was refused; nothing was executed."""

    reject_reason: str
    client_order_id: str | None


@dataclass(frozen=True)
class TradeFill:
    """The part of a fill that opened, reduced or closed one trade."""

    trade_id: int
    units: Decimal  # signed, in the direction of the fill
    price: Decimal
    realized_pl: Decimal  # 0 for an opening


@dataclass(frozen=True)
class Fill(Transaction):
    """An order was filled. Prices come from the trades, because the top-level price is deprecated."""

    order_id: int
    client_order_id: str | None
    instrument: str
    units: Decimal  # signed
    reason: str
    pl: Decimal
    account_balance: Decimal
    opened: TradeFill | None
    reduced: TradeFill | None
    closed: tuple[TradeFill, ...]

    @property
    def price(self) -> Decimal:
        """Mean price over the units filled."""
        parts = [*self.closed, *(part for part in (self.reduced, self.opened) if part is not None)]
        units = sum((abs(part.units) for part in parts), Decimal(0))
        if units == 0:
            raise BrokerError(f"fill {self.transaction_id} names no trade, so its price is unknown")
        return sum((abs(part.units) * part.price for part in parts), Decimal(0)) / units


def _fill_fields(item: Json) -> tuple[Any, ...]:
    opened, reduced = item.get("tradeOpened"), item.get("tradeReduced")
    parts = [part for part in (opened, reduced, *item.get("tradesClosed", ())) if part is not None]
    if not any(_decimal(part["units"]) for part in parts):
        raise ValueError("the fill names no trade, so its price is unknown")
    return (
        _id(item["orderID"]),
        _optional_text(item.get("clientOrderID")),
        _text(item["instrument"]),
        _decimal(item["units"]),
        _text(item["reason"]),
        _decimal(item["pl"]),
        _decimal(item["accountBalance"]),
        None if opened is None else _trade_fill(opened),
        None if reduced is None else _trade_fill(reduced),
        tuple(_trade_fill(part) for part in item.get("tradesClosed", ())),
    )


def _trade_fill(item: Json) -> TradeFill:
    return TradeFill(
        _id(item["tradeID"]),
        _decimal(item["units"]),
        _price(item["price"]),
        _decimal(item.get("realizedPL", "0")),
    )


@dataclass(frozen=True)
class OrderOutcome:
    """Outcome of an order: a fill or a cancellation.

    An IOC order may have both: a partial fill and the cancellation of the rest.
    """

    order_id: int
    fill: Fill | None
    cancel: OrderCancelled | None
    last_transaction_id: int

    @classmethod
    def parse(cls, answer: Json, prefix: str = "order") -> "OrderOutcome":
        """Read the response to an order (`order...`) or to a close-out (`longOrder...`, `shortOrder...`).

        Raises:
            BrokerError: the response contains neither a fill nor a cancellation.
        """
        fill, cancel = answer.get(f"{prefix}FillTransaction"), answer.get(f"{prefix}CancelTransaction")
        if fill is None and cancel is None:
            raise BrokerError("the response to an order contains neither a fill nor a cancellation")
        fill_record = None if fill is None else Transaction.parse(fill)
        cancel_record = None if cancel is None else Transaction.parse(cancel)
        return cls(
            _id(answer[f"{prefix}CreateTransaction"]["id"]),
            fill_record if isinstance(fill_record, Fill) else None,
            cancel_record if isinstance(cancel_record, OrderCancelled) else None,
            _id(answer["lastTransactionID"]),
        )


@dataclass(frozen=True)
class AccountSnapshot:
    """State of the account as of one transaction id. Positions are the sums of the trades."""

    summary: AccountSummary
    trades: tuple[OpenTrade, ...]
    orders: tuple[Order, ...]

    @classmethod
    def parse(cls, item: Json) -> "AccountSnapshot":
        """Read `account` of `GET /v3/accounts/{id}`."""
        return cls(
            AccountSummary.parse(item),
            tuple(OpenTrade.parse(trade) for trade in item["trades"]),
            tuple(Order.parse(order) for order in item["orders"]),
        )


def read(what: str, parse: Callable[[], _R]) -> _R:
    """Run a parser and translate its errors.

    Raises:
        UnreadableAnswerError: the text names the response and the field at fault.
    """
    try:
        return parse()
    except _UNREADABLE as broken:
        raise UnreadableAnswerError(f"{what}: {explain(broken)}") from broken


def explain(broken: Exception) -> str:
    """A parser's error in words."""
    if isinstance(broken, KeyError):
        return f"field {broken} is missing"
    if isinstance(broken, InvalidOperation):
        return "a number cannot be read"
    return str(broken)[:200] or type(broken).__name__


def parse_all(parse: Callable[[Json], _R], items: Iterable[Json]) -> tuple[_R, ...]:
    """Read each element of a list."""
    return tuple(parse(item) for item in items)


def _float(text: object) -> float:
    return float(_decimal(text))


def _decimal(text: object) -> Decimal:
    if not isinstance(text, str):
        raise TypeError(f"number {text!r} is not a string")
    value = Decimal(text)
    if not value.is_finite():
        raise ValueError(f"number {text!r} is not finite")
    # With larger exponents, such as 1e999999999, arithmetic and int() would fail or never finish.
    if value.adjusted() >= MAX_DIGITS or -int(value.as_tuple().exponent) > 2 * MAX_DIGITS:
        raise ValueError(f"number {text[:40]!r} has more than {MAX_DIGITS} digits")
    return value


def _price(text: object) -> Decimal:
    value = _decimal(text)
    if value <= 0:
        raise ValueError(f"price {text!r} is not above 0")
    return value


def _id(value: object) -> int:
    """An id or a count: a whole number, as a string or a JSON number."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{str(value)[:40]!r} is not a whole number")
    number = int(value)
    if not 0 <= number <= MAX_ID:
        raise ValueError(f"{str(value)[:40]!r} is not from 0 to {MAX_ID}")
    return number


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _optional_id(text: object) -> int | None:
    return None if text is None else _id(text)


def _exponent(value: object) -> int:
    """A power of ten."""
    if isinstance(value, bool) or not isinstance(value, int | str) or abs(number := int(value)) > MAX_DIGITS:
        raise ValueError(f"{str(value)[:40]!r} is not a whole number from -{MAX_DIGITS} to {MAX_DIGITS}")
    return number


def _decimals(value: object) -> int:
    """Number of decimals."""
    if (number := _exponent(value)) < 0:
        raise ValueError(f"{number} decimals, expected at least 0")
    return number


def _text(value: object) -> str:
    """A name or reason, cut to the length that ledger and messages accept."""
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]!r} is not a string")
    return value[:MAX_TEXT]


def _optional_text(value: object) -> str | None:
    return None if value is None else _text(value)


def _client_id(extensions: Json | None) -> str | None:
    return None if extensions is None else _optional_text(extensions.get("id"))
