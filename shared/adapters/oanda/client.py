"""OANDA v20 over httpx: one client for OANDA's servers and for the paper broker.

oandapyV20's request objects describe each call (path, method, parameters, expected status); its own
transport blocks and has no time-outs, so httpx carries them. A read is repeated on 429, 5xx and
transport errors, with back-off and jitter. A write is sent once: OANDA gives no protection against a
market order sent twice. Only an answer that proves that nothing was executed counts as a refusal: 401, 403,
429, and 400 or 404 with a reject transaction. A connection that was never made proves it too. Any other
answer that is not the expected one raises OutcomeUnknownError, and the caller looks the outcome up
(`transactions_since`, `order_by_client_id`).
"""

import asyncio
import json
import re
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from functools import partial
from itertools import pairwise
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
import stamina

from shared.adapters.oanda.records import (
    AccountSnapshot,
    AccountSummary,
    Candle,
    Heartbeat,
    InstrumentDetails,
    Json,
    OpenTrade,
    Order,
    OrderOutcome,
    Position,
    Price,
    Transaction,
    UnreadableLine,
    format_time,
    parse_all,
    read,
)
from shared.errors import BrokerError, OrderRejectedError, OutcomeUnknownError, UnreadableAnswerError

with warnings.catch_warnings():
    # Its source has invalid escape sequences, which Python warns of whenever it compiles the file anew.
    warnings.simplefilter("ignore")
    from oandapyV20.endpoints import accounts, instruments, orders, positions, pricing, trades, transactions

PRACTICE_API = "https://api-fxpractice.oanda.com"
PRACTICE_STREAM = "https://stream-fxpractice.oanda.com"
LIVE_API = "https://api-fxtrade.oanda.com"
LIVE_STREAM = "https://stream-fxtrade.oanda.com"

#: Most candles of one request.
MAX_CANDLES = 5_000

#: Nothing at all for this long means that a stream is dead: OANDA sends a heartbeat every 5 s.
PRICE_STALL_SECONDS = 10.0
TRANSACTION_STALL_SECONDS = 20.0

#: Why a close is rejected when that side of the position is flat.
NOTHING_TO_CLOSE = "CLOSEOUT_POSITION_DOESNT_EXIST"

MAX_LINE_BYTES = 1 << 20

#: 5,000 candles with three prices each are about 2 MB.
MAX_ANSWER_BYTES = 1 << 25

#: A line that has not ended by then is no line, and the stream is given up.
MAX_DROPPED_BYTES = 64 * MAX_LINE_BYTES
TOO_MANY_REQUESTS = 429

#: An escape in JSON that may be half of a surrogate pair.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

#: A request with such an answer was refused before anything was done with it.
_REFUSED_UNSEEN = (401, 403, TOO_MANY_REQUESTS)

#: A request with such an answer was refused if a reject transaction says so.
_REFUSED_WITH_REJECT = (400, 404)
FIRST_SERVER_ERROR = 500
NOT_FOUND = 404

_R = TypeVar("_R")


class _TransientError(BrokerError):
    """A read failed in a way that may pass: 429, 5xx or the transport."""


class TimeInForce(StrEnum):
    """Fill the whole order or nothing, or what there is at once."""

    FOK = "FOK"
    IOC = "IOC"


class PositionFill(StrEnum):
    """What a fill may do to the position."""

    DEFAULT = "DEFAULT"
    OPEN_ONLY = "OPEN_ONLY"
    REDUCE_FIRST = "REDUCE_FIRST"
    REDUCE_ONLY = "REDUCE_ONLY"


