"""The complete trader against the paper broker over HTTP, with an inference that follows a script."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from redis import Redis
from starlette.responses import JSONResponse, Response

from services.broker.config import Pacing
from services.trader.config import GuardConfig
from services.trader.kill_switch import KillSwitch
from services.trader.ledger import Ledger
from services.trader.market import Market as TraderMarket
from shared.adapters.oanda.records import Heartbeat, Price, UnreadableLine
from shared.adapters.streams.bus import Bus
from shared.environment.action import Action
from shared.environment.environment import EnvironmentConfig, Prices, reset, step
from shared.errors import LedgerError, ServiceError, SettingsError
from shared.market.bar import Instrument
from shared.market.calendar import rollover_nights
from shared.market.synthetic import Market, synthesize
from shared.messages.schemas import AlertRaised, ControlIssued, DecisionMade
from shared.messages.streams import ALERTS, CONTROL, DECISIONS, TRADES
from shared.runtime.ports import free_port
from shared.runtime.redis_server import RedisServer
from tests.services.trader.parts import (
    BARS,
    FIRST_BAR,
    NO_LIMITS,
    decision,
    running_broker,
    running_oracle,
    running_trader,
    trader_settings,
)
from tests.waiting import PATIENCE_SECONDS, until


async def decisions_of(bus: Bus) -> list[DecisionMade]:
    return [entry.message for entry in await bus.recent(DECISIONS, count=1_000)][::-1]


async def alerts_of(bus: Bus) -> list[AlertRaised]:
    """All alerts except the ends of conditions."""
    alerts = [entry.message for entry in await bus.recent(ALERTS, count=1_000)][::-1]
    return [alert for alert in alerts if alert.phase != "ended"]


async def control(bus: Bus, state: str) -> None:
    order = ControlIssued.model_validate({"target": "trader", "state": state, "by": "test"})
    await bus.announce(CONTROL, order, name="trader")


async def test_a_round_trip_is_decided_filled_and_recorded(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    script = {FIRST_BAR + 2: Action.BUY, FIRST_BAR + 5: Action.CLOSE}
    async with running_broker(tmp_path, stop=FIRST_BAR + 12) as broker, running_oracle(script) as oracle:
        async with running_trader(trader_settings(redis_server.url, tmp_path, broker, oracle)) as trader:
            await broker.decided(FIRST_BAR + 8)
            await until(lambda: trader.detail["orders"] == 2)
            assert trader.detail["side"] == 0
            assert trader.detail["bar_mismatches"] == 0
        entry, exit_ = broker.fills()
        assert float(entry.trade_opened.price) == round(BARS.open[FIRST_BAR + 3] + 0.02, 3)
        assert float(exit_.trades_closed[0].price) == round(BARS.open[FIRST_BAR + 6] - 0.02, 3)
        assert broker.units == 0
    (trade,) = [entry.message for entry in await bus.recent(TRADES, count=10)]
    assert trade.pips == pytest.approx((BARS.open[FIRST_BAR + 6] - BARS.open[FIRST_BAR + 3]) / 0.01 - 4.0)
    decisions = await decisions_of(bus)
    assert [d.action for d in decisions if d.action != "HOLD"] == ["BUY", "CLOSE"]
    assert all(d.executed for d in decisions)
    assert [int(d.bar_time.timestamp()) for d in decisions] == BARS.time_s[FIRST_BAR:][
        : len(decisions)
    ].tolist()
    with duckdb.connect(str(tmp_path / "trader" / "trader.duckdb"), read_only=True) as tables:
        assert tables.execute("SELECT count(*), count(DISTINCT bar_time) FROM decisions").fetchone() == (
            len(decisions),
            len(decisions),
        )
        assert tables.execute("SELECT pips FROM trades").fetchone() == (trade.pips,)


async def test_the_trader_and_the_environment_agree_on_features_and_trades(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Equal decisions on equal bars give bit-for-bit equal static features and equal pips of each trade."""
    num_bars = 40
    night = int(np.flatnonzero(rollover_nights(BARS.time_s) > 0)[0])
    first = night - 15
    rng = np.random.default_rng(5)
    script = {first + bar: Action(int(rng.integers(4))) for bar in range(num_bars)}
    # Held over 17:00 New York, so that a night is financed.
    script |= {night - 3: Action.CLOSE, night - 2: Action.BUY, night - 1: Action.HOLD}
    script |= dict.fromkeys(range(night, night + 4), Action.HOLD)
    environment = EnvironmentConfig(commission_pips=1.0, slippage_pips=0.3, financing_pips_per_night=2.2)
    async with (
        running_broker(tmp_path, first=first, stop=first + num_bars + 2) as broker,
        running_oracle(script) as oracle,
    ):
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle)
        async with running_trader(settings.model_copy(update={"environment": environment})):
            await broker.decided(first + num_bars - 1)
    asked = oracle.asked[:num_bars]
    assert asked == list(range(first, first + num_bars))
    decisions = await decisions_of(bus)
    prices = Prices.of(BARS)
    lanes, trades = reset(np.array([first])), []
    charged = set()
    for index, made in enumerate(decisions[:num_bars]):
        static = np.array(oracle.static[index], np.float32)
        assert np.array_equal(static, lanes.static()[0]), f"static features at decision {index}"
        if made.action == "HOLD":  # the row of an order shows the position after it
            assert made.pnl_pips == lanes.pnl[0], f"pnl at decision {index}"
        charged.add(round(float(lanes.charged_pips[0]), 6))
        transition = step(lanes, np.array([Action[made.action]], np.int8), prices, environment)
        lanes = transition.lanes
        trades += [trade for _, trade in transition.trades]
    assert charged == {0.0, 5.6, 7.8}, "spread 4, commission 1, slippage twice 0.3; a night 2.2"
    assert {made.action for made in decisions} == {"HOLD", "BUY", "SELL", "CLOSE"}
    closed = [entry.message for entry in await bus.recent(TRADES, count=100)][::-1]
    assert len(closed) >= 3
    for trade, made_up in zip(closed, trades, strict=False):
        assert trade.side == int(made_up.side)
        assert trade.pips == pytest.approx(made_up.pips + 2 * 0.3), "the paper broker's fills do not slip"
        assert int(trade.entry_time.timestamp()) == BARS.time_s[made_up.entry_bar]
        assert int(trade.exit_time.timestamp()) == BARS.time_s[made_up.exit_bar]


