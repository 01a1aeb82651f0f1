"""The OANDA client against servers that send scripted responses, byte by byte."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.adapters.oanda.client import (
    PRICE_STALL_SECONDS,
    MarketOrder,
    OandaClient,
    split_lines,
)
from shared.adapters.oanda.records import (
    Candle,
    Fill,
    Heartbeat,
    InstrumentDetails,
    OrderCancelled,
    OrderOutcome,
    Price,
    Quote,
    Transaction,
    UnreadableLine,
    UnreadTransaction,
    format_time,
    parse_time,
    read,
)
from shared.errors import BrokerError, OrderRejectedError, OutcomeUnknownError, UnreadableAnswerError

D = Decimal
ACCOUNT = "101-004-1234567-001"
TOKEN = "canary-token-77"
GBP_JPY = InstrumentDetails("GBP_JPY", -2, 3, 0, D(1))


class Server:
    """Answers each connection with the next script (pieces of bytes), then closes it or stays silent."""

    def __init__(self, answers: Sequence[Sequence[bytes]], *, hang: bool) -> None:
        self.answers, self.hang = list(answers), hang
        self.requests: list[bytes] = []
        self.connections: set[asyncio.Task[None]] = set()

    def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(asyncio.ensure_future(self._answer(reader, writer)))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = [
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-len")
        ]
        self.requests.append(head + await reader.readexactly(length[0] if length else 0))
        for piece in self.answers[min(len(self.requests), len(self.answers)) - 1]:
            writer.write(piece)
            await writer.drain()
        if self.hang:
            await reader.read()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def speaking(
    *answers: Sequence[bytes], hang: bool = False, **options: float
) -> AsyncIterator[tuple[OandaClient, Server]]:
    script = Server(answers, hang=hang)
    server = await asyncio.start_server(script, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = OandaClient(ACCOUNT, TOKEN, api_url=url, stream_url=url, **options)  # type: ignore[arg-type]
    async with client:
        yield client, script
    server.close()
    await server.wait_closed()
    await asyncio.gather(*script.connections)


def answer(status: int, body: object, reason: str = "x") -> list[bytes]:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    return [head.encode() + text]


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(text: bytes) -> bytes:
    return f"{len(text):x}\r\n".encode() + text + b"\r\n"


SNAPSHOT = {
    "account": {
        "id": ACCOUNT,
        "currency": "USD",
        "balance": "100000.0000",
        "NAV": "100000.0000",
        "unrealizedPL": "0.0000",
        "marginUsed": "0.0000",
        "marginAvailable": "100000.0000",
        "openTradeCount": 0,
        "openPositionCount": 0,
        "pendingOrderCount": 0,
        "hedgingEnabled": False,
        "lastTransactionID": "1000",
        "trades": [],
        "orders": [],
        "dividendAdjustment": "0",  # unknown fields of newer servers are ignored
    },
    "lastTransactionID": "1000",
}

HEAD = {"accountID": ACCOUNT, "userID": 1234567, "batchID": "1001", "time": "2024-03-08T15:00:00.123456789Z"}
CREATED = {**HEAD, "id": "1001", "type": "MARKET_ORDER", "instrument": "GBP_JPY", "units": "1"}
FILLED = {
    **HEAD,
    "id": "1002",
    "type": "ORDER_FILL",
    "orderID": "1001",
    "clientOrderID": "k1",
    "instrument": "GBP_JPY",
    "units": "1",
    "reason": "MARKET_ORDER",
    "pl": "0.0000",
    "financing": "0.0000",
    "accountBalance": "100000.0000",
    "price": "0",
    "tradeOpened": {"tradeID": "1002", "units": "1", "price": "189.109"},
}
ORDER_ANSWER = {
    "orderCreateTransaction": CREATED,
    "orderFillTransaction": FILLED,
    "relatedTransactionIDs": ["1001", "1002"],
    "lastTransactionID": "1002",
}
PRICE = {
    "type": "PRICE",
    "time": "2024-03-08T15:00:00.123456789Z",
    "bids": [{"price": "189.081", "liquidity": 1000000}],
    "asks": [{"price": "189.109", "liquidity": 1000000}],
    "closeoutBid": "189.070",
    "closeoutAsk": "189.120",
    "status": "tradeable",
    "tradeable": True,
    "instrument": "GBP_JPY",
}
BEAT = {"type": "HEARTBEAT", "time": "2024-03-08T15:00:05.000000000Z"}


# -- reads -------------------------------------------------------------------------------------------


async def test_a_read_is_repeated_until_the_server_recovers() -> None:
    busy, down = answer(429, {"errorMessage": "Rate limit exceeded"}), answer(504, b"<html>")
    async with speaking(busy, [b""], down, answer(200, SNAPSHOT)) as (client, server):
        snapshot = await client.snapshot()
    assert snapshot.summary.balance == D("100000.0000")
    assert len(server.requests) == 4
    assert f"GET /v3/accounts/{ACCOUNT} HTTP/1.1".encode() in server.requests[0]
    assert f"Authorization: Bearer {TOKEN}".encode() in server.requests[0]
    assert b"Accept-Datetime-Format: RFC3339" in server.requests[0]


async def test_a_refused_read_is_not_repeated() -> None:
    refusal = {"errorMessage": "Insufficient authorization to perform request."}
    async with speaking(answer(401, refusal)) as (client, server):
        with pytest.raises(BrokerError, match="Insufficient authorization") as refused:
            await client.snapshot()
    assert refused.value.status == 401
    assert len(server.requests) == 1
    assert TOKEN not in str(refused.value) + repr(refused.value)


async def test_candles_are_parsed_exactly_and_unfinished_ones_are_left_out() -> None:
    item = {
        "complete": True,
        "volume": 3,
        "time": "2024-03-08T15:00:00.000000000Z",
        "mid": {"o": "189.085", "h": "189.1", "l": "189.0", "c": "189.095"},
        "bid": {"o": "189.071", "h": "189.088", "l": "189.060", "c": "189.081"},
    }
    found = {"instrument": "GBP_JPY", "granularity": "M1", "candles": [item, {**item, "complete": False}]}
    async with speaking(answer(200, found)) as (client, server):
        candles = await client.candles("GBP_JPY", start_s=1_709_910_000, count=2, include_first=False)
    mid, bid = Quote(189.085, 189.1, 189.0, 189.095), Quote(189.071, 189.088, 189.060, 189.081)
    assert candles == (Candle(1_709_910_000, 3, True, mid, bid, None),)
    line = server.requests[0].split(b"\r\n")[0].decode()
    for part in (
        "granularity=M1",
        "price=MBA",
        "count=2",
        "from=2024-03-08T15%3A00%3A00.000000000Z",
        "includeFirst=False",
    ):
        assert part in line


@pytest.mark.parametrize("count", [0, 5_001])
async def test_a_candle_count_that_oanda_rejects_is_not_requested(count: int) -> None:
    async with OandaClient(ACCOUNT, TOKEN) as client:
        with pytest.raises(BrokerError, match="expected 1 to 5000"):
            await client.candles("GBP_JPY", count=count)


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        ({**SNAPSHOT, "account": {}}, "field 'id' is missing"),
        ([], "expected a JSON object"),
        (b"{", "Expecting"),
        ({"account": {**SNAPSHOT["account"], "balance": 1.5}}, "not a string"),  # type: ignore[dict-item]
        ({"account": {**SNAPSHOT["account"], "balance": "NaN"}}, "not finite"),  # type: ignore[dict-item]
        ({"account": {**SNAPSHOT["account"], "balance": "abc"}}, "a number cannot be read"),  # type: ignore[dict-item]
    ],
)
async def test_the_error_of_an_unreadable_answer_names_the_fault(broken: object, text: str) -> None:
    async with speaking(answer(200, broken)) as (client, _):
        with pytest.raises(BrokerError, match=text):
            await client.snapshot()


async def test_transactions_are_requested_until_the_last_one_arrived() -> None:
    first = {"transactions": [CREATED], "lastTransactionID": "1002"}
    second = {"transactions": [FILLED], "lastTransactionID": "1002"}
    async with speaking(answer(200, first), answer(200, second)) as (client, server):
        found = await client.transactions_since(1000)
    assert [item.transaction_id for item in found] == [1001, 1002]
    assert b"id=1000" in server.requests[0]
    assert b"id=1001" in server.requests[1]


@pytest.mark.parametrize(
    "damage",
    [
        {"pl": "NaN"},
        {"tradeOpened": {"tradeID": "1002", "units": "1", "price": "0"}},
        {"type": 7},
        {"time": None},
    ],
)
async def test_an_unreadable_transaction_does_not_hide_the_next(damage: dict[str, object]) -> None:
    body = {"transactions": [{**FILLED, "id": "1001", **damage}, FILLED], "lastTransactionID": "1002"}
    async with speaking(answer(200, body)) as (client, _):
        bad, good = await client.transactions_since(1000)
    assert isinstance(bad, UnreadTransaction)
    assert bad.transaction_id == 1001
    assert isinstance(good, Fill)


@pytest.mark.parametrize("ids", [("1000",), ("1002", "1001"), ("1001", "1001"), (str(2**63),)])
async def test_a_history_whose_ids_do_not_increase_is_refused(ids: tuple[str, ...]) -> None:
    """A server that repeats its transactions must not cause an endless loop."""
    body = {"transactions": [{**CREATED, "id": text} for text in ids], "lastTransactionID": "9999"}
    async with speaking(answer(200, body)) as (client, _):
        with pytest.raises(UnreadableAnswerError):
            await asyncio.wait_for(client.transactions_since(1000), 5)


async def test_candles_of_another_instrument_are_refused() -> None:
    body = {"instrument": "EUR_USD", "granularity": "M1", "candles": []}
    async with speaking(answer(200, body)) as (client, _):
        with pytest.raises(UnreadableAnswerError, match="EUR_USD M1, expected GBP_JPY M1"):
            await client.candles("GBP_JPY")


async def test_an_unreadable_candle_is_reported_to_the_callback_or_is_an_error() -> None:
    mid = {"o": "1.0", "h": "1.0", "l": "1.0", "c": "1.0"}
    candle = {"time": "2024-03-08T15:00:00Z", "volume": 1, "complete": True, "mid": mid}
    broken = {**candle, "mid": {**mid, "c": "NaN"}}
    body = {"instrument": "GBP_JPY", "granularity": "M1", "candles": [broken, candle]}
    async with speaking(answer(200, body)) as (client, _):
        reasons: list[str] = []
        (good,) = await client.candles("GBP_JPY", unreadable=reasons.append)
        assert good.mid == Quote(1.0, 1.0, 1.0, 1.0)
        assert [text for text in reasons if "not finite" in text] == reasons
        assert len(reasons) == 1
        with pytest.raises(UnreadableAnswerError, match="not finite"):
            await client.candles("GBP_JPY")


async def test_a_client_id_is_quoted_in_the_path() -> None:
    async with speaking(answer(404, {"errorMessage": "no"})) as (client, server):
        assert await client.order_by_client_id("a/../b?c") is None
    assert b"/orders/@a%2F..%2Fb%3Fc " in server.requests[0]


# -- writes ------------------------------------------------------------------------------------------


async def test_an_orders_numbers_are_sent_as_strings_with_the_instruments_decimals() -> None:
    order = MarketOrder(
        GBP_JPY,
        -1,
        client_id="k1",
        trade_client_id="t1",
        stop_loss=0.1 + 188.2,
        take_profit=187,
        price_bound=188.1,
    )
    async with speaking(answer(201, ORDER_ANSWER)) as (client, server):
        outcome = await client.market_order(order)
    assert outcome.fill is not None
    assert outcome.fill.price == D("189.109")  # the trade's price: the top-level one is deprecated
    body = json.loads(server.requests[0].split(b"\r\n\r\n", 1)[1])
    assert body == {
        "order": {
            "type": "MARKET",
            "instrument": "GBP_JPY",
            "units": "-1",
            "timeInForce": "FOK",
            "positionFill": "DEFAULT",
            "priceBound": "188.100",
            "stopLossOnFill": {"price": "188.300", "timeInForce": "GTC"},
            "takeProfitOnFill": {"price": "187.000", "timeInForce": "GTC"},
            "clientExtensions": {"id": "k1"},
            "tradeClientExtensions": {"id": "t1"},
        }
    }


@pytest.mark.parametrize(
    "lost",
    [
        [b""],
        [b"HTTP/1.1 201 Created\r\nContent-Length: 500\r\n\r\n{"],
        answer(504, {"errorMessage": "Timeout waiting for response."}),
        answer(500, b""),
        answer(201, b"not json"),
        answer(201, {"lastTransactionID": "5"}),
        answer(200, ORDER_ANSWER),
        answer(302, b""),
        answer(400, {"errorMessage": "Invalid value specified for 'units'", "errorCode": "X"}),
        answer(400, b"<html>"),
        answer(400, {"orderRejectTransaction": "?"}),
        answer(404, {"errorMessage": "no such path"}),
        answer(409, {"orderRejectTransaction": {"rejectReason": "X"}}),
    ],
)
async def test_a_write_with_an_unclear_answer_is_sent_once_and_its_outcome_unknown(lost: list[bytes]) -> None:
    async with speaking(lost) as (client, server):
        with pytest.raises(OutcomeUnknownError):
            await client.market_order(MarketOrder(GBP_JPY, 1))
    assert len(server.requests) == 1


async def test_a_write_without_a_timely_answer_has_an_unknown_outcome() -> None:
    async with speaking([b""], hang=True, read_seconds=0.1) as (client, server):
        with pytest.raises(OutcomeUnknownError, match="ReadTimeout"):
            await client.market_order(MarketOrder(GBP_JPY, 1))
    assert len(server.requests) == 1


async def test_a_write_that_times_out_while_being_sent_has_an_unknown_outcome() -> None:
    """The server reads nothing, so the socket buffers are full when only a part of the request is sent."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        async with OandaClient(ACCOUNT, TOKEN, api_url=url, read_seconds=0.2) as client:
            with pytest.raises(OutcomeUnknownError, match="WriteTimeout"):
                await client.market_order(MarketOrder(GBP_JPY, 1, client_id="x" * 20_000_000))