@dataclass(frozen=True)
class MarketOrder:
    """A market order; units above 0 buy, below 0 sell. Prices are in units of price."""

    instrument: InstrumentDetails
    units: int | Decimal
    client_id: str | None = None
    trade_client_id: str | None = None
    time_in_force: TimeInForce = TimeInForce.FOK
    position_fill: PositionFill = PositionFill.DEFAULT
    price_bound: float | None = None
    stop_loss: float | None = None
    take_profit: float | None = None

    def body(self) -> dict[str, object]:
        """The JSON body, every number a string with the instrument's own decimals."""
        order: dict[str, object] = {
            "type": "MARKET",
            "instrument": self.instrument.name,
            "units": self.instrument.format_units(self.units),
            "timeInForce": self.time_in_force.value,
            "positionFill": self.position_fill.value,
        }
        if self.price_bound is not None:
            order["priceBound"] = self.instrument.format_price(self.price_bound)
        for name, price in (("stopLossOnFill", self.stop_loss), ("takeProfitOnFill", self.take_profit)):
            if price is not None:
                order[name] = {"price": self.instrument.format_price(price), "timeInForce": "GTC"}
        if self.client_id is not None:
            order["clientExtensions"] = {"id": self.client_id}
        if self.trade_client_id is not None:
            order["tradeClientExtensions"] = {"id": self.trade_client_id}
        return {"order": order}


@dataclass(frozen=True)
class _Call:
    method: str
    path: str
    params: dict[str, str]
    body: Json | None
    expected_status: int


@dataclass(frozen=True)
class _Answer:
    """One that was read to its end."""

    status_code: int
    content: bytes


def _describe(request_class: Callable[..., Any], *args: str, **kwargs: object) -> _Call:
    """Ask oandapyV20 how a call looks on the wire."""
    request = request_class(*args, **kwargs)
    params = {name: str(value) for name, value in (getattr(request, "params", None) or {}).items()}
    return _Call(
        request.method, f"/{request}", params, getattr(request, "data", None), request.expected_status
    )


