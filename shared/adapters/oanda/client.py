"""OANDA v20 over httpx: one client for OANDA's servers and for the paper broker.

oandapyV20's request objects describe each call (path, method, parameters, expected status). Its own transport
blocks and has no time-outs, so httpx sends the requests.

Reads are retried on 429, 5xx and transport errors, with backoff and jitter. Writes are sent once, because
OANDA does not deduplicate market orders. A write counts as refused only if the response proves that nothing
was executed: 401, 403, 429, or 400 or 404 with a reject transaction; a connection that was never made proves
it too. Any other unexpected response raises OutcomeUnknownError, and the caller looks the outcome up
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
    Candle,
    Heartbeat,
    InstrumentDetails,
    Json,
    Order,
    OrderOutcome,
    Price,
    Transaction,
    UnreadableLine,
    format_time,
    parse_all,
    read,
)
from shared.errors import BrokerError, OrderRejectedError, OutcomeUnknownError, UnreadableAnswerError

with warnings.catch_warnings():
    # Python warns about invalid escape sequences when it compiles oandapyV20's source.
    warnings.simplefilter("ignore")
    from oandapyV20.endpoints import accounts, instruments, orders, positions, pricing, transactions

PRACTICE_API = "https://api-fxpractice.oanda.com"
PRACTICE_STREAM = "https://stream-fxpractice.oanda.com"
LIVE_API = "https://api-fxtrade.oanda.com"
LIVE_STREAM = "https://stream-fxtrade.oanda.com"

#: Most candles in one response.
MAX_CANDLES = 5_000

#: A stream that is silent for this long is dead: OANDA sends a heartbeat every 5 s.
PRICE_STALL_SECONDS = 10.0

#: Reject reason of a close when that side of the position is flat.
NOTHING_TO_CLOSE = "CLOSEOUT_POSITION_DOESNT_EXIST"

MAX_LINE_BYTES = 1 << 20

#: 5,000 candles with three prices each are about 2 MB.
MAX_ANSWER_BYTES = 1 << 25

#: A longer line ends the stream: the server is probably not sending lines.
MAX_DROPPED_BYTES = 64 * MAX_LINE_BYTES
TOO_MANY_REQUESTS = 429

#: A JSON escape that may be an unpaired surrogate.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

#: Statuses of requests that were refused before they were processed.
_REFUSED_UNPROCESSED = (401, 403, TOO_MANY_REQUESTS)

#: Statuses that prove a refusal only if the response has a reject transaction.
_REFUSED_WITH_REJECT = (400, 404)
FIRST_SERVER_ERROR = 500
NOT_FOUND = 404

_R = TypeVar("_R")


class _TransientError(BrokerError):
    """A read failed for a reason that may be transient: 429, 5xx or the transport."""


class TimeInForce(StrEnum):
    """FOK: fill the whole order or nothing. IOC: fill at once what is available."""

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
    """A market order; units above 0 buy, below 0 sell. Bound, stop and target are prices, not distances."""

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
        """The JSON body. Every number is a string with the instrument's decimals."""
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
class _Response:
    """A response whose body was read completely."""

    status_code: int
    content: bytes