async def test_a_decision_before_a_gap_is_filled_at_the_open_after_it(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """The gap is twenty minutes long. The environment also executes at the next open."""
    entry, after = FIRST_BAR + 4, FIRST_BAR + 25
    rows = np.ones(len(BARS), np.bool_)
    rows[entry + 1 : after] = False
    async with (
        running_broker(tmp_path, bars=BARS[rows], stop=FIRST_BAR + 12) as broker,
        running_oracle({entry: Action.BUY}) as oracle,
    ):
        async with running_trader(trader_settings(redis_server.url, tmp_path, broker, oracle)):
            await until(lambda: broker.venue.is_finished)
        (filled,) = broker.fills()
        assert float(filled.trade_opened.price) == pytest.approx(BARS.open[after] + 0.02)
    decisions = {int(made.bar_time.timestamp()): made for made in await decisions_of(bus)}
    assert (decisions[int(BARS.time_s[entry])].action, decisions[int(BARS.time_s[entry])].executed) == (
        "BUY",
        True,
    )
    assert await alerts_of(bus) == []


def _nan(request: dict[str, Any]) -> Response:
    text = JSONResponse(decision(request, Action.BUY)).body.decode().replace("1.5", "NaN")  # type: ignore[union-attr]
    return Response(text, media_type="application/json")


_BAD_ANSWERS: dict[str, Callable[[dict[str, Any]], Response]] = {
    "not finite": _nan,
    "500": lambda request: Response("broken", 500),
    "another bar": lambda request: JSONResponse(decision(request, Action.BUY, bar_time_s=0)),
    "illegal": lambda request: JSONResponse(decision(request, Action.CLOSE)),
    "no JSON": lambda request: Response("hello"),
    "another schema": lambda request: JSONResponse(decision(request, Action.BUY, schema_version=2)),
}


@pytest.mark.parametrize("name", _BAD_ANSWERS)
async def test_an_invalid_inference_answer_is_a_hold(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, name: str
) -> None:
    async with running_broker(tmp_path) as broker, running_oracle() as oracle:
        oracle.answer = _BAD_ANSWERS[name]
        async with running_trader(trader_settings(redis_server.url, tmp_path, broker, oracle)) as trader:
            await broker.decided(FIRST_BAR + 3)
            assert "mm_trader_inference_failures_total" in trader.metrics()
        assert broker.posts == []
    decisions = await decisions_of(bus)
    assert {(d.action, d.executed) for d in decisions} == {("HOLD", False)}
    assert all(d.reason.startswith("inference: ") for d in decisions)
    assert [alert.name for alert in await alerts_of(bus)] == ["inference"], "one alert for one outage"


@pytest.mark.parametrize(
    ("stage", "trade_unproven", "enters"),
    [("unproven", False, False), ("unproven", True, True), ("of another release", True, False)],
)
async def test_no_position_is_entered_on_an_unproven_version(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, stage: str, trade_unproven: bool, enters: bool
) -> None:
    async with running_broker(tmp_path) as broker, running_oracle({FIRST_BAR + 2: Action.BUY}) as oracle:
        oracle.stage = stage
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle, trade_unproven=trade_unproven)
        async with running_trader(settings) as trader:
            await broker.decided(FIRST_BAR + 4)
            assert ("version_unproven" in trader.detail["guards"]) is not enters
        assert bool(broker.posts) is enters
    (buy,) = [d for d in await decisions_of(bus) if d.action == "BUY"]
    assert buy.executed is enters
    assert ("version_unproven: the version that decides passed no gate" in buy.reason) is not enters
    assert [alert for alert in await alerts_of(bus) if alert.name == "version_unproven"] == []