@pytest.mark.parametrize(
    ("part", "pause", "message"),
    [(b" ", 0.02, "TimeoutError"), (b" " * 1_000_000, 0.0, "larger than")],
    ids=["trickles", "floods"],
)
async def test_an_endless_answer_is_abandoned(part: bytes, pause: float, message: str) -> None:
    """Without limits, one endless answer would delay every later request, or exhaust the memory."""
    connections = []

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        target = await reader.readuntil(b"\r\n\r\n")
        status = b"503 No" if b"/pricing/stream" in target else b"200 OK"
        writer.write(b"HTTP/1.1 " + status + b"\r\nTransfer-Encoding: chunked\r\n\r\n")
        with suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(chunk(part))
                await writer.drain()
                await asyncio.sleep(pause)
        writer.close()

    server = await asyncio.start_server(endless, "127.0.0.1")
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    limits = {"connect_seconds": 0.1, "read_seconds": 0.2 if pause else 10.0}
    client = OandaClient(ACCOUNT, TOKEN, api_url=url, stream_url=url, read_attempts=1, **limits)
    async with server, client, asyncio.timeout(60):
        with pytest.raises(OutcomeUnknownError, match=message):
            await client.close_position("GBP_JPY", long=True)
        with pytest.raises(BrokerError, match=message):
            await client.snapshot()
        with pytest.raises(BrokerError, match=message):
            await anext(client.price_stream("GBP_JPY"))
    await asyncio.gather(*filter(None, connections))