def _describe(request_class: Callable[..., Any], *args: str, **kwargs: object) -> _Call:
    """The HTTP request of a call, as oandapyV20 describes it."""
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
    ) -> None:
        """Create a client; it does not connect yet.

        Args:
            account: account id such as 101-004-1234567-001.
            token: access token; kept only in the request headers, never in logs or error texts.
            api_url: scheme and host of the REST calls.
            stream_url: scheme and host of the streams.
            connect_seconds: limit for opening a connection.
            read_seconds: limit for each part of a response; a complete response may take twice as long.
            read_attempts: attempts of a read before its error is raised.
            read_retry_seconds: limit for all attempts of a read together.
            price_stall_seconds: a price stream that is silent for this long is dead.
        """
        headers = {"Authorization": f"Bearer {token}", "Accept-Datetime-Format": "RFC3339"}
        limits = httpx.Timeout(read_seconds, connect=connect_seconds)
        self.account = account
        self._answer_seconds = connect_seconds + 2.0 * read_seconds
        self._rest = httpx.AsyncClient(base_url=api_url, headers=headers, timeout=limits)
        self._streams = httpx.AsyncClient(base_url=stream_url, headers=headers, timeout=limits)
        self._price_limits = httpx.Timeout(price_stall_seconds, connect=connect_seconds)
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
            stop_s: only candles before this time.
            include_first: False leaves out the candle that covers `start_s`.
            complete_only: leave out the candle that is still forming; `count` includes it.
            unreadable: called with the reason for each unreadable candle, which is then left out; without it
                such a candle is an error.
        Raises:
            BrokerError: the server refuses, or every attempt failed.
            UnreadableAnswerError: the response does not match its schema, or is for another instrument.
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
        """Prices and heartbeats as they arrive. The stream has no end; close it with `aclosing`.

        A line that cannot be read, for example one of an unknown type, is yielded as an UnreadableLine.

        Raises:
            BrokerError: the stream was refused, closed or broken, or was silent for `price_stall_seconds`.
        """
        call = _describe(pricing.PricingStream, self.account, params={"instruments": ",".join(names)})
        return self._stream(call, self._price_limits, Price.parse)

    # -- account -------------------------------------------------------------------------------------

    async def accounts(self) -> tuple[str, ...]:
        """Ids of the accounts that the token gives access to."""
        call = _describe(accounts.AccountList)
        return await self._read(call, lambda answer: tuple(item["id"] for item in answer["accounts"]))

    async def snapshot(self) -> AccountSnapshot:
        """The complete account: summary, open trades, pending orders."""
        call = _describe(accounts.AccountDetails, self.account)
        return await self._read(call, lambda answer: AccountSnapshot.parse(answer["account"]))

    async def order_by_client_id(self, client_id: str) -> Order | None:
        """The order with this client id, or None.

        None proves nothing right after sending, because OANDA's replicas lag by up to half a second.
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
        """Every transaction with a larger id, in order; the server may send them in several responses.

        A transaction of which only the id can be read is returned as an UnreadTransaction.

        Raises:
            BrokerError: with status 416 if the id is out of the account's range.
            UnreadableAnswerError: the response does not match its schema, or its ids do not increase.
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

    # -- writes: sent once ---------------------------------------------------------------------------

    async def market_order(self, order: MarketOrder) -> OrderOutcome:
        """Send a market order once.

        Raises:
            OrderRejectedError: refused with a reject transaction; nothing was executed.
            OutcomeUnknownError: no response, or one that proves nothing: the order may be filled. Look it
                up; never send it again.
            BrokerError: not sent, or refused before it was processed; nothing was executed.
        """
        call = _describe(orders.OrderCreate, self.account, data=order.body())
        return await self._write(call, OrderOutcome.parse)

    async def close_position(
        self, instrument: str, *, long: bool, client_id: str | None = None
    ) -> OrderOutcome:
        """Close all units of one side of a position. This only reduces it, so the caller may repeat the call.

        Raises:
            OrderRejectedError: refused with a reject transaction: `NOTHING_TO_CLOSE` if that side is flat.
            OutcomeUnknownError: no response, or one that proves nothing.
            BrokerError: not sent, or refused before it was processed; nothing was executed.
        """
        side = "long" if long else "short"
        body: dict[str, object] = {f"{side}Units": "ALL"}
        if client_id is not None:
            body[f"{side}ClientExtensions"] = {"id": client_id}
        call = _describe(
            positions.PositionClose, self.account, instrument=quote(instrument, safe=""), data=body
        )
        return await self._write(call, lambda answer: OrderOutcome.parse(answer, f"{side}Order"))

    async def acknowledge_bar(self, time_s: int) -> bool:
        """Acknowledge the decision on the bar opened at `time_s`, so that the paper broker's replay goes on.

        OANDA has no such call; it is made only if the settings name the paper broker.

        Returns:
            True if this was the last bar of the replay.
        """
        call = _Call("POST", "/v3/replay/acknowledge", {}, {"time": format_time(time_s * 1_000_000_000)}, 200)
        return await self._read(
            call, lambda body: body.get("over") is True and body.get("newestCompleteSeconds") == time_s
        )

    # -- transport -----------------------------------------------------------------------------------

    async def _read(self, call: _Call, parse: Callable[[Json], _R]) -> _R:
        answer = await self._retry(self._send_read, call)
        return read(f"{call.method} {call.path}", lambda: parse(_object(answer)))

    async def _request(self, call: _Call) -> _Response:
        """Send one request and read the complete response.

        Raises:
            httpx.HTTPError: the transport failed, or the response is too large.
            TimeoutError: the response is not complete in time. The limit of a single read does not catch a
                server that sends byte by byte.
        """
        async with (
            asyncio.timeout(self._answer_seconds),
            self._rest.stream(call.method, call.path, params=call.params, json=call.body) as response,
        ):
            return await _read_body(response)

    async def _send_read(self, call: _Call) -> _Response:
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
            # No connection was made, so there is nothing to look up. WriteTimeout is not in this list: it may
            # occur after the complete request has left.
            raise BrokerError(f"{call.method} {call.path} was not sent: {_reason(error)}") from error
        except (httpx.HTTPError, TimeoutError) as error:
            raise OutcomeUnknownError(f"{call.method} {call.path} was sent: {_reason(error)}") from error
        if response.status_code != call.expected_status:
            raise _write_error(call, response)
        try:
            return read(f"{call.method} {call.path}", lambda: parse(_object(response)))
        except BrokerError as error:
            raise OutcomeUnknownError(
                f"unreadable response to a write: {error}", status=response.status_code
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
                        refused = await _read_body(response)
                    raise BrokerError(_refusal(call, refused), status=refused.status_code)
                async with aclosing(split_lines(response.aiter_bytes())) as lines:
                    async for line in lines:
                        yield line if isinstance(line, UnreadableLine) else _parse_line(name, line, parse)
        except httpx.ReadTimeout as silence:
            raise BrokerError(f"{name}: nothing arrived for {limits.read} s, the stream is dead") from silence
        except (httpx.HTTPError, TimeoutError) as error:
            raise BrokerError(f"{name}: {_reason(error)}") from error
        raise BrokerError(f"{name}: the server closed the stream")


async def _read_body(response: httpx.Response) -> _Response:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise httpx.ReadError(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
    return _Response(response.status_code, bytes(content))


async def split_lines(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes | UnreadableLine, None]:
    """The non-empty lines of a byte stream, independent of how it is divided into chunks.

    A line longer than 1 MiB is dropped, and an UnreadableLine is yielded in its place.

    Raises:
        BrokerError: a line is longer than 64 MiB.
    """
    rest, dropped = b"", 0  # the unfinished line, and how many of its bytes were dropped
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


def _object(response: _Response) -> Json:
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
    """The value with unpaired surrogates in its texts replaced: they cannot be encoded as UTF-8."""
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
    """Read the candles; raise ValueError if they are of another instrument or granularity."""
    found_for = (answer.get("instrument", instrument), answer.get("granularity", granularity))
    if found_for != (instrument, granularity):
        raise ValueError(f"candles of {found_for[0]} {found_for[1]}, expected {instrument} {granularity}")
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


def _error_fields(response: _Response, names: Iterable[str]) -> list[str | None]:
    try:
        body = _object(response)
    except (ValueError, TypeError):
        return [None for _ in names]
    return [str(body[name]) if name in body else None for name in names]


def _refusal(call: _Call, response: _Response) -> str:
    code, message = _error_fields(response, ("errorCode", "errorMessage"))
    details = ": ".join(part for part in (code, message) if part)
    return f"{call.method} {call.path} answered {response.status_code}{': ' if details else ''}{details}"


def _write_error(call: _Call, response: _Response) -> BrokerError:
    """The error for an unexpected response: rejected, refused before processing, or outcome unknown."""
    text, status = _refusal(call, response), response.status_code
    if status in _REFUSED_UNPROCESSED:
        return BrokerError(text, status=status)
    reason = _reject_reason(response) if status in _REFUSED_WITH_REJECT else None
    if reason is None:
        return OutcomeUnknownError(text, status=status)
    return OrderRejectedError(text, status=status, reject_reason=reason)


def _reject_reason(response: _Response) -> str | None:
    """The reason in a response's reject transaction, or None if it has none."""
    try:
        body = _object(response)
    except (ValueError, TypeError):
        return None
    for name, value in body.items():
        if name.endswith("RejectTransaction") and isinstance(value, dict) and "rejectReason" in value:
            return str(value["rejectReason"])
    return None
