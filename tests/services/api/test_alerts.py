"""Which conditions raise an alert, that each is raised once, and that it reaches the webhook."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from services.api.alerts import active_alerts
from services.api.config import AlertConfig, GatewayConfig
from services.api.views import Detail, Pointers, Service, Status, Trader, Training
from shared.adapters.streams.bus import Bus
from shared.adapters.streams.condition import RedisCondition
from shared.adapters.webhook import chat_text, post_alert
from shared.errors import SettingsError, WebhookError
from shared.messages.schemas import AlertRaised, DeadLettered, DecisionMade
from shared.messages.streams import ALERTS, DEAD
from shared.runtime.ports import free_port
from shared.runtime.redis_server import RedisServer
from tests.services.api.conftest import System, running_system
from tests.waiting import PATIENCE_SECONDS

MOMENT = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
CONFIG = AlertConfig()


GOOD = RedisCondition(
    memory_bytes=800,
    memory_limit_bytes=1_000,
    append_ok=True,
    rewrite_ok=True,
    snapshot_ok=True,
    pending=32,
    pending_seconds=120.0,
    lag=0,
)


def redis(**changes: object) -> Status:
    """A status with a healthy Redis, except for the changes."""
    return status(redis_condition=replace(GOOD, **changes))  # type: ignore[arg-type]


def service(
    name: str,
    state: str,
    *,
    never_for: float | None = None,
    announced: bool = False,
    last: Detail | None = None,
    **changes: object,
) -> Service:
    """A service as the gateway shows it; `never_for`: seconds for which it is missing, if never seen."""
    absence = {
        "since": MOMENT - timedelta(seconds=never_for or 0),
        "seen_at": MOMENT if never_for is None else None,
        "ran_out": True,
        "last_detail": last or {},
        "announced": announced,
    }
    instance = {"instance": "1", "state": "running", "started_at": MOMENT, "beat_at": MOMENT, "detail": {}}
    fields = {
        "service": name,
        "state": state,
        "expected": True,
        "absence": absence if state == "missing" else None,
        "instances": [{**instance, "state": "degraded" if state == "degraded" else "running"}]
        if state in ("up", "degraded")
        else [],
    }
    return Service.model_validate({**fields, **changes})


def status(**changes: object) -> Status:
    training = {
        "state": "running",
        "version": 3,
        "episode": 150,
        "update": 900,
        "published_at": MOMENT,
        "metrics": changes.pop("metrics", {}),
        "live": changes.pop("live", {}),
    }
    order = changes.pop("trader_order", None)
    trader = {
        "order": order and {"state": order, "by": "t", "reason": "", "at": MOMENT},
        "state": changes.pop("trader_state", "running"),
        "detail": changes.pop("trader", {}),
        "last_decision": None,
    }
    fields = {
        "state": "running",
        "redis": "up",
        "time": MOMENT,
        "started_at": MOMENT,
        "version": "0",
        "services": [],
        "streams": {},
        "dead_letters": 0,
        "redis_condition": GOOD,
        "pointers": Pointers(newest=3, best=None, promoted=None),
        "training": Training.model_validate(training),
        "validation": None,
        "trader": Trader.model_validate(trader),
        "alerts": [],
        **changes,
    }
    return Status.model_validate(fields)


def names(state: Status) -> list[str]:
    return [alert.name for alert in active_alerts(state, CONFIG)]


#: A status and its alerts.
CASES: list[tuple[Status, list[str]]] = [
    (status(), []),
    (status(redis="unavailable", redis_condition=None), ["redis_unavailable"]),
    (redis(memory_bytes=801), ["redis_memory"]),
    (redis(memory_bytes=801, memory_limit_bytes=None), []),
    (redis(append_ok=False), ["redis_disk"]),
    (redis(rewrite_ok=False, snapshot_ok=False), ["redis_disk"]),
    (status(disk={"home": "/h", "free_mb": 5_000}), []),
    (status(disk={"home": "/h", "free_mb": 4_999}), ["disk_low"]),
    (
        status(redis="unavailable", redis_condition=None, disk={"home": "/h", "free_mb": 9}),
        ["redis_unavailable", "disk_low"],
    ),
    (redis(pending_seconds=120.1), ["pending"]),
    (redis(lag=None), ["entries_removed"]),
    (status(streams={"mm:trajectories": 1_000}), []),
    (status(streams={"mm:trajectories": 1_001}), ["backlog"]),
    (status(metrics={"expectancy_pips": -10.0}), []),
    (status(metrics={"expectancy_pips": -10.01}), ["training_diverging"]),
    (status(metrics={"expectancy_pips": -20.0}, live={"expectancy_pips": 1.0}), []),
    (status(metrics={"win_rate": 0.05}), []),
    (status(metrics={"win_rate": 0.049}), ["policy_collapsed"]),
    (status(metrics={"trade_ratio": 0.019}), []),  # 150 episodes
    (status(metrics={"trade_ratio": 0.019}, live={"episode": 499}), []),
    (status(metrics={"trade_ratio": 0.019}, live={"episode": 500}), ["hold_only"]),
    (status(time=MOMENT + timedelta(minutes=30)), []),
    (status(time=MOMENT + timedelta(minutes=31)), ["no_checkpoint"]),
    (status(dead_letters=1), ["dead_letters"]),
    (status(trader={"guards": "stale_price"}), ["guard_tripped"]),
    (status(trader={"state": "halted", "guards": "daily_loss"}), ["trader_halted"]),
    (status(trader={"state": "halted", "guards": "market_closed"}), []),
    (status(trader={"state": "halted", "guards": "market_closed, killed"}), []),
    (status(trader={"state": "halted", "guards": "market_closed, version_unproven"}), []),
    (status(trader={"state": "reducing", "guards": "version_unproven"}), []),
    (status(trader={"state": "reducing", "guards": "version_unproven, clock_skew"}), ["guard_tripped"]),
    (status(trader={"state": "halted", "guards": "broker_refuses"}), ["trader_halted"]),
    (status(trader={"state": "reducing", "guards": "killed"}), []),
    (status(trader={"state": "reducing", "guards": "killed, no_lease"}), ["guard_tripped"]),
    (status(trader={"state": "replay finished", "guards": "version_unproven"}), []),
    (status(trader={"state": "active", "guards": ""}), []),
    (status(trader={"state": "reconnecting"}), ["broker_unavailable"]),
    (status(trader={"state": "connecting"}), ["broker_unavailable"]),
    (status(trader={"state": "waiting for the broker"}), ["broker_unavailable"]),
    (status(trader={"state": "standby"}), ["trader_standby"]),
    (status(trader_state="killed"), ["trader_killed"]),
    (status(trader_order="killed"), ["trader_killed"]),  # sent, not confirmed
    (status(services=[service("selfplay", "up")]), []),
    (status(services=[service("selfplay", "degraded")]), ["service_degraded"]),
    (status(services=[service("selfplay", "up", restarts=2)]), []),
    (status(services=[service("selfplay", "up", restarts=3)]), ["service_restarting"]),
    (status(services=[service("selfplay", "missing")]), ["service_missing"]),
    (status(services=[service("selfplay", "missing", expected=False)]), []),
    (status(services=[service("selfplay", "missing", never_for=179)]), []),
    (status(services=[service("selfplay", "missing", never_for=180)]), ["service_missing"]),
    (status(services=[service("selfplay", "missing", never_for=0, announced=True)]), ["service_missing"]),
    (
        status(redis="unavailable", redis_condition=None, services=[service("selfplay", "unknown")]),
        ["redis_unavailable"],
    ),
]


@pytest.mark.parametrize(("state", "expected"), CASES)
def test_alerts_follow_from_the_status(state: Status, expected: list[str]) -> None:
    assert names(state) == expected


def test_an_alert_names_the_value_the_limit_and_a_remedy() -> None:
    (memory,) = active_alerts(redis(memory_bytes=1_900_000, memory_limit_bytes=2_000_000), CONFIG)
    assert memory.source == "redis"
    assert memory.detail.startswith("Redis uses 1.9 of 2.0 MB (95%), at most 80% expected.")
    assert "raise maxmemory" in memory.detail
    (disk,) = active_alerts(redis(rewrite_ok=False, snapshot_ok=False), CONFIG)
    assert disk.detail.startswith("Redis could not write to its disk (rewrite, snapshot)")
    assert "Redis exits as soon as it cannot append" in disk.detail
    (low,) = active_alerts(status(disk={"home": "/home/m", "free_mb": 4_999}), CONFIG)
    assert (low.source, low.name) == ("disk", "disk_low")
    assert low.detail.startswith(
        "only 4,999 MB are free in /home/m, less than 5,000 MB (MM_ALERTS__LOW_FREE_MB)"
    )
    (pending,) = active_alerts(redis(pending_seconds=200.0), CONFIG)
    assert "200 s ago" in pending.detail
    assert "at most 120 s expected (32 not acknowledged)" in pending.detail


@pytest.mark.parametrize(
    ("last", "position"),
    [
        ({"side": 1, "units": 1000, "entry_price": 187.5}, "IT HELD A POSITION (long 1,000 units at 187.5)"),
        ({"side": -1, "units": -0.5}, "IT HELD A POSITION (short 0.5 units)"),
        ({"side": 0}, "It held no position"),
        ({}, "Whether it held a position is not known"),
    ],
)
def test_the_alert_for_a_missing_trader_names_its_position(last: Detail, position: str) -> None:
    (missing,) = active_alerts(status(services=[service("trader", "missing", last=last)]), CONFIG)
    assert position in missing.detail
    assert "since 12:00:00 UTC; its heartbeat expired" in missing.detail


def test_a_flat_last_decision_does_not_prove_that_a_missing_trader_is_flat() -> None:
    flat = status(services=[service("trader", "missing")])
    decided = DecisionMade(bar_time=MOMENT, action="HOLD", executed=False, side=0, pnl_pips=0.0, close=187.0)
    seen = flat.model_copy(update={"trader": flat.trader.model_copy(update={"last_decision": decided})})
    (missing,) = active_alerts(seen, CONFIG)
    assert missing.detail.endswith("(bar 2026-03-02 12:00 UTC); later positions are not known")


@pytest.mark.parametrize(
    "change",
    [
        {"redis_memory_share": 80.0},
        {"backlog_trajectories": 0},
        {"low_free_mb": -1},
        {"pending_seconds": -1.0},
        {"win_rate_floor": 1.5},
        {"trade_ratio_floor": float("nan")},
        {"expectancy_floor_pips": float("nan")},
        {"check_seconds": 0.0},
        {"missing_seconds": -1.0},
        {"restarts": 0},
        {"expected_services": ("trainer", "trainr")},
        {"webhook_url": SecretStr("file:///etc/passwd")},
    ],
)
def test_a_threshold_out_of_range_is_refused_by_name(change: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=f"alerts.{next(iter(change))}"):
        AlertConfig(**change)  # type: ignore[arg-type]


@asynccontextmanager
async def webhook(*statuses: int) -> AsyncIterator[tuple[str, "asyncio.Queue[dict[str, object]]"]]:
    """A server that answers posts with the statuses in turn, and then always with the last one."""
    received: asyncio.Queue[dict[str, object]] = asyncio.Queue()
    answers = list(statuses)
    unanswered: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        document = json.loads(await reader.readexactly(length))
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer == 0:  # receives it and never answers
            key = head.split("idempotency-key: ")[1].split("\r\n")[0]
            received.put_nowait({**document, "header": key})
            unanswered.append(writer)
            return
        received.put_nowait(document)
        writer.write(f"HTTP/1.1 {answer} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook-canary", received
        for writer in unanswered:
            writer.close()
            await writer.wait_closed()


ALERT = AlertRaised(source="trader", name="stale_price", detail="no tick for 12 s")


async def test_an_alert_that_the_webhook_refuses_is_posted_again_with_the_same_id(
    redis_server: RedisServer, bus: Bus, tmp_path: Path
) -> None:
    async with webhook(500, 200) as (url, received):
        alerts = AlertConfig(check_seconds=0.05, webhook_url=SecretStr(url))
        async with running_system(redis_server.url, bus, tmp_path, GatewayConfig(), alerts) as system:
            await system.client.get("/status")
            await bus.append(ALERTS, ALERT)
            async with asyncio.timeout(PATIENCE_SECONDS):
                first, second = await received.get(), await received.get()
    assert first == second
    assert first["text"] == "trader: stale_price: no tick for 12 s"
    assert (first["name"], first["alert_id"]) == ("stale_price", str(ALERT.alert_id))


@pytest.mark.parametrize(
    ("status", "again"), [(200, None), (204, None), (302, False), (403, False), (429, True), (503, True)]
)
async def test_a_post_is_one_request_and_only_429_and_5xx_are_retried(
    status: int, again: bool | None
) -> None:
    async with webhook(status) as (url, received):
        if again is None:
            await post_alert(url, ALERT)
        else:
            with pytest.raises(WebhookError) as failure:
                await post_alert(url, ALERT)
            assert failure.value.again is again
        assert received.qsize() == 1


async def test_a_slow_receiver_gets_an_alert_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver may have accepted it, although its answer did not arrive in time."""
    monkeypatch.setattr("shared.adapters.webhook.ANSWER_SECONDS", 0.2)
    async with webhook(0) as (url, received):
        with pytest.raises(WebhookError, match="ReadTimeout") as failure:
            await post_alert(url, ALERT)
        assert failure.value.again is False
        assert received.get_nowait()["header"] == str(ALERT.alert_id)