class OandaClient:
    """Asynchronous client of one account; `async with` opens and closes its connections."""

    def __init__(
        self,
        account: str,
        token: str,
        *,
        api_url: str = PRACTICE_API,
        stream_url: str = PRACTICE_STREAM,
        connect_seconds: float = 3.0,
        read_seconds: float = 10.0,
        read_attempts: int = 5,
        read_retry_seconds: float = 30.0,
        price_stall_seconds: float = PRICE_STALL_SECONDS,
        transaction_stall_seconds: float = TRANSACTION_STALL_SECONDS,
    ) -> None:
        """Nothing is connected yet.

        Args:
            account: account id such as 101-004-1234567-001.
            token: kept in the request headers only; no log and no text of an error has it.
            api_url: scheme and host of the REST calls.
            stream_url: scheme and host of the streams.
            connect_seconds: limit of opening a connection.
            read_seconds: limit of waiting for the next part of an answer; a whole one may take twice as long.
            read_attempts: how often a read is tried before its error is raised.
            read_retry_seconds: how long a read is tried at most.
            price_stall_seconds: silence that ends a price stream.
            transaction_stall_seconds: silence that ends a transaction stream.
        """
        headers = {"Authorization": f"Bearer {token}", "Accept-Datetime-Format": "RFC3339"}
        limits = httpx.Timeout(read_seconds, connect=connect_seconds)
        self.account = account
        self._answer_seconds = connect_seconds + 2.0 * read_seconds
        self._rest = httpx.AsyncClient(base_url=api_url, headers=headers, timeout=limits)
        self._streams = httpx.AsyncClient(base_url=stream_url, headers=headers, timeout=limits)
        self._price_limits = httpx.Timeout(price_stall_seconds, connect=connect_seconds)
        self._transaction_limits = httpx.Timeout(transaction_stall_seconds, connect=connect_seconds)
        self._retry = stamina.AsyncRetryingCaller(
            attempts=read_attempts, timeout=read_retry_seconds, wait_initial=0.2, wait_max=5.0
        ).on(_TransientError)

    def __repr__(self) -> str:
        return f"OandaClient({self._rest.base_url}, account={self.account})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._rest.aclose()
        await self._streams.aclose()

    # -- market data ---------------------------------------------------------------------------------

    async def candles(
        self,
        instrument: str,
        *,
        granularity: str = "M1",
        price: str = "MBA",
        count: int | None = None,
        start_s: int | None = None,
        stop_s: int | None = None,
        include_first: bool = True,
        complete_only: bool = True,
        unreadable: Callable[[str], None] | None = None,
    ) -> tuple[Candle, ...]:
        """Candles in time order, at most 5,000.

        Args:
            instrument: name such as GBP_JPY.
            granularity: OANDA's name of the bar length.
            price: any of M, B and A.
            count: number of candles, 1 to 5,000; not together with both `start_s` and `stop_s`.
            start_s: the first candle is the one that covers this time.
            stop_s: no candle from this time on.
            include_first: False leaves out the candle that covers `start_s`.
            complete_only: leave out a candle whose end has not passed; it counts in `count` all the same.
            unreadable: called with the reason for each candle that cannot be read, which is then left out;
                without it such a candle fails the whole answer.
        Raises:
            BrokerError: refused, or unreachable after every attempt.
            UnreadableAnswerError: the answer breaks its schema, or is about another instrument.
        """
        if count is not None and not 1 <= count <= MAX_CANDLES:
            raise BrokerError(f"candle count {count}: expected 1 to {MAX_CANDLES}")
        params: dict[str, object] = {"granularity": granularity, "price": price}
        if count is not None:
            params["count"] = count
        if start_s is not None:
            params["from"] = format_time(start_s * 1_000_000_000)
            params["includeFirst"] = include_first
        if stop_s is not None:
            params["to"] = format_time(stop_s * 1_000_000_000)
        call = _describe(instruments.InstrumentsCandles, quote(instrument, safe=""), params=params)
        found = await self._read(call, lambda answer: _candles(answer, instrument, granularity, unreadable))
        return tuple(candle for candle in found if candle.complete or not complete_only)

    async def prices(self, *names: str) -> tuple[Price, ...]:
        """The price of each instrument now."""
        call = _describe(pricing.PricingInfo, self.account, params={"instruments": ",".join(names)})
        return await self._read(call, lambda answer: parse_all(Price.parse, answer["prices"]))

    async def instruments(self) -> tuple[InstrumentDetails, ...]:
        """Precision and sizes of every instrument that the account can trade."""
        call = _describe(accounts.AccountInstruments, self.account, params={})
        return tuple(
            await self._read(call, lambda answer: parse_all(InstrumentDetails.parse, answer["instruments"]))
        )

    async def instrument(self, name: str) -> InstrumentDetails:
        """Precision and sizes of one instrument.

        Raises:
            BrokerError: the account cannot trade it.
        """
        call = _describe(accounts.AccountInstruments, self.account, params={"instruments": name})
        found = await self._read(
            call, lambda answer: parse_all(InstrumentDetails.parse, answer["instruments"])
        )
        for details in found:
            if details.name == name:
                return details
        raise BrokerError(f"account {self.account} cannot trade {name}")

    def price_stream(self, *names: str) -> AsyncGenerator[Price | Heartbeat | UnreadableLine, None]:
        """Prices and heartbeats as they come; it never ends by itself; `aclosing` ends it.

        A line that cannot be read, of an unknown type for one, comes as an UnreadableLine.

        Raises:
            BrokerError: refused, closed, broken, or silent for longer than `price_stall_seconds`.
        """
        call = _describe(pricing.PricingStream, self.account, params={"instruments": ",".join(names)})
        return self._stream(call, self._price_limits, Price.parse)

    # -- account -------------------------------------------------------------------------------------

    async def accounts(self) -> tuple[str, ...]:
        """Ids of the accounts that the token opens."""
        call = _describe(accounts.AccountList)
        return await self._read(call, lambda answer: tuple(item["id"] for item in answer["accounts"]))

    async def snapshot(self) -> AccountSnapshot:
        """The whole account: summary, open trades, pending orders."""
        call = _describe(accounts.AccountDetails, self.account)
        return await self._read(call, lambda answer: AccountSnapshot.parse(answer["account"]))

    async def summary(self) -> AccountSummary:
        """Money and counts."""
        call = _describe(accounts.AccountSummary, self.account)
        return await self._read(call, lambda answer: AccountSummary.parse(answer["account"]))

    async def position(self, instrument: str) -> Position:
        """The net position of one instrument, flat where there never was one."""
        call = _describe(positions.PositionDetails, self.account, instrument=quote(instrument, safe=""))
        try:
            return await self._read(call, lambda answer: Position.parse(answer["position"]))
        except BrokerError as error:
            if error.status != NOT_FOUND:
                raise
            return Position(instrument, Decimal(0), None, Decimal(0))

    async def open_trades(self) -> tuple[OpenTrade, ...]:
        """Every open trade."""
        call = _describe(trades.OpenTrades, accountID=self.account)
        return await self._read(call, lambda answer: parse_all(OpenTrade.parse, answer["trades"]))

    async def pending_orders(self) -> tuple[Order, ...]:
        """Every pending order."""
        call = _describe(orders.OrdersPending, self.account)
        return await self._read(call, lambda answer: parse_all(Order.parse, answer["orders"]))

    async def order_by_client_id(self, client_id: str) -> Order | None:
        """The order that was sent with this client id, or None.

        None is no proof right after sending: OANDA's replicas lag by up to half a second.
        """
        call = _describe(orders.OrderDetails, self.account, orderID=f"@{quote(client_id, safe='')}")
        try:
            return await self._read(call, lambda answer: Order.parse(answer["order"]))
        except BrokerError as error:
            if error.status == NOT_FOUND:
                return None
            raise

    # -- transactions --------------------------------------------------------------------------------

    async def transactions_since(self, transaction_id: int) -> tuple[Transaction, ...]:
        """Every transaction with a larger id, in order; a server may send them in several answers.

        A transaction of which only the id can be read comes as an UnreadTransaction.

        Raises:
            BrokerError: with status 416 when the id is out of the account's range.
            UnreadableAnswerError: the answer breaks its schema, or its ids do not increase.
        """
        found: list[Transaction] = []
        while True:
            since = found[-1].transaction_id if found else transaction_id
            call = _describe(transactions.TransactionsSinceID, self.account, params={"id": since})
            batch, last = await self._read(
                call,
                lambda answer: (
                    parse_all(Transaction.parse_leniently, answer["transactions"]),
                    int(answer["lastTransactionID"]),
                ),
            )
            ids = [since, *(transaction.transaction_id for transaction in batch)]
            if any(later <= earlier for earlier, later in pairwise(ids)):
                raise UnreadableAnswerError(
                    f"{call.method} {call.path}: ids after {since} are {ids[1:6]}, expected them to increase"
                )
            found.extend(batch)
            if not batch or batch[-1].transaction_id >= last:
                return tuple(found)

    def transaction_stream(self) -> AsyncGenerator[Transaction | Heartbeat | UnreadableLine, None]:
        """Transactions and heartbeats as they come; it never ends by itself; `aclosing` ends it.

        Raises:
            BrokerError: refused, closed, broken, or silent for longer than `transaction_stall_seconds`.
        """
        call = _describe(transactions.TransactionsStream, self.account)
        return self._stream(call, self._transaction_limits, Transaction.parse)

    # -- writes: sent once ---------------------------------------------------------------------------

    async def market_order(self, order: MarketOrder) -> OrderOutcome:
        """Send a market order, once.

        Raises:
            OrderRejectedError: refused with a reject transaction; nothing was done.
            OutcomeUnknownError: no answer, or one that proves nothing: it may be filled. Look it up, never
                send it again.
            BrokerError: not sent, or refused before it was looked at; nothing was done.
        """
        call = _describe(orders.OrderCreate, self.account, data=order.body())
        return await self._write(call, OrderOutcome.parse)

    async def close_position(
        self, instrument: str, *, long: bool, client_id: str | None = None
    ) -> OrderOutcome:
        """Close all units of one side of a position, once; it can only reduce, so it may be repeated.

        Raises:
            OrderRejectedError: refused with a reject transaction, `NOTHING_TO_CLOSE` when that side is flat.
            OutcomeUnknownError: no answer, or one that proves nothing.
            BrokerError: not sent, or refused before it was looked at; nothing was done.
        """
        side = "long" if long else "short"
        body: dict[str, object] = {f"{side}Units": "ALL"}
        if client_id is not None:
            body[f"{side}ClientExtensions"] = {"id": client_id}
        call = _describe(
            positions.PositionClose, self.account, instrument=quote(instrument, safe=""), data=body
        )
        return await self._write(call, lambda answer: OrderOutcome.parse(answer, f"{side}Order"))

    async def cancel_order(self, order_id: int) -> None:
        """Cancel a pending order, once.

        Raises:
            OrderRejectedError: there is no such pending order.
            OutcomeUnknownError: no answer, or one that proves nothing.
        """
        await self._write(_describe(orders.OrderCancel, self.account, orderID=str(order_id)), lambda _: None)

    async def acknowledge_bar(self, time_s: int) -> bool:
        """Tell the paper broker that the bar opened at `time_s` was decided on; its replay may go on.

        OANDA has no such call: it is made only where the settings name the paper broker.

        Returns:
            True when this was the last bar of the replay.
        """
        call = _Call("POST", "/v3/replay/acknowledge", {}, {"time": format_time(time_s * 1_000_000_000)}, 200)
        return await self._read(
            call, lambda body: body.get("over") is True and body.get("newestCompleteSeconds") == time_s
        )

    # -- transport -----------------------------------------------------------------------------------

    async def _read(self, call: _Call, parse: Callable[[Json], _R]) -> _R:
        answer = await self._retry(self._send_read, call)
        return read(f"{call.method} {call.path}", lambda: parse(_object(answer)))

    async def _request(self, call: _Call) -> _Answer:
        """Send one request and read its whole answer.

        Raises:
            httpx.HTTPError: the transport failed, or the answer is too large.
            TimeoutError: the answer is not complete in time; a server that sends it byte by byte never
                exceeds the limit of a single read.
        """
        async with (
            asyncio.timeout(self._answer_seconds),
            self._rest.stream(call.method, call.path, params=call.params, json=call.body) as response,
        ):
            return await _whole(response)

    async def _send_read(self, call: _Call) -> _Answer:
        try:
            response = await self._request(call)
        except (httpx.HTTPError, TimeoutError) as error:
            raise _TransientError(f"{call.method} {call.path}: {_reason(error)}") from error
        if response.status_code == TOO_MANY_REQUESTS or response.status_code >= FIRST_SERVER_ERROR:
            raise _TransientError(_refusal(call, response), status=response.status_code)
        if response.status_code != call.expected_status:
            raise BrokerError(_refusal(call, response), status=response.status_code)
        return response

    async def _write(self, call: _Call, parse: Callable[[Json], _R]) -> _R:
        try:
            response = await self._request(call)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            # No connection was made, so there is nothing to look up. A WriteTimeout may come after the whole
            # request has left, and is not one of these.
            raise BrokerError(f"{call.method} {call.path} was not sent: {_reason(error)}") from error
        except (httpx.HTTPError, TimeoutError) as error:
            raise OutcomeUnknownError(f"{call.method} {call.path} was sent: {_reason(error)}") from error
        if response.status_code != call.expected_status:
            raise _write_failed(call, response)
        try:
            return read(f"{call.method} {call.path}", lambda: parse(_object(response)))
        except BrokerError as error:
            raise OutcomeUnknownError(
                f"answer not understood: {error}", status=response.status_code
            ) from error

    async def _stream(
        self, call: _Call, limits: httpx.Timeout, parse: Callable[[Json], _R]
    ) -> AsyncGenerator[_R | Heartbeat | UnreadableLine, None]:
        name = f"{call.method} {call.path}"
        try:
            async with self._streams.stream(
                call.method, call.path, params=call.params, timeout=limits
            ) as response:
                if response.status_code != call.expected_status:
                    async with asyncio.timeout(self._answer_seconds):
                        refused = await _whole(response)
                    raise BrokerError(_refusal(call, refused), status=refused.status_code)
                async with aclosing(split_lines(response.aiter_bytes())) as lines:
                    async for line in lines:
                        yield line if isinstance(line, UnreadableLine) else _parse_line(name, line, parse)
        except httpx.ReadTimeout as silence:
            raise BrokerError(f"{name}: nothing arrived for {limits.read} s, the stream is dead") from silence
        except (httpx.HTTPError, TimeoutError) as error:
            raise BrokerError(f"{name}: {_reason(error)}") from error
        raise BrokerError(f"{name}: the server closed the stream")


