"""Redis stops and starts again: the gateway reports it and recovers by itself."""

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


async def test_without_redis_the_status_is_degraded_and_other_routes_answer_503(
    system: System, own_redis: RedisServer
) -> None:
    await system.publish(1, loss=0.5)
    await system.until(lambda: 1 in system.gateway.history.checkpoints)
    write_report(system.validation_root, 1, "paper")
    own_redis.stop()
    status = await system.client.get("/status")
    assert status.status_code == 200
    document = status.json()
    assert (document["state"], document["redis"], document["dead_letters"]) == (
        "degraded",
        "unavailable",
        None,
    )
    assert document["pointers"]["newest"] == 1
    assert [alert["name"] for alert in document["alerts"]] == ["redis_unavailable"]
    assert document["redis_unavailable_since"] is not None
    services = {service["service"]: service["state"] for service in document["services"]}
    assert services.pop("api") == "up"  # the process that answers
    assert set(services.values()) == {"unknown"}
    assert document["trader"]["state"] == "unknown"
    assert (await system.client.get("/healthz")).status_code == 200
    assert (await system.client.get("/checkpoints")).json()["items"][0]["metrics"] == {"loss": 0.5}
    assert "mm_redis_up 0.0" in (await system.client.get("/metrics")).text
    for path in ("/readyz", "/trades", "/dead"):
        answer = await system.client.get(path)
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"


async def test_without_redis_orders_are_refused(system: System, own_redis: RedisServer) -> None:
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


async def test_when_redis_returns_the_gateway_follows_the_streams_again(
    system: System, own_redis: RedisServer
) -> None:
    await system.publish(1)
    await system.until(lambda: 1 in system.gateway.history.checkpoints)
    own_redis.stop()
    assert (await system.client.get("/readyz")).status_code == 503
    own_redis.start()
    assert (await system.client.get("/readyz")).status_code == 200
    await system.publish(2)
    await system.until(lambda: 2 in system.gateway.history.checkpoints)
    assert (await system.client.get("/status")).json()["redis"] == "up"


async def test_a_command_that_redis_refuses_counts_as_unavailable(
    system: System, own_redis: RedisServer
) -> None:
    """Another program has stored a string under the key of the trajectories."""
    async with Redis.from_url(own_redis.url) as client:
        await client.set(TRAJECTORIES.key, "another program's")
    status = await system.client.get("/status")
    assert status.status_code == 200
    assert status.json()["redis"] == "unavailable"
    assert (await system.client.get("/readyz")).status_code == 200