@pytest.mark.parametrize("half", [b"\\ud800", b"\xed\xa0\x80"], ids=["escaped", "raw"])
async def test_an_unpaired_surrogate_is_replaced(half: bytes) -> None:
    """The ledger, the streams and the log cannot encode a surrogate."""
    body = b'{"errorMessage": "no ' + half + b'"}'
    async with speaking(answer(403, body)) as (client, _):
        with pytest.raises(BrokerError, match="answered 403") as refused:
            await client.close_position("GBP_JPY", long=True)
    assert str(refused.value).encode()


@pytest.mark.parametrize("status", [401, 403, 429])
async def test_a_write_refused_before_processing_is_known_not_to_be_executed(
    status: int,
) -> None:
    async with speaking(answer(status, {"errorMessage": "no"})) as (client, _):
        with pytest.raises(BrokerError) as refused:
            await client.close_position("GBP_JPY", long=True)
    assert not isinstance(refused.value, OutcomeUnknownError | OrderRejectedError)
    assert refused.value.status == status


async def test_a_write_that_was_never_sent_has_a_known_outcome() -> None:
    async with OandaClient(ACCOUNT, TOKEN, api_url="http://127.0.0.1:9") as client:
        with pytest.raises(BrokerError, match="was not sent") as failed:
            await client.market_order(MarketOrder(GBP_JPY, 1))
    assert not isinstance(failed.value, OutcomeUnknownError)


