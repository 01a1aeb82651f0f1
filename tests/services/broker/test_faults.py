"""The broker's injected faults, as the real client sees them."""

from contextlib import aclosing

import pytest

from services.broker.config import BrokerConfig, FaultConfig
from services.broker.faults import Faults
from shared.adapters.oanda.client import MarketOrder, TimeInForce
from shared.errors import BrokerError, OrderRejectedError, OutcomeUnknownError, SettingsError
from tests.services.broker.conftest import Market


@pytest.mark.parametrize(
    "fault", [FaultConfig(drop_answer_probability=1), FaultConfig(gateway_timeout_probability=1)]
)
async def test_an_order_whose_answer_is_lost_was_filled_once(market: Market, fault: FaultConfig) -> None:
    async with market() as at:
        details = await at.client.instrument("GBP_JPY")
        last = (await at.client.snapshot()).summary.last_transaction_id
        at.venue.faults.change(fault)
        with pytest.raises(OutcomeUnknownError):
            await at.client.market_order(MarketOrder(details, 1, client_id="intent"))
        at.venue.faults.change(FaultConfig())
        found = await at.client.order_by_client_id("intent")
        assert found is not None
        assert found.state == "FILLED"
        fills = [item for item in await at.client.transactions_since(last) if item.kind == "ORDER_FILL"]
        assert len(fills) == 1
        assert [trade.units for trade in (await at.client.snapshot()).trades] == [1]


async def test_a_rejected_order_takes_an_id_and_does_nothing(market: Market) -> None:
    async with market(faults=FaultConfig(reject_probability=1)) as at:
        details = await at.client.instrument("GBP_JPY")
        with pytest.raises(OrderRejectedError):
            await at.client.market_order(MarketOrder(details, 1))
        snapshot = await at.client.snapshot()
        assert (snapshot.summary.last_transaction_id, snapshot.trades) == (3, ())


async def test_a_partial_fill_finds_liquidity_for_half_of_the_units(market: Market) -> None:
    async with market(faults=FaultConfig(partial_fill_probability=1)) as at:
        details = await at.client.instrument("GBP_JPY")
        whole = await at.client.market_order(MarketOrder(details, 4))
        assert whole.cancel is not None
        assert whole.cancel.reason == "INSUFFICIENT_LIQUIDITY"
        part = await at.client.market_order(MarketOrder(details, 4, time_in_force=TimeInForce.IOC))
        assert part.fill is not None
        assert part.fill.units == 2
        assert (await at.client.prices("GBP_JPY"))[0].tradeable  # all liquidity is available again


async def test_a_stream_breaks_off_within_a_line(market: Market) -> None:
    async with (
        market(faults=FaultConfig(disconnect_probability=1), heartbeat_seconds=0.02) as at,
        aclosing(at.client.price_stream("GBP_JPY")) as stream,
    ):
        await anext(stream)
        with pytest.raises(BrokerError, match="pricing/stream"):
            await anext(stream)


async def test_a_stalled_stream_is_detected_although_its_connection_is_open(market: Market) -> None:
    fault = FaultConfig(stall_probability=1, stall_seconds=30)
    async with (
        market(faults=fault, heartbeat_seconds=0.02, price_stall_seconds=0.2) as at,
        aclosing(at.client.price_stream("GBP_JPY")) as stream,
    ):
        await anext(stream)
        with pytest.raises(BrokerError, match=r"nothing arrived for 0\.2 s"):
            await anext(stream)


@pytest.mark.parametrize(
    ("fault", "status"),
    [(FaultConfig(read_error_probability=1), 503), (FaultConfig(rate_limit_probability=1), 429)],
)
async def test_reads_fail_after_every_attempt(market: Market, fault: FaultConfig, status: int) -> None:
    async with market(faults=fault, read_attempts=2) as at:
        with pytest.raises(BrokerError) as failed:
            await at.client.snapshot()
        assert failed.value.status == status


async def test_an_order_with_added_latency_is_filled(market: Market) -> None:
    async with market(faults=FaultConfig(latency_ms=5)) as at:
        details = await at.client.instrument("GBP_JPY")
        assert (await at.client.market_order(MarketOrder(details, 1))).fill is not None


def test_the_same_seed_injects_the_same_faults() -> None:
    draws = [[Faults(FaultConfig(seed=seed)).occurs(0.5) for _ in range(3)] for seed in (1, 1, 2)]
    assert draws[0] == draws[1]
    one = Faults(FaultConfig(seed=3))
    first = [one.occurs(0.5) for _ in range(64)]
    one.change(FaultConfig(seed=3))
    assert [one.occurs(0.5) for _ in range(64)] == first
    assert {True, False} == set(first)


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (lambda: FaultConfig(reject_probability=1.5), "reject_probability"),
        (lambda: FaultConfig(latency_ms=-1), "latency_ms"),
        (lambda: BrokerConfig(account="me"), "account"),
        (lambda: BrokerConfig(split="some"), "split"),
        (lambda: BrokerConfig(speed=0), "speed"),
        (lambda: BrokerConfig(spread_pips=float("nan")), "spread_pips"),
    ],
)
def test_the_error_names_a_setting_that_is_out_of_range(made: object, name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        made()  # type: ignore[operator]