async def test_a_slow_or_dead_inference_is_a_hold(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    async with running_broker(tmp_path) as broker, running_oracle() as oracle:
        oracle.delay_seconds, oracle.answer = 0.5, lambda request: JSONResponse(decision(request, Action.BUY))
        slow = trader_settings(redis_server.url, tmp_path, broker, oracle, inference_deadline_ms=50.0)
        async with running_trader(slow):
            await broker.decided(FIRST_BAR + 2)
        oracle.url = f"http://127.0.0.1:{free_port()}"
        async with running_trader(trader_settings(redis_server.url, tmp_path, broker, oracle)):
            await broker.decided(FIRST_BAR + 5)
        assert broker.posts == []
    reasons = {d.reason.split(" for ")[0].split(":")[1].strip() for d in await decisions_of(bus)}
    assert "no decision" in reasons
    assert len(reasons) == 2


async def test_a_kill_closes_without_inference_and_survives_a_restart(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    script = {FIRST_BAR + 1: Action.BUY, **dict.fromkeys(range(FIRST_BAR + 4, FIRST_BAR + 900), Action.BUY)}
    async with running_broker(tmp_path) as broker, running_oracle(script) as oracle:
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle)
        async with running_trader(settings) as trader:
            await until(lambda: broker.units == 1)
            oracle.answer = lambda request: Response("down", 503)
            await control(bus, "killed")
            await until(lambda: broker.units == 0)
            await until(lambda: trader.detail["control"] == "killed")
            oracle.answer = None
            await asyncio.sleep(0.2)
        posts = list(broker.posts)
        assert posts == ["POST orders", "PUT close"]
        reached = broker.venue.progress.acknowledged_s
        async with running_trader(settings) as trader:
            await until(lambda: broker.venue.progress.acknowledged_s > reached + 300)
            assert trader.detail["state"] == "reducing"
            assert "killed" in trader.detail["guards"]
            assert broker.posts == posts, "still killed: the script asks to buy at every bar"
            await control(bus, "running")
            await until(lambda: broker.units == 1)
    assert "killed" in [alert.name for alert in await alerts_of(bus)]


async def test_a_kill_does_not_wait_for_a_bar(bus: Bus, redis_server: RedisServer, tmp_path: Path) -> None:
    """The replay stops, so that no bar closes."""
    async with running_broker(tmp_path, stop=FIRST_BAR + 6) as broker, running_oracle() as oracle:
        oracle.script = {FIRST_BAR + 2: Action.SELL}
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle)
        async with running_trader(settings):
            await until(lambda: broker.units == -1)
            broker.venue.acknowledge = lambda time_s: None  # type: ignore[method-assign]
            await asyncio.sleep(0.3)
            await control(bus, "killed")
            await until(lambda: broker.units == 0)


