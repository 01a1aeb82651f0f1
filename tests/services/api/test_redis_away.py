"""Redis goes and comes back: the gateway stays, says so, and goes on by itself."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from pydantic import SecretStr
from redis.asyncio import Redis

from services.api.config import GatewayConfig
from shared.adapters.streams.bus import Bus
from shared.adapters.versions.manifest import Pointer
from shared.messages.streams import TRAJECTORIES
from shared.runtime.redis_server import RedisServer
from tests.services.api.conftest import API_KEY, KEY, System, running_system, write_report


@pytest_asyncio.fixture
async def system(own_redis: RedisServer, tmp_path: Path) -> AsyncIterator[System]:
    config = GatewayConfig(api_key=SecretStr(API_KEY), redis_timeout_seconds=1.0)
    bus = Bus(own_redis.url)
    async with running_system(own_redis.url, bus, tmp_path, config) as running:
        yield running
    await bus.close()


async def test_without_redis_everything_still_answers_and_says_so(
    system: System, own_redis: RedisServer
) -> None:
    await system.publish(1, loss=0.5)
    await system.until(lambda: 1 in system.gateway.history.checkpoints)
    write_report(system.validation_root, 1, "paper")
    own_redis.stop()
    status = await system.client.get("/status")
    assert status.status_code == 200
    told = status.json()
    assert (told["state"], told["redis"], told["dead_letters"]) == ("degraded", "away", None)
    assert told["pointers"]["newest"] == 1
    assert [alert["name"] for alert in told["alerts"]] == ["redis_away"]
    assert told["redis_away_since"] is not None
    services = {service["service"]: service["state"] for service in told["services"]}
    assert services.pop("api") == "up"  # the one that answers
    assert set(services.values()) == {"unknown"}
    assert told["trader"]["state"] == "unknown"
    assert (await system.client.get("/healthz")).status_code == 200
    assert (await system.client.get("/checkpoints")).json()["items"][0]["metrics"] == {"loss": 0.5}
    assert "mm_redis_up 0.0" in (await system.client.get("/metrics")).text
    for path in ("/readyz", "/trades", "/dead"):
        answer = await system.client.get(path)
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"


async def test_without_redis_nothing_is_promoted_or_stopped(system: System, own_redis: RedisServer) -> None:
    await system.publish(1)
    write_report(system.validation_root, 1, "paper")
    own_redis.stop()
    answer = await system.client.post("/checkpoints/1/promote", headers=KEY)
    assert answer.status_code == 503
    assert "nothing was changed" in answer.json()["detail"]
    assert system.store.pointer(Pointer.PROMOTED) is None
    killing = await system.client.post("/trader/kill", headers=KEY)
    assert killing.status_code == 503
    assert "./run kill" in killing.json()["detail"]


async def test_when_redis_comes_back_the_gateway_follows_on(system: System, own_redis: RedisServer) -> None:
    await system.publish(1)
    await system.until(lambda: 1 in system.gateway.history.checkpoints)
    own_redis.stop()
    assert (await system.client.get("/readyz")).status_code == 503
    own_redis.start()
    assert (await system.client.get("/readyz")).status_code == 200
    await system.publish(2)
    await system.until(lambda: 2 in system.gateway.history.checkpoints)
    assert (await system.client.get("/status")).json()["redis"] == "up"


async def test_what_redis_refuses_is_told_as_if_it_were_away(system: System, own_redis: RedisServer) -> None:
    """Another program keeps something else where the trajectories should be."""
    async with Redis.from_url(own_redis.url) as client:
        await client.set(TRAJECTORIES.key, "another program's")
    status = await system.client.get("/status")
    assert status.status_code == 200
    assert status.json()["redis"] == "away"
    assert (await system.client.get("/readyz")).status_code == 200
