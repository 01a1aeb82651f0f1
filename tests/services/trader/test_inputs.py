"""The trader against a broker that sends wrong data: one alert for each kind, and trading goes on."""

import asyncio
import re
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
from structlog.testing import capture_logs

from services.trader.waiting import Backoff
from shared.adapters.oanda.records import UnreadableLine, format_time
from shared.adapters.streams.bus import Bus
from shared.environment.action import Action
from shared.messages.streams import ALERTS
from shared.runtime.redis_server import RedisServer
from tests.services.trader.parts import (
    BARS,
    FIRST_BAR,
    Broker,
    Trader,
    running_broker,
    running_oracle,
    running_trader,
    trader_settings,
    unwritable,
)
from tests.services.trader.test_service import alerts_of, control, decisions_of
from tests.waiting import PATIENCE_SECONDS, until

BUY_AT = FIRST_BAR + 1


def priced(broker: Broker, bid: object, ask: object, **changes: object) -> dict[str, Any]:
    """A PRICE line as of now."""
    return {
        "type": "PRICE",
        "instrument": "GBP_JPY",
        "time": format_time(broker.venue.now_ns + 1_000_000),
        "bids": [{"price": bid, "liquidity": 1_000_000}],
        "asks": [{"price": ask, "liquidity": 1_000_000}],
        "tradeable": True,
        **changes,
    }


def a_day_ahead(broker: Broker) -> str:
    return format_time(broker.venue.now_ns + 86_400 * 1_000_000_000)


def late_ticks(trader: Trader) -> int:
    """The trader's count of prices that were not newer than the previous price."""
    match = re.search(r"^mm_trader_late_ticks ([0-9.]+)$", trader.metrics(), re.MULTILINE)
    assert match is not None
    return int(float(match[1]))


def cut(broker: Broker) -> None:
    """Disconnect every price stream."""
    for subscription in broker.venue._prices:
        subscription.overrun = True
    broker.send_line({"type": "HEARTBEAT", "time": format_time(broker.venue.now_ns)})


_BAD_LINES: dict[str, Callable[[Broker], dict[str, Any]]] = {
    "crossed": lambda broker: priced(broker, "171.000", "170.999"),
    "outlier": lambda broker: priced(broker, "18500.0", "18500.1"),
    "foreign": lambda broker: priced(broker, "1.1", "1.2", instrument="EUR_USD"),
    "future": lambda broker: {"type": "HEARTBEAT", "time": a_day_ahead(broker)},
    "unreadable": lambda broker: {"type": "PRICE", "time": "soon"},
}


