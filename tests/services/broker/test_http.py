"""The broker over real HTTP, with the real client and with raw requests."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from decimal import Decimal

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.broker.exchange.transactions import TRANSACTION
from shared.adapters.oanda.client import MarketOrder, OandaClient, PositionFill
from shared.adapters.oanda.records import Heartbeat, Price, format_time
from shared.errors import BrokerError, OrderRejectedError
from shared.market.candles import CandleBuilder
from tests.services.broker.conftest import ACCOUNT, TOKEN, Market, Running
from tests.services.broker.markets import START_S, bars_of

D = Decimal


@asynccontextmanager
async def transaction_lines(at: Running) -> AsyncIterator[AsyncIterator[dict[str, object]]]:
    """Lines of the transaction stream, parsed."""
    async with at.http.stream("GET", "/transactions/stream") as answer:
        assert answer.status_code == 200
        yield (json.loads(line) async for line in answer.aiter_lines() if line)


async def test_a_round_trip_of_one_unit(market: Market) -> None:
    async with market() as at:
        details = await at.client.instrument("GBP_JPY")
        assert (details.pip_location, details.display_precision, details.units_precision) == (-2, 3, 0)
        before = (await at.client.snapshot()).summary
        assert not before.hedging_enabled

        outcome = await at.client.market_order(MarketOrder(details, 1, client_id="in", trade_client_id="in"))
        assert outcome.fill is not None
        assert outcome.fill.price == D("188.020")
        position = (await at.http.get("/positions/GBP_JPY")).json()["position"]
        assert (position["long"]["units"], position["short"]["units"]) == ("1", "0")
        assert [trade.client_id for trade in (await at.client.snapshot()).trades] == ["in"]

        closed = await at.client.close_position("GBP_JPY", long=True, client_id="out")
        assert closed.fill is not None
        assert closed.fill.pl == D("-0.0400")
        history = await at.client.transactions_since(before.last_transaction_id)
        assert [item.kind for item in history] == ["MARKET_ORDER", "ORDER_FILL"] * 2
        snapshot = await at.client.snapshot()
        assert snapshot.summary.balance == before.balance + closed.fill.pl
        assert snapshot.trades == ()
        found = await at.client.order_by_client_id("out")
        assert found is not None
        assert found.filling_transaction_id == closed.fill.transaction_id
        assert await at.client.order_by_client_id("never") is None


async def test_refusals_carry_their_reason(market: Market) -> None:
    async with market() as at:
        details = await at.client.instrument("GBP_JPY")
        with pytest.raises(OrderRejectedError) as flat:
            await at.client.close_position("GBP_JPY", long=True)
        assert flat.value.reject_reason == "CLOSEOUT_POSITION_DOESNT_EXIST"
        with pytest.raises(OrderRejectedError) as huge:
            await at.client.market_order(MarketOrder(details, 10**9))
        assert (huge.value.status, huge.value.reject_reason) == (400, "UNITS_LIMIT_EXCEEDED")
        outcome = await at.client.market_order(
            MarketOrder(details, -1, position_fill=PositionFill.REDUCE_ONLY)
        )
        assert outcome.fill is None
        assert outcome.cancel is not None


async def test_stop_and_target_are_sent_with_an_order(market: Market) -> None:
    async with market() as at:
        details = await at.client.instrument("GBP_JPY")
        order = MarketOrder(details, 1, stop_loss=187.5, take_profit=188.6, price_bound=188.021)
        assert (await at.client.market_order(order)).fill is not None
        pending = (await at.http.get("/pendingOrders")).json()["orders"]
        assert sorted(item["type"] for item in pending) == ["STOP_LOSS", "TAKE_PROFIT"]
        cancel = f"/orders/{pending[0]['id']}/cancel"
        assert (await at.http.put(cancel)).status_code == 200
        gone = await at.http.put(cancel)
        assert gone.status_code == 404
        assert gone.json()["orderCancelRejectTransaction"]["rejectReason"] == "ORDER_DOESNT_EXIST"


async def test_the_price_stream_rebuilds_the_bars_and_the_candles_agree(market: Market) -> None:
    closes = (188.0, 188.1, 187.9, 188.3, 188.25)
    bars, builder, built = bars_of(closes), CandleBuilder(), []
    async with market(closes) as at, aclosing(at.client.price_stream("GBP_JPY")) as stream:
        async for item in stream:
            assert isinstance(item, Price)
            if item.time_ns == (START_S + 60) * 1_000_000_000:  # the first line: bar 1's opening price
                await at.client.acknowledge_bar(START_S)
            if not item.tradeable:
                built.append(builder.flush(item.time_ns))
                break
            assert item.bid is not None
            assert item.ask is not None
            closed = builder.push(item.time_ns, item.bid, item.ask)
            if closed is not None:
                built.append(closed)
                await at.client.acknowledge_bar(closed.time_s)
        candles = await at.client.candles("GBP_JPY", count=len(built))
    # The stream was opened during bar 1, at its opening price.
    assert [bar.time_s for bar in built if bar] == bars.time_s[1:].tolist()
    for bar, candle, row in zip(built, candles, range(1, len(bars)), strict=True):
        assert bar is not None
        assert candle.mid is not None
        want = (bars.open[row], bars.high[row], bars.low[row], bars.close[row])
        assert (bar.open, bar.high, bar.low, bar.close) == want
        assert (candle.mid.open, candle.mid.high, candle.mid.low, candle.mid.close) == want


async def test_idle_streams_send_heartbeats(market: Market) -> None:
    async with market(heartbeat_seconds=0.05) as at:
        async with aclosing(at.client.price_stream("GBP_JPY")) as prices:
            first, second = await anext(prices), await anext(prices)
        assert isinstance(first, Price)
        assert second == Heartbeat(at.venue.now_ns)
        async with transaction_lines(at) as transactions:
            beat = {"type": "HEARTBEAT", "time": format_time(at.venue.now_ns), "lastTransactionID": "2"}
            assert await anext(transactions) == beat


async def test_transactions_are_streamed_as_they_happen(market: Market) -> None:
    async with market(heartbeat_seconds=0.05) as at, transaction_lines(at) as stream:
        assert (await anext(stream))["type"] == "HEARTBEAT", "the stream is open"
        details = await at.client.instrument("GBP_JPY")
        await at.client.market_order(MarketOrder(details, 1))
        events = (item async for item in stream if item["type"] != "HEARTBEAT")
        found = [await anext(events) for _ in range(2)]
    assert [(item["id"], item["type"]) for item in found] == [("3", "MARKET_ORDER"), ("4", "ORDER_FILL")]


async def test_pages_and_ranges_of_the_history(market: Market) -> None:
    async with market() as at:
        details = await at.client.instrument("GBP_JPY")
        for _ in range(3):
            await at.client.market_order(MarketOrder(details, 1))
        pages = (await at.http.get("/transactions", params={"pageSize": 5})).json()
        assert pages["count"] == 8
        assert (await at.http.get("/transactions", params={"to": "0"})).json()["count"] == 0
        found = []
        for page in pages["pages"]:
            answer = await at.http.get(page)
            found += [TRANSACTION.validate_python(item) for item in answer.json()["transactions"]]
        assert found == at.venue.exchange.account.transactions
        single = (await at.http.get("/transactions/3")).json()["transaction"]
        assert single == found[2].json_object()
        changes = (await at.http.get("/changes", params={"sinceTransactionID": "4"})).json()
        assert [item["id"] for item in changes["changes"]["tradesOpened"]] == ["6", "8"]
        assert len(changes["state"]["trades"]) == 3


READS = [
    ("/candles/latest?candleSpecifications=GBP_JPY:M1:BA", 200),
    ("/candles/latest?candleSpecifications=GBP_JPY", 400),
    ("/candles/latest", 400),
    ("/instruments/GBP_JPY/candles?granularity=M1", 200),
    ("/instruments/GBP_JPY/candles?granularity=M7", 400),
    ("/instruments/GBP_JPY/candles?granularity=M1&count=5001", 400),
    ("/instruments/GBP_JPY/candles?granularity=M1&count=0", 400),
    ("/instruments/GBP_JPY/candles?granularity=M1&count=1e9999", 400),
    ("/instruments/GBP_JPY/candles?granularity=M1&price=X", 400),
    ("/instruments/GBP_JPY/candles?granularity=M1&from=2024-03-04T00:00:00%2B00:00", 400),
    ("/instruments/GBP_JPY/candles?granularity=M1&from=1709553600.000000000", 200),
    ("/instruments/GBP_JPY/candles?granularity=M1&to=2099-01-01T00:00:00Z", 400),
    ("/instruments/GBP_JPY/candles?granularity=M1&from=2024-02-30T00:00:00Z", 400),
    ("/instruments/EUR_USD/candles?granularity=M1", 404),
    ("/instruments?instruments=EUR_USD", 400),
    ("/pricing", 400),
    ("/pricing?instruments=GBP_JPY", 200),
    ("/pricing?instruments=GBPJPY", 400),
    ("/pricing/stream?instruments=EUR_USD", 400),
    ("/positions/EUR_USD", 404),
    ("/openPositions", 200),
    ("/orders?state=ALL&count=501", 400),
    ("/orders?state=SOME", 400),
    ("/orders/abc", 400),
    ("/orders/99999999999999999999", 400),
    ("/orders/@nobody", 404),
    ("/trades?state=CLOSED&ids=1,x", 400),
    ("/trades/7", 404),
    ("/transactions/sinceid?id=3", 416),
    ("/transactions/sinceid?id=2", 200),
    ("/transactions/sinceid", 400),
    ("/transactions/idrange?from=0&to=1", 416),
    ("/transactions/idrange?from=2&to=1", 400),
    ("/transactions?pageSize=1001", 400),
    ("/changes?sinceTransactionID=9", 416),
    ("/nothing", 404),
]


async def test_each_read_is_answered_as_oanda_does(market: Market) -> None:
    async with market() as at:
        for path, status in READS:
            answer = await at.http.get(path)
            assert (path, answer.status_code) == (path, status)
            assert "requestid" in answer.headers
            if status != 200:
                assert answer.json()["errorMessage"]


async def test_a_request_without_the_token_gives_401_without_details(market: Market) -> None:
    async with market() as at:
        for shown in ("", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer \u00e9"):
            answer = await at.http.get("/summary", headers=[(b"Authorization", shown.encode())])
            assert answer.status_code == 401
            assert answer.json() == {"errorMessage": "Insufficient authorization to perform request."}


async def test_another_account_is_forbidden(market: Market) -> None:
    async with market() as at, OandaClient("1-1-1-1", TOKEN, api_url=at.url, stream_url=at.url) as other:
        with pytest.raises(BrokerError) as refused:
            await other.snapshot()
        assert refused.value.status == 403


HOSTILE = [
    b"",
    b"[",
    b"null",
    b'{"order":null}',
    b'{"order":NaN}',
    b'{"order":1e400}',
    b'{"order":{"type":"MARKET","instrument":"GBP_JPY","units":1}}',
    b'{"order":{"type":"MARKET","instrument":"GBP_JPY","units":"1","units":"nan"}}',
    b'{"order":{"type":"MARKET","instrument":"GBP_JPY","units":"1e400"}}',
    b'{"order":{"type":"MARKET","instrument":"GBP_JPY","units":"1","stopLoss":{"price":"1"}}}',
    b'{"order":{"type":"MARKET","instrument":"GBP_JPY","units":"1","stopLossOnFill":{"price":188.0}}}',
    b'{"order":{"type":"LIMIT","instrument":"GBP_JPY","units":"1","price":"1"}}',
    b'{"type":"MARKET","instrument":"GBP_JPY","units":"1"}',
    b"\xff\xfe\x00",
    b"[" * 60_000,
    b'{"order":' * 5_000,
]


async def test_an_invalid_body_gives_400_and_changes_nothing(market: Market) -> None:
    async with market() as at:
        for body in HOSTILE:
            for method, path in (("POST", "/orders"), ("PUT", "/positions/GBP_JPY/close")):
                answer = await at.http.request(method, path, content=body)
                assert (body[:60], answer.status_code) == (body[:60], 400)
                assert answer.json()["errorMessage"]
        assert at.venue.exchange.account.last_id == 2


async def test_a_body_too_large_is_refused(market: Market) -> None:
    async with market() as at:
        answer = await at.http.post("/orders", content=b" " * 70_000)
        assert answer.status_code == 413


async def test_no_input_causes_a_5xx(market: Market) -> None:
    text = st.text(st.characters(codec="utf-8"), max_size=12)
    values = st.one_of(text, st.none(), st.booleans(), st.integers(), st.floats())
    orders = st.dictionaries(
        st.sampled_from(["type", "instrument", "units", "timeInForce", "priceBound", "clientExtensions"]),
        values,
    )
    async with market() as at:
        loop = asyncio.get_running_loop()

        @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
        @given(orders, text)
        def ask(order: dict[str, object], word: str) -> None:
            async def both() -> list[httpx.Response]:
                return [
                    await at.http.post("/orders", content=json.dumps({"order": order})),
                    await at.http.get("/orders", params={"ids": word, "state": word}),
                    await at.http.get("/transactions", params={"from": word}),
                ]

            for answer in asyncio.run_coroutine_threadsafe(both(), loop).result(10):
                assert answer.status_code < 500

        await asyncio.to_thread(ask)


async def test_the_clients_texts_never_contain_the_token(market: Market) -> None:
    async with market() as at:
        assert TOKEN not in repr(at.client)
        with pytest.raises(BrokerError) as refused:
            await at.client.candles("EUR_USD", count=1)
        assert TOKEN not in str(refused.value)
        assert ACCOUNT in repr(at.client)
