"""Answers of the paper broker and requests of the client, checked against OANDA's API description."""

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from services.broker.config import FaultConfig
from shared.adapters.oanda.client import MarketOrder, TimeInForce
from shared.adapters.oanda.records import InstrumentDetails
from tests.conftest import ROOT
from tests.contracts.openapi import Contract, undescribed_fields
from tests.services.broker.conftest import ACCOUNT, Market, Running, market

__all__ = ["market"]  # the fixture

DESCRIPTION = ROOT.parent / "shared" / "oanda" / "oanda-v20-contract.openapi3.json"
BELOW = "/v3/accounts/{accountID}"
GBP_JPY = InstrumentDetails.parse(
    {
        "name": "GBP_JPY",
        "pipLocation": -2,
        "displayPrecision": 3,
        "tradeUnitsPrecision": 0,
        "minimumTradeSize": "1",
    }
)


@pytest.fixture(scope="module")
def contract() -> Contract:
    if not DESCRIPTION.is_file():
        pytest.skip(f"no OANDA description at {DESCRIPTION}")
    return Contract(json.loads(DESCRIPTION.read_text()))


def check(contract: Contract, answer: httpx.Response, template: str, status: int) -> Mapping[str, Any]:
    """Check an answer against the contract; returns its body."""
    method = answer.request.method
    assert answer.status_code == status, answer.text
    body: Mapping[str, Any] = answer.json()
    schema = contract.response_schema(method, template, status)
    assert list(contract.violations(body, schema)) == []
    return body


ORDER: dict[str, object] = {"type": "MARKET", "instrument": "GBP_JPY", "units": "2"}
EXITS = {"stopLossOnFill": {"price": "187.000"}, "takeProfitOnFill": {"price": "189.000"}}
MARKS = {"clientExtensions": {"id": "k1", "tag": "t"}, "tradeClientExtensions": {"id": "k1"}}


async def traded(at: Running) -> None:
    """Make a history of all transaction types: trade with exits, partial close, reject, cancellation."""
    for order in (
        {**ORDER, **EXITS, **MARKS},
        {**ORDER, "units": "-1"},
        {**ORDER, "units": "0"},
        {**ORDER, "units": "99", "positionFill": "REDUCE_ONLY"},
    ):
        await at.http.post("/orders", json={"order": order})


READS = [
    ("/v3/accounts", "/v3/accounts"),
    (BELOW, ""),
    (f"{BELOW}/summary", "/summary"),
    (f"{BELOW}/instruments", "/instruments"),
    (f"{BELOW}/changes", "/changes?sinceTransactionID=1"),
    (f"{BELOW}/positions", "/positions"),
    (f"{BELOW}/openPositions", "/openPositions"),
    (f"{BELOW}/positions/{{instrument}}", "/positions/GBP_JPY"),
    (f"{BELOW}/trades", "/trades?state=ALL"),
    (f"{BELOW}/openTrades", "/openTrades"),
    (f"{BELOW}/trades/{{tradeSpecifier}}", "/trades/@k1"),
    (f"{BELOW}/orders", "/orders?state=ALL"),
    (f"{BELOW}/pendingOrders", "/pendingOrders"),
    (f"{BELOW}/orders/{{orderSpecifier}}", "/orders/@k1"),
    (f"{BELOW}/transactions", "/transactions"),
    (f"{BELOW}/transactions/{{transactionID}}", "/transactions/4"),
    (f"{BELOW}/transactions/idrange", "/transactions/idrange?from=1&to=4"),
    (f"{BELOW}/transactions/sinceid", "/transactions/sinceid?id=0"),
    (f"{BELOW}/pricing", "/pricing?instruments=GBP_JPY"),
    (f"{BELOW}/candles/latest", "/candles/latest?candleSpecifications=GBP_JPY:M1:MBA"),
    (f"{BELOW}/instruments/{{instrument}}/candles", "/instruments/GBP_JPY/candles?granularity=M1&price=MBA"),
    ("/v3/instruments/{instrument}/candles", "/v3/instruments/GBP_JPY/candles?granularity=M1&price=MBA"),
]


async def test_every_read_keeps_the_contract(contract: Contract, market: Market) -> None:
    async with market() as at:
        await traded(at)
        for template, path in READS:
            url = at.url + path if path.startswith("/v3") else f"{at.url}/v3/accounts/{ACCOUNT}{path}"
            body = check(contract, await at.http.get(url), template, 200)
            schema = contract.response_schema("GET", template, 200)
            strange = set(undescribed_fields(contract, body, [schema]))
            # Orders and transactions are described by their common head only.
            assert not {name for name in strange if not any(word in name for word in ("ransaction", "rder"))}


