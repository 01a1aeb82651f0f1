"""GET /status, /positions, /healthz, /readyz, /metrics."""

import asyncio
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from services.api.config import EXPECTED_SERVICES, AlertConfig, GatewayConfig
from shared.adapters.streams.bus import Bus
from shared.messages.schemas import ControlIssued, DeadLettered, DecisionMade, Heartbeat, now
from shared.messages.streams import ALERTS, CONTROL, DEAD, DECISIONS, heartbeat_key
from shared.runtime.redis_server import RedisServer
from tests.services.api.conftest import System, running_system
from tests.waiting import PATIENCE_SECONDS


def beat(service: str, instance: str, state: str = "running", **detail: float | str | bool) -> Heartbeat:
    return Heartbeat.model_validate(
        {
            "service": service,
            "instance": instance,
            "state": state,
            "pid": 1,
            "started_at": now(),
            "detail": detail,
        }
    )


def decision(**changes: object) -> DecisionMade:
    return DecisionMade.model_validate(
        {
            "bar_time": now(),
            "action": "BUY",
            "executed": True,
            "version": 3,
            "value": 2.5,
            "visit_policy": (0.1, 0.8, 0.1, 0.0),
            "outcome_probabilities": (0.3, 0.4, 0.3),
            "side": 1,
            "pnl_pips": -4.0,
            "close": 187.25,
            **changes,
        }
    )


async def samples(system: System) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = (await system.client.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_the_status_of_an_empty_system_lists_every_expected_service(system: System) -> None:
    status = (await system.client.get("/status")).json()
    assert status["state"] == "degraded"
    assert status["redis"] == "up"
    assert [service["service"] for service in status["services"]] == list(EXPECTED_SERVICES)
    assert all(service["instances"] == [] for service in status["services"])
    assert status["pointers"] == {"newest": None, "best": None, "promoted": None}
    assert status["dead_letters"] == 0


async def test_a_complete_system_is_running(system: System, bus: Bus) -> None:
    for service in EXPECTED_SERVICES:
        await bus.beat(beat(service, f"{service}-1"))
    await bus.beat(beat("selfplay", "selfplay-2", episodes=7))
    status = (await system.client.get("/status")).json()
    assert status["state"] == "running"
    replicas = {service["service"]: len(service["instances"]) for service in status["services"]}
    assert replicas["selfplay"] == 2
    assert replicas["trainer"] == 1


async def test_an_unreadable_heartbeat_breaks_neither_the_status_nor_the_gateway(
    redis_server: RedisServer, bus: Bus, tmp_path: Path
) -> None:
    config, often = GatewayConfig(redis_timeout_seconds=5.0), AlertConfig(check_seconds=0.05)
    async with running_system(redis_server.url, bus, tmp_path, config, often) as system:
        await bus.beat(beat("selfplay", "1"))
        async with Redis.from_url(redis_server.url) as plain:
            await plain.set(heartbeat_key("trainer", "newer"), b'{"schema_version":2}')
        answer = await system.client.get("/status")
        assert answer.status_code == 200
        instances = {service["service"]: len(service["instances"]) for service in answer.json()["services"]}
        assert (instances["selfplay"], instances["trainer"]) == (1, 0)
        await bus.append(DEAD, DeadLettered(stream="s", entry_id="1-0", reason="r"))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await bus.length(ALERTS):  # noqa: ASYNC110  the gateway still checks
                await asyncio.sleep(0.01)
        assert (await samples(system))["mm_heartbeats_unreadable_total", frozenset()] > 0


async def test_one_degraded_instance_degrades_the_system(system: System, bus: Bus) -> None:
    for service in EXPECTED_SERVICES:
        await bus.beat(beat(service, "1", "degraded" if service == "validator" else "running"))
    assert (await system.client.get("/status")).json()["state"] == "degraded"


async def test_the_status_has_training_validation_and_trading(system: System, bus: Bus) -> None:
    await system.publish(3, loss=1.5, win_rate=0.4)
    await system.publish(4, loss=1.25, win_rate=0.5)
    await system.report(3, "paper")
    await bus.append(DECISIONS, decision())
    await bus.announce(CONTROL, ControlIssued(target="training", state="paused", by="t"), name="training")
    await system.until(lambda: "training" in system.gateway.history.controls)
    await system.until(lambda: len(system.gateway.history.checkpoints) == 2)
    await system.until(lambda: system.gateway.history.last_decision is not None)
    await system.until(lambda: system.gateway.history.last_validation is not None)
    status = (await system.client.get("/status")).json()
    assert status["training"]["state"] == "unknown"  # no trainer reports that it is paused
    assert status["training"]["order"]["state"] == "paused"
    assert (status["training"]["version"], status["training"]["episode"]) == (4, 200)
    assert status["training"]["metrics"] == {"loss": 1.25, "win_rate": 0.5}
    assert status["pointers"]["newest"] == 4
    assert status["validation"]["version"] == 3
    assert status["trader"]["last_decision"]["visit_policy"] == [0.1, 0.8, 0.1, 0.0]
    assert status["streams"]["mm:checkpoints"] == 2


async def test_positions_are_those_that_the_trader_reports(system: System, bus: Bus) -> None:
    absent = (await system.client.get("/positions")).json()
    assert absent["time"] is None
    await bus.beat(beat("trader", "trader-1", side=1, entry_price=187.5))
    held = (await system.client.get("/positions")).json()
    assert held["detail"] == {"side": 1, "entry_price": 187.5}
    assert held["time"] is not None


async def test_health_and_readiness_with_redis(system: System) -> None:
    assert (await system.client.get("/healthz")).json() == {"status": "ok"}
    assert (await system.client.get("/readyz")).status_code == 200


async def test_metrics_hold_heartbeats_streams_and_versions(system: System, bus: Bus) -> None:
    await bus.beat(beat("trainer", "t1", updates=12, mode="cpu", ready=True))
    await bus.append(DEAD, DeadLettered(stream="mm:trajectories", entry_id="1-0", reason="broken"))
    await system.publish(5, loss=0.75)
    await system.until(lambda: 5 in system.gateway.history.checkpoints)
    found = await samples(system)
    detail = {"service": "trainer", "instance": "t1"}
    assert found["mm_service_detail", frozenset({**detail, "name": "updates"}.items())] == 12
    assert ("mm_service_detail", frozenset({**detail, "name": "mode"}.items())) not in found
    assert found["mm_dead_letters", frozenset()] == 1
    assert found["mm_stream_length", frozenset({("stream", "mm:checkpoints")})] == 1
    assert found["mm_version", frozenset({("name", "newest")})] == 5
    assert found["mm_training_metric", frozenset({("name", "loss")})] == 0.75
    assert found["mm_episodes", frozenset()] == 250
    alert = frozenset({("name", "dead_letters"), ("source", "streams")})
    assert found["mm_alert_active", alert] == 1


async def test_request_metrics_have_routes_as_labels_not_paths_from_clients(system: System) -> None:
    for version in (7, 8):
        await system.client.get(f"/checkpoints/{version}")
    await system.client.get("/made/up")
    routes = {dict(labels).get("route") for name, labels in await samples(system) if "mm_gateway" in name}
    assert "/checkpoints/{version}" in routes
    assert "other" in routes
    assert not any(route and ("made" in route or "7" in route) for route in routes)