async def test_the_error_of_a_rejected_write_has_the_reject_reason() -> None:
    reject = {**HEAD, "id": "1001", "type": "MARKET_ORDER_REJECT", "rejectReason": "INSUFFICIENT_MARGIN"}
    body = {"orderRejectTransaction": reject, "errorMessage": "no margin", "errorCode": "X"}
    async with speaking(answer(400, body)) as (client, server):
        with pytest.raises(OrderRejectedError, match="no margin") as rejected:
            await client.market_order(MarketOrder(GBP_JPY, 1))
    assert (rejected.value.reject_reason, rejected.value.status) == ("INSUFFICIENT_MARGIN", 400)
    assert len(server.requests) == 1


@pytest.mark.parametrize("units", [0, D("1.5"), D("NaN")])
def test_units_that_cannot_be_sent_exactly_are_refused(units: int | Decimal) -> None:
    with pytest.raises(BrokerError, match="units"):
        MarketOrder(GBP_JPY, units).body()


# -- streams -----------------------------------------------------------------------------------------


async def test_lines_are_reassembled_from_any_chunks() -> None:
    text = (
        json.dumps(PRICE) + "\n" + json.dumps(BEAT) + "\n\n" + json.dumps({**PRICE, "bids": []}) + "\n"
    ).encode()
    pieces = [chunk(text[start : start + 37]) for start in range(0, len(text), 37)]
    async with (
        speaking([STREAM_HEAD, *pieces], hang=True) as (client, _),
        aclosing(client.price_stream("GBP_JPY")) as stream,
    ):
        found = [await anext(stream) for _ in range(3)]
    time_ns = 1_709_910_000_123_456_789
    assert found == [
        Price("GBP_JPY", time_ns, 189.081, 189.109, True),
        Heartbeat(1_709_910_005_000_000_000),
        Price("GBP_JPY", time_ns, None, 189.109, True),
    ]