async def test_every_write_keeps_the_contract(contract: Contract, market: Market) -> None:
    orders, close = f"{BELOW}/orders", f"{BELOW}/positions/{{instrument}}/close"
    async with market() as at:
        filled = check(
            contract, await at.http.post("/orders", json={"order": {**ORDER, **EXITS}}), orders, 201
        )
        assert (
            list(
                contract.violations(
                    filled["orderCreateTransaction"], named(contract, "MarketOrderTransaction")
                )
            )
            == []
        )
        stop = (await at.http.get("/pendingOrders")).json()["orders"][0]["id"]
        cancel = f"{BELOW}/orders/{{orderSpecifier}}/cancel"
        check(contract, await at.http.put(f"/orders/{stop}/cancel"), cancel, 200)
        check(contract, await at.http.put(f"/orders/{stop}/cancel"), cancel, 404)
        trade = filled["orderFillTransaction"]["tradeOpened"]["tradeID"]
        closing = f"{BELOW}/trades/{{tradeSpecifier}}/close"
        check(contract, await at.http.put(f"/trades/{trade}/close", json={"units": "1"}), closing, 200)
        check(contract, await at.http.put("/trades/77/close", json={}), closing, 404)
        check(contract, await at.http.put("/positions/GBP_JPY/close", json={"longUnits": "ALL"}), close, 200)
        check(contract, await at.http.put("/positions/GBP_JPY/close", json={"longUnits": "ALL"}), close, 404)
        rejected = check(
            contract, await at.http.post("/orders", json={"order": {**ORDER, "units": "0"}}), orders, 400
        )
        reject = named(contract, "MarketOrderRejectTransaction")
        assert list(contract.violations(rejected["orderRejectTransaction"], reject)) == []
        at.venue.faults.change(FaultConfig(partial_fill_probability=1))
        cancelled = check(contract, await at.http.post("/orders", json={"order": ORDER}), orders, 201)
        assert "orderCancelTransaction" in cancelled


async def test_every_transaction_fits_the_schema_of_its_type(contract: Contract, market: Market) -> None:
    names = {"ORDER_FILL": "OrderFillTransaction", "ORDER_CANCEL": "OrderCancelTransaction"}
    async with market() as at:
        await traded(at)
        await at.client.close_position("GBP_JPY", long=True)
        seen = set()
        for item in at.venue.exchange.account.transactions:
            name = names.get(
                item.type, "".join(word.title() for word in item.type.split("_")) + "Transaction"
            )
            body = item.json_object()
            assert list(contract.violations(body, named(contract, name))) == []
            assert set(undescribed_fields(contract, body, [named(contract, name)])) == set()
            seen.add(item.type)
    assert len(seen) == 8


async def test_every_stream_line_keeps_the_contract(contract: Contract, market: Market) -> None:
    template = f"{BELOW}/pricing/stream"
    async with (
        market(heartbeat_seconds=0.02) as at,
        at.http.stream("GET", "/pricing/stream", params={"instruments": "GBP_JPY"}) as answer,
    ):
        lines = answer.aiter_lines()
        assert answer.headers["content-type"] == "application/octet-stream"
        for wanted in ("PRICE", "HEARTBEAT"):
            line = json.loads(await anext(lines))
            assert line["type"] == wanted
            # A heartbeat also matches the looser schema of prices, so check the schema of its own type.
            name = "ClientPrice" if wanted == "PRICE" else "PricingHeartbeat"
            assert {"$ref": f"#/components/schemas/{name}"} in contract.line_schema(template)["oneOf"]
            assert list(contract.violations(line, named(contract, name))) == []


async def test_errors_keep_the_contract(contract: Contract, market: Market) -> None:
    async with market() as at:
        check(
            contract,
            await at.http.get("/instruments/GBP_JPY/candles?granularity=M7"),
            f"{BELOW}/instruments/{{instrument}}/candles",
            400,
        )
        check(contract, await at.http.get("/orders/99"), f"{BELOW}/orders/{{orderSpecifier}}", 404)
        check(contract, await at.http.get("/changes?sinceTransactionID=99"), f"{BELOW}/changes", 416)
        check(
            contract, await at.http.get("/summary", headers={"Authorization": "x"}), f"{BELOW}/summary", 401
        )


@pytest.mark.parametrize(
    "order",
    [
        MarketOrder(GBP_JPY, 1),
        MarketOrder(GBP_JPY, -3, client_id="a", trade_client_id="b", time_in_force=TimeInForce.IOC),
        MarketOrder(GBP_JPY, 1, price_bound=188.1 + 1e-9, stop_loss=187.1, take_profit=190.123456),
    ],
)
def test_the_orders_of_the_client_keep_the_contract(contract: Contract, order: MarketOrder) -> None:
    assert list(contract.violations(order.body(), contract.body_schema("POST", f"{BELOW}/orders"))) == []


def test_the_checker_detects_violations(contract: Contract) -> None:
    schema = contract.body_schema("POST", f"{BELOW}/orders")
    for invalid in (
        {"order": {**ORDER, "units": 1}},
        {"order": {**ORDER, "units": "0"}},
        {"order": {**ORDER, "timeInForce": "GTC"}},
        {"order": {**ORDER, "stopLoss": {"price": "188.0"}}},
        {"order": {"type": "MARKET", "units": "1"}},
    ):
        assert list(contract.violations(invalid, schema))


def named(contract: Contract, name: str) -> Mapping[str, Any]:
    """The schema with a name."""
    schema: Mapping[str, Any] = contract.document["components"]["schemas"][name]
    return schema