async def test_a_bad_line_is_skipped_and_trading_goes_on(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Three lines of each kind while a position is open: decisions go on, and the position can be closed."""
    async with running_broker(tmp_path) as broker, running_oracle({BUY_AT: Action.BUY}) as oracle:
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle)
        async with running_trader(settings) as trader:
            await until(lambda: broker.units == 1)
            late = late_ticks(trader)
            for _ in range(3):
                broker.send_line(priced(broker, "190.0", "190.04", time=format_time(1_000_000_000)))
                for line in _BAD_LINES.values():
                    broker.send_line(line(broker))
            for reason in _BAD_LINES:
                await until(lambda: f'mm_trader_refused_total{{reason="{reason}"}} 3.0' in trader.metrics())  # noqa: B023
            await until(lambda: late_ticks(trader) == late + 3)
            reached = broker.venue.progress.acknowledged_s
            await until(lambda: broker.venue.progress.acknowledged_s > reached + 600)
            assert trader.detail["state"] == "active"
            assert trader.detail["guards"] == ""
            assert "mm_trader_reconnects_total 0.0" in trader.metrics(), "the session went on"
            await control(bus, "killed")
            await until(lambda: broker.units == 0)
            await until(lambda: trader.detail["control"] == "killed")
    names = [alert.name for alert in await alerts_of(bus)]
    assert sorted(names) == ["killed", *sorted(f"refused_{reason}" for reason in _BAD_LINES)], "one of each"


async def test_bad_candles_are_skipped_and_a_bar_without_a_candle_is_a_hold(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    bad = FIRST_BAR + 4
    script = {BUY_AT: Action.BUY, bad: Action.CLOSE}

    def spoil(answer: dict[str, Any]) -> dict[str, Any]:
        for candle in answer["candles"]:
            if candle["time"].startswith(format_time(int(BARS.time_s[bad]) * 1_000_000_000)[:19]):
                candle["mid"]["l"] = "999.0"
        return answer

    async with running_broker(tmp_path, stop=FIRST_BAR + 12) as broker, running_oracle(script) as oracle:
        broker.forged["/candles"] = spoil
        settings = trader_settings(
            redis_server.url, tmp_path, broker, oracle, candle_wait_seconds=0.3, candle_poll_seconds=0.05
        )
        async with running_trader(settings) as trader:
            await broker.decided(FIRST_BAR + 9)
            assert 'mm_trader_refused_total{reason="candle"} 1.0' in trader.metrics()
            assert "mm_trader_late_candles_total 1.0" in trader.metrics()
        assert broker.units == 1
        assert bad not in oracle.asked
    rows = {int(made.bar_time.timestamp()): made for made in await decisions_of(bus)}
    held = rows[int(BARS.time_s[bad])]
    assert (held.action, held.executed) == ("HOLD", False)
    assert "did not arrive in time" in held.reason
    assert [int(BARS.time_s[FIRST_BAR + n]) in rows for n in range(9)] == [True] * 9, "a row for each bar"
    assert sorted(alert.name for alert in await alerts_of(bus)) == ["candle_late", "refused_candle"]


@dataclass
class LateCandle:
    """Changes candle answers so that a bar's candle is complete only after several reads."""

    bar: int
    after: int
    looks: int = 0

    def __call__(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Change one answer."""
        opened = format_time(int(BARS.time_s[self.bar]) * 1_000_000_000)[:19]
        for candle in answer["candles"]:
            if candle["time"].startswith(opened):
                self.looks += 1
                candle["complete"] = self.looks > self.after
        return answer


async def test_the_trader_waits_for_a_late_candle(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """OANDA completes a minute 1 to 45 s late; the decision waits while the bar is not too old."""
    late = LateCandle(FIRST_BAR + 3, after=8)
    async with running_broker(tmp_path, stop=FIRST_BAR + 8) as broker, running_oracle() as oracle:
        oracle.script = {late.bar: Action.SELL}
        broker.forged["/candles"] = late
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle, candle_poll_seconds=0.05)
        async with running_trader(settings):
            await until(lambda: broker.units == -1)
    assert late.looks > 8
    assert await alerts_of(bus) == []


async def test_a_stream_that_breaks_during_the_wait_for_a_candle_loses_no_decision(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    late, looks, hidden = FIRST_BAR + 3, 0, True

    def hide(answer: dict[str, Any]) -> dict[str, Any]:
        nonlocal looks
        for candle in answer["candles"]:
            if candle["time"].startswith(format_time(int(BARS.time_s[late]) * 1_000_000_000)[:19]):
                looks += 1
                candle["complete"] = not hidden
        return answer

    async with running_broker(tmp_path, stop=FIRST_BAR + 8) as broker, running_oracle() as oracle:
        oracle.script = {late: Action.SELL}
        broker.forged["/candles"] = hide
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle, candle_poll_seconds=0.05)
        async with running_trader(settings) as trader:
            await until(lambda: looks > 1)
            cut(broker)
            await until(lambda: "mm_trader_reconnects_total 1.0" in trader.metrics())
            hidden = False
            await until(lambda: broker.units == -1)
    assert await alerts_of(bus) == []


async def test_a_killed_trader_raises_no_alert_for_a_candle_in_time(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    late = LateCandle(FIRST_BAR + 3, after=3)
    await control(bus, "killed")
    async with running_broker(tmp_path, stop=FIRST_BAR + 8) as broker, running_oracle() as oracle:
        broker.forged["/candles"] = late
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle, candle_poll_seconds=0.05)
        async with running_trader(settings):
            await broker.decided(late.bar + 1)
    assert [alert.name for alert in await alerts_of(bus)] == ["killed"]


async def test_a_new_price_level_confirmed_by_candles_is_traded(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """The limit is below the market's own steps, so that every bar is a new level."""
    async with running_broker(tmp_path, stop=FIRST_BAR + 30) as broker, running_oracle() as oracle:
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle)
        narrow = settings.guards.__class__(max_jump_percent=0.02)
        async with running_trader(settings.model_copy(update={"guards": narrow})) as trader:
            await broker.decided(FIRST_BAR + 25)
            assert 'reason="outlier"} 0.0' not in trader.metrics()
    assert {int(made.bar_time.timestamp()) for made in await decisions_of(bus)} >= set(
        BARS.time_s[FIRST_BAR : FIRST_BAR + 25].tolist()
    )


async def test_the_position_is_known_although_a_transaction_is_unreadable(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """The entry's fill is damaged in every answer: the position is read from a snapshot instead."""

    def damage(answer: dict[str, Any]) -> dict[str, Any]:
        for transaction in answer["transactions"]:
            if transaction["type"] == "ORDER_FILL" and "tradeOpened" in transaction:
                del transaction["tradeOpened"]["price"]
        return answer

    script = {BUY_AT: Action.BUY, FIRST_BAR + 4: Action.CLOSE}
    async with running_broker(tmp_path, stop=FIRST_BAR + 40) as broker, running_oracle(script) as oracle:
        broker.forged["/transactions/sinceid"] = damage
        async with running_trader(trader_settings(redis_server.url, tmp_path, broker, oracle)) as trader:
            await until(lambda: trader.detail.get("units") == 1)
            await control(bus, "running")  # settles the order, whose outcome is not known
            await control(bus, "killed")
            await until(lambda: broker.units == 0)
    assert "transactions_unread" in [alert.name for alert in await alerts_of(bus)]


async def test_a_refused_token_raises_an_alert_and_trading_resumes_later(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """The trader keeps running, since its position stays open."""
    async with running_broker(tmp_path) as broker, running_oracle({BUY_AT: Action.BUY}) as oracle:
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle)
        async with running_trader(settings) as trader:
            await until(lambda: trader.detail.get("units") == 1)
            broker.refusal = 403
            await until(lambda: trader.detail["guards"] == "broker_refuses")
            assert trader.detail["state"] == "halted"
            await _began(bus, "broker_refuses")
            assert not trader.task.done()
            broker.refusal = None
            await control(bus, "killed")
            await until(lambda: broker.units == 0)
    (raised,) = [alert for alert in await alerts_of(bus) if alert.name == "broker_refuses"]
    assert "403" in raised.detail


@pytest.mark.parametrize("refusal", [404, 401])  # 404: an instrument that the account cannot trade
async def test_an_unavailable_broker_raises_an_alert_before_the_account_is_known(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    monkeypatch.setattr("services.trader.__main__.UNAVAILABLE_SECONDS", 0.0)
    async with running_broker(tmp_path) as broker, running_oracle() as oracle:
        broker.refusal = refusal
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle)
        known = settings.model_copy(update={"oanda_account": broker.venue.config.account})
        async with running_trader(known) as trader:
            await _began(bus, "waiting_for_broker")
            assert trader.detail["state"] == "waiting for the broker"
            broker.refusal = None
            await broker.decided(FIRST_BAR + 2)
            await _ended(bus, "waiting_for_broker")
    names = [alert.name for alert in await alerts_of(bus)]
    assert names.count("waiting_for_broker") == 1, "one alert for all refusals"


async def test_a_trader_in_standby_raises_an_alert(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trader.__main__.UNAVAILABLE_SECONDS", -100.0)
    async with running_broker(tmp_path) as broker, running_oracle() as oracle:
        first = trader_settings(redis_server.url, tmp_path / "one", broker, oracle, instance="one")
        second = trader_settings(redis_server.url, tmp_path / "two", broker, oracle, instance="two")
        async with running_trader(first):
            await broker.decided(FIRST_BAR + 1)
            async with running_trader(second):
                await _began(bus, "standby")
        async with running_trader(second):
            await _ended(bus, "standby")


async def test_a_good_session_resets_the_pause_and_a_foreign_order_alerts_once(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trader.service._GOOD_SESSION_SECONDS", -1.0)

    def with_a_limit_order(answer: dict[str, Any]) -> dict[str, Any]:
        answer["account"]["orders"].append({"id": "7", "type": "LIMIT", "state": "PENDING"})
        return answer

    async with running_broker(tmp_path) as broker, running_oracle() as oracle:
        broker.forged["/" + broker.venue.config.account] = with_a_limit_order
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle, reconnect_max_seconds=30.0)
        with capture_logs() as logs:
            async with running_trader(settings) as trader:
                for number in range(4):
                    await until(lambda: trader.detail.get("state") == "active")
                    cut(broker)
                    await until(lambda: f"mm_trader_reconnects_total {number + 1}.0" in trader.metrics())  # noqa: B023
                await _began(bus, "foreign_orders")
    pauses = [line["again_in_seconds"] for line in logs if line["event"] == "session_broke"]
    assert len(pauses) >= 4
    assert max(pauses) <= 0.5
    assert [alert.name for alert in await alerts_of(bus)].count("foreign_orders") == 1


def test_pauses_double_up_to_a_limit_until_a_good_session() -> None:
    backoff = Backoff(30.0)
    for most in (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
        assert most / 2 <= backoff.after(good=False) <= most
    assert 0.25 <= backoff.after(good=True) <= 0.5
    assert 0.5 <= backoff.after(good=False) <= 1.0


async def test_a_broken_stream_is_reported_while_a_read_is_retried(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    """The session retries a read for up to 30 s and cannot check the stream itself."""
    async with running_broker(tmp_path) as broker, running_oracle() as oracle:
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle, sync_seconds=600.0)
        async with running_trader(settings) as trader:
            await broker.decided(FIRST_BAR + 2)
            await until(lambda: trader.detail.get("state") == "active")
            broker.faulty(read_error_probability=1.0)
            asked = broker.num_requests
            await until(lambda: broker.num_requests >= asked + 3)  # one read is repeated
            cut(broker)
            await until(lambda: trader.detail["state"] == "reconnecting")
            assert "mm_trader_reconnects_total 0.0" in trader.metrics(), "the session still waits"


async def test_a_stream_without_a_readable_line_ends_the_session(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trader.session.UNHEARD_SECONDS", 0.5)
    monkeypatch.setattr(
        "shared.adapters.oanda.client._parse_line", lambda *_: UnreadableLine("of another schema")
    )
    async with running_broker(tmp_path) as broker, running_oracle() as oracle:
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle)
        async with running_trader(settings) as trader:
            await until(lambda: "mm_trader_reconnects_total 2.0" in trader.metrics())


async def test_a_trader_stopped_before_its_first_price_decides_nothing(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "shared.adapters.oanda.client._parse_line", lambda *_: UnreadableLine("of another schema")
    )
    async with running_broker(tmp_path) as broker, running_oracle() as oracle:
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle)
        async with running_trader(settings):
            await until(lambda: any(path.endswith("/pricing/stream") for _, path in broker.hosts))
        assert oracle.asked == []


async def test_the_order_rate_counts_the_orders_of_an_hour(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    script = {BUY_AT: Action.BUY, BUY_AT + 1: Action.CLOSE, BUY_AT + 4: Action.BUY, BUY_AT + 70: Action.BUY}
    async with running_broker(tmp_path, stop=FIRST_BAR + 80) as broker, running_oracle(script) as oracle:
        settings = trader_settings(redis_server.url, tmp_path, broker, oracle)
        two = settings.guards.__class__(max_orders_per_hour=2)
        async with running_trader(settings.model_copy(update={"guards": two})):
            await until(lambda: len(broker.posts) == 3, seconds=60)
    blocked = [made for made in await decisions_of(bus) if "order_rate" in made.reason]
    assert [int(made.bar_time.timestamp()) for made in blocked] == [BARS.time_s[BUY_AT + 4]]


async def _began(bus: Bus, name: str) -> None:
    await _announced(bus, name, "began")


async def _ended(bus: Bus, name: str) -> None:
    await _announced(bus, name, "ended")


async def _announced(bus: Bus, name: str, phase: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (name, phase) not in {  # noqa: ASYNC110  Redis has no event for it
            (entry.message.name, entry.message.phase) for entry in await bus.recent(ALERTS, count=1_000)
        }:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("damaged", [True, False], ids=["damaged", "in use"])
async def test_a_trader_starts_and_trades_while_its_tables_cannot_be_opened(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, damaged: bool
) -> None:
    """The tables serve queries only. Missing rows are written once the file is free."""
    tables = tmp_path / "trader" / "trader.duckdb"
    tables.parent.mkdir()
    with ExitStack() as held:
        if damaged:
            tables.write_bytes(b"no database" * 1_000)
        else:
            held.enter_context(closing(duckdb.connect(str(tables))))
        script = {FIRST_BAR + 2: Action.BUY, FIRST_BAR + 4: Action.CLOSE}
        async with (
            running_broker(tmp_path, stop=FIRST_BAR + 8) as broker,
            running_oracle(script) as oracle,
            running_trader(trader_settings(redis_server.url, tmp_path, broker, oracle)) as trader,
        ):
            await until(lambda: trader.detail.get("orders") == 2)
            await asyncio.sleep(2.5)  # longer than the pause between two writes of the tables
            assert not trader.task.done()
            held.close()
            tables.unlink()
    with closing(duckdb.connect(str(tables), read_only=True)) as db:
        written = db.execute("SELECT count(*) FROM decisions").fetchone()
    assert written == (len(await decisions_of(bus)),)


async def test_an_unwritable_ledger_raises_an_alert_and_trading_resumes_later(
    bus: Bus, redis_server: RedisServer, tmp_path: Path
) -> None:
    async with (
        running_broker(tmp_path) as broker,
        running_oracle() as oracle,
        running_trader(trader_settings(redis_server.url, tmp_path, broker, oracle)) as trader,
    ):
        await broker.decided(FIRST_BAR + 2)
        with unwritable(tmp_path):
            await until(lambda: trader.detail["guards"] == "ledger_refuses")
            assert trader.detail["state"] == "halted"
        reached = trader.detail["decisions"]
        await until(lambda: trader.detail["decisions"] > reached + 2)
        assert trader.detail["state"] == "active"
    bars = [made.bar_time for made in await decisions_of(bus)]
    assert len(bars) == len(set(bars)), "each bar is decided on once"
    assert [a.name for a in await alerts_of(bus)] == ["ledger_refuses"]