@pytest.mark.parametrize(
    ("head", "delivered"),
    [(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", True), (b"HTTP/1.1 200 OK\r\nX-A: ", False)],
    ids=["body", "head"],
)
async def test_an_endless_answer_does_not_block_later_alerts(
    monkeypatch: pytest.MonkeyPatch, head: bytes, delivered: bool
) -> None:
    """Each byte arrives in time, but the answer never ends."""
    monkeypatch.setattr("shared.adapters.webhook.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("shared.adapters.webhook.CONNECT_SECONDS", 0.5)

    connections = []

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)
        writer.close()

    async with await asyncio.start_server(trickle, "127.0.0.1") as server, asyncio.timeout(PATIENCE_SECONDS):
        posting = post_alert(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", ALERT)
        if delivered:
            await posting
        else:
            with pytest.raises(WebhookError, match="TimeoutError") as failure:
                await posting
            assert failure.value.again is False
        await asyncio.gather(*filter(None, connections))


def test_alert_texts_cannot_mention_people_or_format_text_in_a_chat() -> None:
    detail = "<!channel> @here `code` & [text](http://evil.test)\nsecond line"
    text = chat_text(AlertRaised(source="<@U1>", name="n", detail=detail))
    assert text == (
        "&lt;@\u200bU1&gt;: n: &lt;!channel&gt; @\u200bhere 'code' &amp; "
        "[text]\u200b(http://evil.test) second line"
    )


@pytest.mark.parametrize(
    ("phase", "occurrences", "text"),
    [
        ("event", 1, "s: n: d"),
        ("event", 3, "s: n, 3 times: d"),
        ("began", 1, "s: n began: d"),
        ("ended", 12, "s: n ended after 12 occurrences: d"),
    ],
)
def test_a_chat_message_names_the_phase(
    phase: Literal["event", "began", "ended"], occurrences: int, text: str
) -> None:
    alert = AlertRaised(source="s", name="n", detail="d", phase=phase, occurrences=occurrences)
    assert chat_text(alert) == text


async def test_an_error_of_the_webhook_does_not_reveal_its_address() -> None:
    async with webhook(403) as (url, _):
        with pytest.raises(WebhookError, match="answered 403") as failure:
            await post_alert(url, ALERT)
    assert "canary" not in str(failure.value)
    with pytest.raises(WebhookError, match="does not answer"):
        await post_alert(f"http://127.0.0.1:{free_port()}/hook-canary", ALERT)
    with pytest.raises(WebhookError, match="is not a URL"):
        await post_alert("http://xn--a/hook-canary", ALERT)


async def test_a_condition_is_announced_once_at_its_beginning_and_once_at_its_end(
    redis_server: RedisServer, bus: Bus, tmp_path: Path
) -> None:
    """Two gateways use one Redis, and both restart."""
    alerts = AlertConfig(check_seconds=0.05, end_seconds=0.2, missing_seconds=3600)
    config = GatewayConfig(redis_timeout_seconds=5.0)

    def gateway(name: str) -> AbstractAsyncContextManager[System]:
        return running_system(redis_server.url, bus, tmp_path / name, config, alerts)

    async def alerts_raised(count: int) -> Sequence[tuple[str, str]]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await bus.length(ALERTS) < count:  # noqa: ASYNC110  other processes append
                await asyncio.sleep(0.01)
        return [(e.message.name, e.message.phase) for e in await bus.recent(ALERTS, count=10)][::-1]

    async with gateway("a"), gateway("b"):
        letter = await bus.append(DEAD, DeadLettered(stream="s", entry_id="1-0", reason="r"))
        assert await alerts_raised(1) == [("dead_letters", "began")]
    async with gateway("a") as restarted:
        await bus.append(ALERTS, ALERT)
        await restarted.until(lambda: bool(restarted.gateway.unannounced.empty()))
        assert [a["name"] for a in (await restarted.client.get("/status")).json()["alerts"]] == [
            "dead_letters"
        ]
    assert await alerts_raised(2) == [("dead_letters", "began"), ("stale_price", "event")]
    async with Redis.from_url(redis_server.url) as plain:
        await plain.xdel(DEAD.key, letter)
    async with gateway("a"), gateway("b"):
        assert (await alerts_raised(3))[2:] == [("dead_letters", "ended")]


async def test_a_restart_does_not_end_the_alert_of_a_service_that_is_still_missing(
    redis_server: RedisServer, bus: Bus, tmp_path: Path
) -> None:
    """The new gateway gives services that it never saw time to start, except this one."""
    gone = AlertRaised(source="trader", name="service_missing", phase="began")
    await bus.append_condition_alert(gone)
    alerts = AlertConfig(check_seconds=0.02, end_seconds=0.1, start_seconds=3600, missing_seconds=0)
    config = GatewayConfig(redis_timeout_seconds=5.0)
    async with running_system(redis_server.url, bus, tmp_path, config, alerts) as system:
        await asyncio.sleep(0.5)  # time for many checks, none of which may raise an alert
        shown = (await system.client.get("/status")).json()["alerts"]
        assert [(a["source"], a["name"]) for a in shown] == [("trader", "service_missing")]
        assert await bus.length(ALERTS) == 1


async def test_an_alert_of_any_service_is_posted(redis_server: RedisServer, bus: Bus, tmp_path: Path) -> None:
    async with webhook(200) as (url, received):
        alerts = AlertConfig(check_seconds=0.05, webhook_url=SecretStr(url))
        config = GatewayConfig(redis_timeout_seconds=5.0)
        async with running_system(redis_server.url, bus, tmp_path, config, alerts) as system:
            await system.client.get("/status")
            await bus.append(DEAD, DeadLettered(stream="s", entry_id="1-0", reason="r"))
            async with asyncio.timeout(PATIENCE_SECONDS):
                posted = await received.get()
            assert (posted["name"], posted["phase"]) == ("dead_letters", "began")
            await bus.append(ALERTS, ALERT)
            async with asyncio.timeout(PATIENCE_SECONDS):
                posted = await received.get()
            assert posted["name"] == "stale_price"
            assert await bus.length(ALERTS) == 2  # not raised again while it lasts


async def test_a_full_disk_is_posted_while_redis_is_unavailable(bus: Bus, tmp_path: Path) -> None:
    """Redis exits because of a full disk."""
    server = RedisServer(tmp_path / "redis", free_port())
    server.start()
    async with webhook(200) as (url, received):
        alerts = AlertConfig(check_seconds=0.05, low_free_mb=10**9, webhook_url=SecretStr(url))
        config = GatewayConfig(redis_timeout_seconds=1.0)
        server.stop()
        async with (
            running_system(server.url, bus, tmp_path, config, alerts),
            asyncio.timeout(PATIENCE_SECONDS),
        ):
            assert [(await received.get())["name"] for _ in range(2)] == ["redis_unavailable", "disk_low"]


async def test_an_unavailable_redis_is_posted_once_without_redis(bus: Bus, tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", free_port())
    server.start()
    async with webhook(200) as (url, received):
        alerts = AlertConfig(check_seconds=0.05, end_seconds=0.1, webhook_url=SecretStr(url))
        config = GatewayConfig(redis_timeout_seconds=1.0)
        async with running_system(server.url, bus, tmp_path, config, alerts):
            server.stop()
            async with asyncio.timeout(PATIENCE_SECONDS):
                posted = await received.get()
            assert (posted["name"], posted["phase"]) == ("redis_unavailable", "began")
            server.start()
            async with asyncio.timeout(PATIENCE_SECONDS):
                posted = await received.get()
            assert (posted["name"], posted["phase"]) == ("redis_unavailable", "ended")
    server.stop()
