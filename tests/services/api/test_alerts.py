"""What counts as wrong, that it is raised once, and that it reaches the webhook."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from services.api.alerts import active_alerts
from services.api.config import AlertConfig, GatewayConfig
from services.api.views import Pointers, Status, Trader, Training
from shared.adapters.bus import Bus
from shared.adapters.redis_condition import RedisCondition
from shared.adapters.webhook import post_alert
from shared.errors import ServiceError, SettingsError
from shared.messages.schemas import AlertRaised, DeadLettered
from shared.messages.streams import ALERTS, DEAD
from shared.runtime.redis_server import RedisServer, free_port
from tests.services.api.conftest import running_system

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
    """A status in which Redis is well but for the changes."""
    return status(redis_condition=replace(GOOD, **changes))  # type: ignore[arg-type]


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
    trader = {
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


#: A status, and the alerts that hold in it.
CASES: list[tuple[Status, list[str]]] = [
    (status(), []),
    (status(redis="away", redis_condition=None), ["redis_away"]),
    (redis(memory_bytes=801), ["redis_memory"]),
    (redis(memory_bytes=801, memory_limit_bytes=None), []),
    (redis(append_ok=False), ["redis_disk"]),
    (redis(rewrite_ok=False, snapshot_ok=False), ["redis_disk"]),
    (redis(pending_seconds=120.1), ["pending"]),
    (redis(lag=None), ["entries_removed"]),
    (status(streams={"mm:trajectories": 1_000}), []),
    (status(streams={"mm:trajectories": 1_001}), ["backlog"]),
    (status(metrics={"expectancy_pips": -10.0}), []),
    (status(metrics={"expectancy_pips": -10.01}), ["training_diverging"]),
    (status(metrics={"expectancy_pips": -20.0}, live={"expectancy_pips": 1.0}), []),
    (status(metrics={"win_rate": 0.05}), []),
    (status(metrics={"win_rate": 0.049}), ["policy_collapsed"]),
    (status(metrics={"trade_ratio": 0.019}), ["hold_only"]),
    (status(time=MOMENT + timedelta(minutes=30)), []),
    (status(time=MOMENT + timedelta(minutes=31)), ["no_checkpoint"]),
    (status(dead_letters=1), ["dead_letters"]),
    (status(trader={"guards": "stale_price"}), ["guard_tripped"]),
    (status(trader={"state": "halted", "guards": "daily_loss"}), ["trader_halted"]),
    (status(trader_state="killed"), ["trader_killed"]),
]


@pytest.mark.parametrize(("state", "wrong"), CASES)
def test_what_is_wrong_follows_from_the_status(state: Status, wrong: list[str]) -> None:
    assert names(state) == wrong


def test_an_alert_tells_in_words_what_is_wrong_and_what_helps() -> None:
    (memory,) = active_alerts(redis(memory_bytes=1_900_000, memory_limit_bytes=2_000_000), CONFIG)
    assert memory.source == "redis"
    assert memory.detail.startswith("Redis holds 1.9 of 2.0 MB (95%); when it is full, workers wait")
    assert "nothing else does" in memory.detail
    (disk,) = active_alerts(redis(rewrite_ok=False, snapshot_ok=False), CONFIG)
    assert disk.detail.startswith("Redis could not write to its disk (rewrite, snapshot)")
    (pending,) = active_alerts(redis(pending_seconds=200.0), CONFIG)
    assert "200 s ago" in pending.detail
    assert "32 not acknowledged" in pending.detail


@pytest.mark.parametrize(
    "change",
    [
        {"redis_memory_share": 80.0},
        {"backlog_trajectories": 0},
        {"pending_seconds": -1.0},
        {"win_rate_floor": 1.5},
        {"trade_ratio_floor": float("nan")},
        {"expectancy_floor_pips": float("nan")},
        {"check_seconds": 0.0},
        {"webhook_url": SecretStr("file:///etc/passwd")},
    ],
)
def test_a_limit_that_cannot_be_is_named(change: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=f"alerts.{next(iter(change))}"):
        AlertConfig(**change)  # type: ignore[arg-type]


@asynccontextmanager
async def webhook(*statuses: int) -> AsyncIterator[tuple[str, "asyncio.Queue[dict[str, object]]"]]:
    """A server that takes posts, and answers with the statuses in turn, then with the last one."""
    received: asyncio.Queue[dict[str, object]] = asyncio.Queue()
    answers = list(statuses)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        received.put_nowait(json.loads(await reader.readexactly(length)))
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        writer.write(f"HTTP/1.1 {answer} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook-canary", received


ALERT = AlertRaised(source="trader", name="stale_price", detail="no tick for 12 s")


async def test_an_alert_is_posted_and_tried_again() -> None:
    async with webhook(500, 200) as (url, received):
        await post_alert(url, ALERT)
        assert received.qsize() == 2
        document = received.get_nowait()
        assert document["text"] == "trader: stale_price: no tick for 12 s"
        assert document["name"] == "stale_price"


async def test_a_webhook_that_refuses_is_an_error_that_keeps_the_address_secret() -> None:
    async with webhook(403) as (url, _):
        with pytest.raises(ServiceError, match="answered 403") as failure:
            await post_alert(url, ALERT)
    assert "canary" not in str(failure.value)
    with pytest.raises(ServiceError, match="does not answer"):
        await post_alert(f"http://127.0.0.1:{free_port()}/hook-canary", ALERT)


async def test_what_goes_wrong_is_raised_once_and_posted(
    redis_server: RedisServer, bus: Bus, tmp_path: Path
) -> None:
    async with webhook(200) as (url, received):
        alerts = AlertConfig(check_seconds=0.05, webhook_url=SecretStr(url))
        config = GatewayConfig(redis_timeout_seconds=5.0)
        async with running_system(redis_server.url, bus, tmp_path, config, alerts) as system:
            await system.client.get("/status")
            await bus.append(DEAD, DeadLettered(stream="s", entry_id="1-0", reason="r"))
            async with asyncio.timeout(20):
                posted = await received.get()
            assert posted["name"] == "dead_letters"
            await bus.append(ALERTS, ALERT)
            async with asyncio.timeout(20):
                posted = await received.get()
            assert posted["name"] == "stale_price"
            assert await bus.length(ALERTS) == 2  # not raised again while it lasts


async def test_that_redis_is_away_is_posted_past_redis(bus: Bus, tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", free_port())
    server.start()
    async with webhook(200) as (url, received):
        alerts = AlertConfig(check_seconds=0.05, webhook_url=SecretStr(url))
        config = GatewayConfig(redis_timeout_seconds=1.0)
        async with running_system(server.url, bus, tmp_path, config, alerts):
            server.stop()
            async with asyncio.timeout(20):
                posted = await received.get()
            assert posted["name"] == "redis_away"