async def test_a_restarted_trader_continues_without_repeating_a_decision(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    script = {FIRST_BAR + 1: Action.BUY, FIRST_BAR + 12: Action.CLOSE}
    async with running_broker(tmp_path, stop=FIRST_BAR + 16) as broker, running_oracle(script) as oracle:
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle)
        async with running_trader(settings):
            await broker.decided(FIRST_BAR + 5)
        assert broker.units == 1
        async with running_trader(settings):
            await broker.decided(FIRST_BAR + 13)
        assert broker.posts == ["POST orders", "PUT close"]
    decisions = await decisions_of(bus)
    times = [d.bar_time for d in decisions]
    assert len(times) == len(set(times)), "no bar is decided on twice"
    # bars_since_entry counts every close since the entry, whichever trader saw it.
    held = np.array([static[2] for static in oracle.static[2:13]])
    assert np.allclose(np.arctanh(held) * 100, np.arange(1, 12), atol=1e-4)


async def test_a_trader_with_a_new_ledger_adopts_the_brokers_position(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    script = {FIRST_BAR + 1: Action.SELL, FIRST_BAR + 9: Action.CLOSE}
    async with running_broker(tmp_path, stop=FIRST_BAR + 14) as broker, running_oracle(script) as oracle:
        settings = trader_settings(redis_server.url, tmp_path / "one", broker, oracle)
        async with running_trader(settings):
            await broker.decided(FIRST_BAR + 4)
        async with running_trader(settings.model_copy(update={"home": tmp_path / "two"})):
            await broker.decided(FIRST_BAR + 10)
        assert broker.units == 0
    bars = dict(zip(oracle.asked, oracle.static, strict=True))
    prices, lanes = Prices.of(BARS), reset(np.array([FIRST_BAR + 1]))
    for bar in range(FIRST_BAR + 1, FIRST_BAR + 10):
        assert np.array_equal(np.array(bars[bar], np.float32), lanes.static()[0]), bar
        action = script.get(bar, Action.HOLD)
        lanes = step(lanes, np.array([action], np.int8), prices, EnvironmentConfig()).lanes


async def test_a_second_trader_sends_no_order(bus: Bus, redis_server: RedisServer, tmp_path: Path) -> None:
    script = dict.fromkeys(range(FIRST_BAR, FIRST_BAR + 900, 2), Action.BUY) | dict.fromkeys(
        range(FIRST_BAR + 1, FIRST_BAR + 900, 2), Action.CLOSE
    )
    async with running_broker(tmp_path) as broker, running_oracle(script) as oracle:
        first = trader_settings(redis_server.url, tmp_path / "one", broker, oracle, instance="one")
        second = trader_settings(redis_server.url, tmp_path / "two", broker, oracle, instance="two")
        async with running_trader(first):
            await broker.decided(FIRST_BAR + 2)
            async with running_trader(second) as standby:
                reached = broker.venue.progress.acknowledged_s
                await until(lambda: broker.venue.progress.acknowledged_s > reached + 600)
                assert standby.detail["state"] == "standby"
        assert not (tmp_path / "two" / "trader" / "ledger.sqlite").exists(), "it does not open its ledger"
        posts = len(broker.posts)
        async with running_trader(second) as standby:
            await until(lambda: len(broker.posts) > posts)
            await until(lambda: standby.detail["state"] == "active")


async def test_two_traders_cannot_share_a_folder(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with pytest.raises(ServiceError, match="another trader uses"):
        Ledger(tmp_path)
    ledger.close()


def test_a_damaged_ledger_is_a_one_line_error_and_releases_its_folder(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"no ledger" * 1_000)
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"ledger\.sqlite cannot be opened: file is not a database"):
            Ledger(tmp_path)


async def test_without_redis_entries_stop_exits_go_on_and_no_message_is_lost(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", free_port())
    server.start()
    bus = Bus(server.url)
    script = dict.fromkeys(range(FIRST_BAR, FIRST_BAR + 900, 2), Action.BUY) | dict.fromkeys(
        range(FIRST_BAR + 1, FIRST_BAR + 900, 2), Action.CLOSE
    )
    try:
        async with running_broker(tmp_path) as broker, running_oracle(script) as oracle:
            settings = trader_settings(server.url, tmp_path, broker, oracle, lease_seconds=1.0)
            async with running_trader(settings) as trader:
                await until(lambda: len(broker.posts) >= 4)
                server.stop(kill=True)
                await until(lambda: "no_lease" in str(trader.detail["guards"]))
                entries, reached = broker.posts.count("POST orders"), broker.venue.progress.acknowledged_s
                await until(lambda: broker.venue.progress.acknowledged_s > reached + 300)
                assert broker.posts.count("POST orders") == entries, "no lease, no entry"
                assert broker.units == 0, "the agent's close went through without the lease"
                server.start()
                await until(lambda: broker.posts.count("POST orders") > entries)
                num_decisions = trader.detail["decisions"]

                async with asyncio.timeout(PATIENCE_SECONDS):
                    while await bus.length(DECISIONS) < num_decisions:  # noqa: ASYNC110  no event for it
                        await asyncio.sleep(0.05)
        times = {d.bar_time for d in await decisions_of(bus)}
        decided = BARS.time_s[FIRST_BAR:][:num_decisions]
        assert {int(time.timestamp()) for time in times} >= set(decided.tolist())
    finally:
        await bus.close()
        server.stop()


async def test_a_changed_redis_password_does_not_stop_the_trader(tmp_path: Path) -> None:
    """Exits go on and entries stop, as without Redis, until Redis accepts the password again."""
    server = RedisServer(tmp_path / "redis", free_port())
    server.start()
    admin = Redis.from_url(server.url, single_connection_client=True)
    script = {FIRST_BAR + 1: Action.BUY}
    try:
        async with running_broker(tmp_path) as broker, running_oracle(script) as oracle:
            settings = trader_settings(server.url, tmp_path, broker, oracle, lease_seconds=1.0)
            async with running_trader(settings) as trader:
                await until(lambda: broker.units == 1)
                password = str(admin.config_get("requirepass")["requirepass"])
                admin.config_set("requirepass", "another")
                admin.client_kill_filter(_type="normal", skipme=True)
                await until(lambda: "no_lease" in str(trader.detail["guards"]))
                KillSwitch(tmp_path / "trader").engage("test")
                await until(lambda: broker.units == 0)
                assert not trader.task.done()
                KillSwitch(tmp_path / "trader").lift()
                admin.config_set("requirepass", password)
                await until(lambda: trader.detail["guards"] == "")
                bus = Bus(server.url)
                await control(bus, "paused")
                await until(lambda: trader.detail["control"] == "paused")
                await bus.close()
    finally:
        admin.close()
        server.stop()


async def test_a_bar_that_closes_while_the_event_loop_is_blocked_is_decided_on(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bar closes and the wait for it times out in the same iteration of the event loop."""
    on_item = TraderMarket.on_item

    def hang(market: TraderMarket, item: Price | Heartbeat | UnreadableLine) -> int | None:
        closed = on_item(market, item)
        if closed is not None:
            time.sleep(0.1)
        return closed

    monkeypatch.setattr("services.trader.session._WATCH_SECONDS", 0.05)
    monkeypatch.setattr(TraderMarket, "on_item", hang)
    async with (
        running_broker(tmp_path, pacing=Pacing.SPEED, speed=120.0) as broker,
        running_oracle() as oracle,
        running_trader(trader_settings(redis_server.url, tmp_path, broker, oracle)),
    ):
        await broker.decided(FIRST_BAR + 6)


async def test_after_a_reconnect_no_bar_is_decided_on_twice(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    script = {FIRST_BAR + 3: Action.BUY, FIRST_BAR + 20: Action.CLOSE}
    async with running_broker(tmp_path, stop=FIRST_BAR + 30) as broker, running_oracle(script) as oracle:
        broker.faulty(disconnect_probability=0.05, read_error_probability=0.05, seed=3)
        async with running_trader(trader_settings(redis_server.url, tmp_path, broker, oracle)) as trader:
            await broker.decided(FIRST_BAR + 25)
            assert "mm_trader_reconnects_total 0.0" not in trader.metrics()
        assert broker.posts == ["POST orders", "PUT close"]
        assert broker.units == 0
    decisions = await decisions_of(bus)
    assert len({d.bar_time for d in decisions}) == len(decisions)


async def test_a_loss_limit_closes_the_position_and_survives_a_restart(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    script = dict.fromkeys(range(FIRST_BAR, FIRST_BAR + 900, 2), Action.BUY) | dict.fromkeys(
        range(FIRST_BAR + 1, FIRST_BAR + 900, 2), Action.CLOSE
    )
    limits = replace(NO_LIMITS, daily_loss_pips=15.0)
    async with running_broker(tmp_path, stop=FIRST_BAR + 80) as broker, running_oracle(script) as oracle:
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle, guards=limits)
        async with running_trader(settings) as trader:
            await until(lambda: "daily_loss" in str(trader.detail.get("guards")))
            await until(lambda: broker.units == 0)
            reached = broker.venue.progress.acknowledged_s
            posts = len(broker.posts)
            await until(lambda: broker.venue.progress.acknowledged_s > reached + 240)
        async with running_trader(settings) as trader:
            reached = broker.venue.progress.acknowledged_s
            await until(lambda: broker.venue.progress.acknowledged_s > reached + 240)
            assert "daily_loss" in str(trader.detail["guards"])
        assert len(broker.posts) == posts
    blocked = [d for d in await decisions_of(bus) if d.action == "BUY" and not d.executed]
    assert blocked
    assert all("daily_loss" in d.reason for d in blocked)
    assert [alert.name for alert in await alerts_of(bus)].count("daily_loss") == 2, "one per process"


async def test_rejects_in_a_row_stop_entries_until_trading_resumes(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    script = dict.fromkeys(range(FIRST_BAR, FIRST_BAR + 900), Action.BUY)
    limits: GuardConfig = replace(NO_LIMITS, max_rejects=3)
    async with running_broker(tmp_path) as broker, running_oracle(script) as oracle:
        broker.faulty(reject_probability=1.0)
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle, guards=limits)
        async with running_trader(settings) as trader:
            await broker.decided(FIRST_BAR + 8)
            assert broker.posts == ["POST orders"] * 3
            assert trader.detail["state"] == "reducing"
            broker.faulty()
            await control(bus, "running")
            await until(lambda: broker.units == 1)


async def test_the_trader_trades_only_the_paper_brokers_instrument(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    euro = synthesize(Market.OU, 2_000, seed=3, instrument=Instrument.named("EUR_USD"))
    script = {FIRST_BAR + 2: Action.BUY, FIRST_BAR + 4: Action.CLOSE}
    async with (
        running_broker(tmp_path, bars=euro, stop=FIRST_BAR + 10) as broker,
        running_oracle(script) as oracle,
    ):
        contradicting = trader_settings(redis_server.url, tmp_path, broker, oracle, instrument="GBP_JPY")
        with pytest.raises(SettingsError, match=r"MM_TRADER__INSTRUMENT is GBP_JPY, but .* trades EUR_USD"):
            async with running_trader(contradicting) as trader:
                await trader.task
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle, stop_loss_pips=200.0)
        async with running_trader(settings) as trader:
            await broker.decided(FIRST_BAR + 6)
            await until(lambda: trader.detail["orders"] == 2)
            assert trader.detail["bar_mismatches"] == 0
        entry = broker.fills()[0].trade_opened
        assert float(entry.price) == round(euro.open[FIRST_BAR + 3] + 0.0002, 5)  # half of 4 pips
        (trade,) = [found.message for found in await bus.recent(TRADES, count=10)]
        move = euro.open[FIRST_BAR + 5] - euro.open[FIRST_BAR + 3]
        assert trade.pips == pytest.approx(move / 0.0001 - 4.0, abs=1e-6)
        assert trade.instrument == "EUR_USD"


async def test_a_paper_replay_waits_for_a_slow_trader_and_finishes(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """The trader is slower than the replay's speed, but decides on every bar and reports the replay's end."""
    stop = FIRST_BAR + 12
    script = {FIRST_BAR + 2: Action.BUY, FIRST_BAR + 5: Action.CLOSE}
    async with running_broker(tmp_path, stop=stop) as broker, running_oracle(script) as oracle:
        oracle.delay_seconds = 0.1
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle)
        async with running_trader(settings) as trader:
            await broker.decided(FIRST_BAR)  # the trader is connected; from now on a bar takes 0.02 s
            broker.venue.config = replace(broker.venue.config, pacing=Pacing.SPEED)
            broker.venue.clock.speed = 3_000.0
            await until(lambda: trader.detail.get("state") == "replay finished")
            assert trader.detail["guards"] == ""
            assert (trader.detail["trades"], trader.detail["side"]) == (1, 0)
            assert trader.detail["last_bar_s"] == BARS.time_s[stop - 1]
        async with running_trader(settings) as trader:  # and after a restart
            await until(lambda: trader.detail.get("state") == "replay finished")
            assert trader.detail["trades"] == 1
    decisions = await decisions_of(bus)
    assert [int(d.bar_time.timestamp()) for d in decisions] == BARS.time_s[FIRST_BAR:stop].tolist()
    assert [d.action for d in decisions if d.executed and d.action != "HOLD"] == ["BUY", "CLOSE"]
    assert [alert.name for alert in await alerts_of(bus)] == []