async def test_a_silent_stream_is_dead() -> None:
    pieces = [STREAM_HEAD, chunk(json.dumps(BEAT).encode() + b"\n")]
    async with (
        speaking(pieces, hang=True, price_stall_seconds=0.1) as (client, _),
        aclosing(client.price_stream("GBP_JPY")) as stream,
    ):
        assert isinstance(await anext(stream), Heartbeat)
        with pytest.raises(BrokerError, match="the stream is dead"):
            await anext(stream)


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([STREAM_HEAD, chunk(b'{"type":"PRI')], "RemoteProtocolError"),
        ([STREAM_HEAD, b"0\r\n\r\n"], "closed the stream"),
        (answer(401, {"errorMessage": "Insufficient"}), "401: Insufficient"),
    ],
)
async def test_the_error_of_a_closed_stream_names_the_reason(pieces: list[bytes], text: str) -> None:
    async with speaking(pieces) as (client, _), aclosing(client.price_stream("GBP_JPY")) as stream:
        with pytest.raises(BrokerError, match=text):
            await anext(stream)


_PRICE = {
    "type": "PRICE",
    "instrument": "GBP_JPY",
    "time": "2024-03-08T15:00:00.123456789Z",
    "bids": [{"price": "189.081", "liquidity": 1}],
    "asks": [{"price": "189.109", "liquidity": 1}],
    "tradeable": True,
}


def _priced(text: object) -> bytes:
    return json.dumps({**_PRICE, "bids": [{"price": text, "liquidity": 1}]}).encode()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"nonsense", "Expecting value"),
        (b"[1]", "expected a JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"type":"\xff"}', "decode"),
        (b'{"type":"MARGIN_NEWS"}', "MARGIN_NEWS"),
        (json.dumps({k: v for k, v in _PRICE.items() if k != "bids"}).encode(), "field 'bids' is missing"),
        (_priced("NaN"), "not finite"),
        (_priced("1e999"), "more than 18 digits"),
        (_priced("1e-999999999"), "more than 18 digits"),
        (_priced(float("nan")), "not a string"),
        (json.dumps({**_PRICE, "time": "2200-01-01T00:00:00Z"}).encode(), "1970 to 2099"),
        (b'{"type":"HEARTBEAT","time":"soon"}', "soon"),
    ],
)
async def test_an_unreadable_stream_line_does_not_break_the_stream(line: bytes, text: str) -> None:
    lines = line + b"\n" + json.dumps(BEAT).encode() + b"\n"
    async with (
        speaking([STREAM_HEAD, chunk(lines)], hang=True) as (client, _),
        aclosing(client.price_stream("GBP_JPY")) as stream,
    ):
        bad, good = await anext(stream), await anext(stream)
    assert isinstance(bad, UnreadableLine)
    assert text in bad.reason
    assert isinstance(good, Heartbeat)


def test_a_price_stream_is_dead_after_two_missing_heartbeats() -> None:
    """OANDA's documentation: reconnect after 10 s without a price line or heartbeat."""
    assert PRICE_STALL_SECONDS == 10.0