async def _whole(response: httpx.Response) -> _Answer:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise httpx.ReadError(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
    return _Answer(response.status_code, bytes(content))


async def split_lines(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes | UnreadableLine, None]:
    """The non-empty lines of a byte stream: a chunk may hold several lines, a line several chunks.

    A line longer than 1 MiB is read to its end and dropped; an UnreadableLine stands for it.

    Raises:
        BrokerError: a line has no end within 64 MiB.
    """
    rest, dropped = b"", 0  # the line that has begun, and how much of it was dropped for its length
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if dropped or len(line) > MAX_LINE_BYTES:
                yield UnreadableLine(f"a stream line is longer than {MAX_LINE_BYTES} bytes")
            elif line.strip():
                yield line
            dropped = 0
        if dropped or len(rest) > MAX_LINE_BYTES:
            dropped, rest = dropped + len(rest), b""
        if dropped > MAX_DROPPED_BYTES:
            raise BrokerError(f"a stream line is longer than {MAX_DROPPED_BYTES} bytes")


def _object(response: _Answer) -> Json:
    return _parse_object(response.content)


def _parse_object(text: bytes) -> Json:
    try:
        written = text.decode()
        answer = json.loads(written)
        if _SURROGATE.search(written):
            answer = _without_surrogates(answer)
    except RecursionError as deep:
        raise ValueError(f"JSON nested too deeply: {text[:80]!r}") from deep
    if not isinstance(answer, dict):
        raise TypeError(f"expected a JSON object, got {text[:80]!r}")
    return answer


def _without_surrogates(value: object) -> object:
    """The value with every half of a surrogate pair in its texts replaced: none can be stored or sent on."""
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case list():
            return [_without_surrogates(item) for item in value]
        case dict():
            return {_without_surrogates(name): _without_surrogates(item) for name, item in value.items()}
        case _:
            return value


def _parse_line(name: str, line: bytes, parse: Callable[[Json], _R]) -> _R | Heartbeat | UnreadableLine:
    def parsed() -> _R | Heartbeat:
        item = _parse_object(line)
        return Heartbeat.parse(item) if item.get("type") == "HEARTBEAT" else parse(item)

    try:
        return read(name, parsed)
    except UnreadableAnswerError as unreadable:
        return UnreadableLine(str(unreadable))


def _candles(
    answer: Json, instrument: str, granularity: str, unreadable: Callable[[str], None] | None
) -> tuple[Candle, ...]:
    """Candles of an answer that is about what was asked."""
    told = (answer.get("instrument", instrument), answer.get("granularity", granularity))
    if told != (instrument, granularity):
        raise ValueError(f"candles of {told[0]} {told[1]}, asked was {instrument} {granularity}")
    found = []
    for item in answer["candles"]:
        try:
            found.append(read(f"candle of {instrument}", partial(Candle.parse, item)))
        except UnreadableAnswerError as broken:
            if unreadable is None:
                raise
            unreadable(str(broken))
    return tuple(found)


def _reason(error: httpx.HTTPError | TimeoutError) -> str:
    return f"{type(error).__name__} {error}".strip()


def _error_fields(response: _Answer, names: Iterable[str]) -> list[str | None]:
    try:
        body = _object(response)
    except (ValueError, TypeError):
        return [None for _ in names]
    return [str(body[name]) if name in body else None for name in names]


def _refusal(call: _Call, response: _Answer) -> str:
    code, message = _error_fields(response, ("errorCode", "errorMessage"))
    details = ": ".join(part for part in (code, message) if part)
    return f"{call.method} {call.path} answered {response.status_code}{': ' if details else ''}{details}"


def _write_failed(call: _Call, response: _Answer) -> BrokerError:
    """What an unexpected answer proves: a reject, a refusal before the request was looked at, or nothing."""
    text, status = _refusal(call, response), response.status_code
    if status in _REFUSED_UNSEEN:
        return BrokerError(text, status=status)
    reason = _reject_reason(response) if status in _REFUSED_WITH_REJECT else None
    if reason is None:
        return OutcomeUnknownError(text, status=status)
    return OrderRejectedError(text, status=status, reject_reason=reason)


def _reject_reason(response: _Answer) -> str | None:
    """The reason in an answer's reject transaction, or None where it holds none."""
    try:
        body = _object(response)
    except (ValueError, TypeError):
        return None
    for name, value in body.items():
        if name.endswith("RejectTransaction") and isinstance(value, dict) and "rejectReason" in value:
            return str(value["rejectReason"])
    return None
