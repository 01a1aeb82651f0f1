"""What OANDA v20 says, as typed records: market data in float64, money and units in exact decimals.

Every number of the protocol is a string and every time RFC 3339 with up to nine decimals; both are read
here and nowhere else. Fields that a newer server adds are ignored, so that an addition breaks nothing.
An answer with a field that is missing or cannot be read raises UnreadableAnswerError, which names the
field. A stream line and a transaction are read one by one: a bad one becomes a record that says why.
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

#: Ids and counts are 64-bit numbers.
MAX_ID = 2**63 - 1

#: No price, size or amount of money has more digits before its decimal point, or after it.
MAX_DIGITS = 18

#: Names and reasons are shorter than this; OANDA's client ids have at most 128 characters.
MAX_TEXT = 256

Json = Mapping[str, Any]

#: What a parser raises when it meets something else than OANDA's schema.
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
        ValueError: the text is no such time, or a time that the trading calendar does not cover.
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
    """One bar; a component that was not asked for is None."""

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
            ValueError: it is a line of another type.
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
    """The stream is alive; a transaction stream also tells the last id, so that a lost event shows."""

    time_ns: int
    last_transaction_id: int | None = None

    @classmethod
    def parse(cls, item: Json) -> "Heartbeat":
        """Read a HEARTBEAT line."""
        last = item.get("lastTransactionID")
        return cls(parse_time(item["time"]), None if last is None else _id(last))


@dataclass(frozen=True)
class UnreadableLine:
    """A stream line that cannot be read; the stream goes on."""

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
        """The price with the decimals that the server accepts; float noise is rounded away."""
        return f"{Decimal(str(price)):.{self.display_precision}f}"

    def format_units(self, units: int | Decimal) -> str:
        """The signed units with the decimals that the server accepts.

        Raises:
            BrokerError: the units are zero or have more decimals: rounding them would trade another size.
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
class Position:
    """Net units held of an instrument: above 0 long, below 0 short, 0 flat."""

    instrument: str
    units: Decimal
    average_price: Decimal | None  # None when flat
    unrealized_pl: Decimal

    @classmethod
    def parse(cls, item: Json) -> "Position":
        """Read one element of `positions`.

        Raises:
            BrokerError: both sides are open; this system trades netting accounts only.
        """
        sides = [side for side in (item["long"], item["short"]) if _decimal(side["units"]) != 0]
        if len(sides) > 1:
            raise BrokerError(
                f"position {item['instrument']} is long and short at once: hedging accounts are refused"
            )
        average = sides[0].get("averagePrice") if sides else None
        return cls(
            _text(item["instrument"]),
            _decimal(sides[0]["units"]) if sides else Decimal(0),
            None if average is None else _decimal(average),
            _decimal(item.get("unrealizedPL", "0")),
        )


@dataclass(frozen=True)
class OpenTrade:
    """One open trade; the position is the sum of them."""

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
    """An order as it stands: PENDING, FILLED, TRIGGERED or CANCELLED."""

    order_id: int
    kind: str
    state: str
    client_id: str | None
    filling_transaction_id: int | None
    cancelling_transaction_id: int | None

    @property
    def ended_by(self) -> tuple[int, ...]:
        """The transactions that ended it."""
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
    """One entry of the account's history; ids increase strictly, one batch is one request."""

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
        """Read one transaction; one that cannot be read, but whose id can, becomes an UnreadTransaction.

        One bad entry of the account's history is read again and again. It must not keep the trader from
        everything that came after it.
        """
        try:
            return Transaction.parse(item)
        except _UNREADABLE as broken:
            return UnreadTransaction(_id(item["id"]), 0, 0, str(item.get("type"))[:40], explain(broken))


@dataclass(frozen=True)
class UnreadTransaction(Transaction):
    """A transaction of which only the id can be read; what it did is known from a snapshot alone."""

    reason: str


@dataclass(frozen=True)
class OrderCreated(Transaction):
    """A market order was accepted; whether it was filled is told by another transaction."""

    instrument: str
    units: Decimal
    client_order_id: str | None


@dataclass(frozen=True)
class OrderCancelled(Transaction):
    """An order ended without a fill, or without the rest of one."""

    order_id: int
    client_order_id: str | None
    reason: str


@dataclass(frozen=True)
class OrderRejected(Transaction):
    """A request was refused; nothing was done."""

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
    """An order was filled; the prices are those of the trades, the top-level one is deprecated."""

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
            raise BrokerError(f"fill {self.transaction_id} names no trade: its price is not known")
        return sum((abs(part.units) * part.price for part in parts), Decimal(0)) / units


def _fill_fields(item: Json) -> tuple[Any, ...]:
    opened, reduced = item.get("tradeOpened"), item.get("tradeReduced")
    parts = [part for part in (opened, reduced, *item.get("tradesClosed", ())) if part is not None]
    if not any(_decimal(part["units"]) for part in parts):
        raise ValueError("the fill names no trade, so that its price is not known")
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
    """What became of an order: a fill or a cancellation, exactly one of them.

    An IOC order may have both: a fill of a part and the cancellation of the rest.
    """

    order_id: int
    fill: Fill | None
    cancel: OrderCancelled | None
    last_transaction_id: int

    @classmethod
    def parse(cls, answer: Json, prefix: str = "order") -> "OrderOutcome":
        """Read the answer to an order (`order...`) or to a close-out (`longOrder...`, `shortOrder...`).

        Raises:
            BrokerError: the answer tells of neither a fill nor a cancellation.
        """
        fill, cancel = answer.get(f"{prefix}FillTransaction"), answer.get(f"{prefix}CancelTransaction")
        if fill is None and cancel is None:
            raise BrokerError("the answer to an order tells of neither a fill nor a cancellation")
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
    """What the account holds, as of one transaction id; its positions are the sums of its trades."""

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
        UnreadableAnswerError: naming what was read and the field at fault.
    """
    try:
        return parse()
    except _UNREADABLE as broken:
        raise UnreadableAnswerError(f"{what}: {explain(broken)}") from broken


def explain(broken: Exception) -> str:
    """What a parser stumbled over, in words."""
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
    # Beyond this, arithmetic and int() of an exponent such as 1e999999999 would fail or never end.
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
        raise TypeError(f"{str(value)[:40]!r} is no whole number")
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
        raise ValueError(f"{str(value)[:40]!r} is no whole number from -{MAX_DIGITS} to {MAX_DIGITS}")
    return number


def _decimals(value: object) -> int:
    """How many decimals a number is written with."""
    if (number := _exponent(value)) < 0:
        raise ValueError(f"{number} decimals, expected at least 0")
    return number


def _text(value: object) -> str:
    """A name or a reason: what goes into the ledger and into messages must be a text of a known length."""
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]!r} is no text")
    return value[:MAX_TEXT]


def _optional_text(value: object) -> str | None:
    return None if value is None else _text(value)


def _client_id(extensions: Json | None) -> str | None:
    return None if extensions is None else _optional_text(extensions.get("id"))