@given(
    st.lists(st.binary(max_size=6).filter(lambda line: line.strip() and b"\n" not in line)), st.integers(1, 9)
)
def test_splitting_undoes_joining(lines: list[bytes], size: int) -> None:
    text = b"".join(line + b"\n" for line in lines)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(text), size):
            yield text[start : start + size]

    assert asyncio.run(_split(chunks())) == lines


async def _split(chunks: AsyncIterator[bytes]) -> list[bytes | UnreadableLine]:
    return [line async for line in split_lines(chunks)]


@pytest.mark.parametrize("size", [1 << 16, 1 << 22])
async def test_a_too_long_line_is_dropped_and_the_next_one_is_read(size: int) -> None:
    text = b"one\n" + b"x" * (3 << 20) + b"\ntwo\n" + b"y" * (1 << 20) + b"\nthree\n"

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(text), size):
            yield text[start : start + size]

    first, long, *rest = await _split(chunks())
    assert (first, rest) == (b"one", [b"two", b"y" * (1 << 20), b"three"])
    assert isinstance(long, UnreadableLine)
    assert "longer than 1048576 bytes" in long.reason


async def test_an_endless_line_breaks_the_stream() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 4_000_000

    with pytest.raises(BrokerError, match="longer than 67108864"):
        await _split(chunks())


# -- records -----------------------------------------------------------------------------------------


@given(st.integers(0, 4_102_444_799_999_999_999))
def test_parsing_a_time_undoes_formatting_it(time_ns: int) -> None:
    assert parse_time(format_time(time_ns)) == time_ns


@pytest.mark.parametrize(
    "text", ["", "2024-03-08", "2024-03-08T15:00:00+00:00", "2024-02-30T00:00:00Z", "1709856000.1"]
)
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the text is that of datetime
        parse_time(text)


def test_the_price_of_a_fill_is_the_mean_over_its_trades() -> None:
    parts = [{"tradeID": "1", "units": "-2", "price": "10", "realizedPL": "1"}]
    opened = {"tradeID": "9", "units": "-1", "price": "13"}
    fill = Transaction.parse({**FILLED, "tradesClosed": parts, "tradeOpened": opened})
    assert isinstance(fill, Fill)
    assert fill.price == 11
    assert fill.closed[0].realized_pl == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"reason": {"deep": 1}},
        {"reason": None},
        {"instrument": 7},
        {"clientOrderID": ["k"]},
        {"tradesClosed": [], "tradeOpened": None, "tradeReduced": None},
        {"tradeOpened": {"tradeID": "9", "units": "0", "price": "13"}},
    ],
)
def test_a_fill_with_a_field_of_a_wrong_type_is_an_unread_transaction(changes: dict[str, object]) -> None:
    """Ledger and messages store these fields, so each must have its declared type."""
    found = Transaction.parse_leniently({**FILLED, **changes})
    assert isinstance(found, UnreadTransaction)
    assert str(found.transaction_id) == FILLED["id"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("displayPrecision", -1),
        ("displayPrecision", 10**6),
        ("tradeUnitsPrecision", "-2"),
        ("pipLocation", 400),
        ("pipLocation", True),
        ("name", None),
    ],
)
def test_an_instrument_for_which_no_order_can_be_formatted_is_refused(field: str, value: object) -> None:
    item = {
        "name": "GBP_JPY",
        "pipLocation": -2,
        "displayPrecision": 3,
        "tradeUnitsPrecision": 0,
        "minimumTradeSize": "1",
    }
    assert InstrumentDetails.parse(item).display_precision == 3
    with pytest.raises((ValueError, TypeError)):
        InstrumentDetails.parse({**item, field: value})


def test_an_order_answered_with_201_may_be_cancelled() -> None:
    cancel = {**HEAD, "id": "1002", "type": "ORDER_CANCEL", "orderID": "1001", "reason": "MARKET_HALTED"}
    outcome = OrderOutcome.parse(
        {"orderCreateTransaction": CREATED, "orderCancelTransaction": cancel, "lastTransactionID": "1002"}
    )
    assert outcome.fill is None
    assert isinstance(outcome.cancel, OrderCancelled)
    assert outcome.cancel.reason == "MARKET_HALTED"


@pytest.mark.parametrize("fault", [KeyError("units"), ValueError("v"), TypeError("t"), IndexError("i")])
def test_the_error_of_a_parser_becomes_a_broker_error(fault: Exception) -> None:
    def fail() -> None:
        raise fault

    run: Callable[[], None] = fail
    with pytest.raises(BrokerError, match="price"):
        read("price", run)
