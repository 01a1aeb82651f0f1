"""A full Redis: only trajectories wait, and ingesting them frees memory."""

import asyncio
import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from services.api.config import AlertConfig, GatewayConfig
from services.trainer.intake.journal import Journal
from shared.adapters.streams.bus import Bus
from shared.adapters.streams.lease import Lease
from shared.adapters.tables.dataset import Dataset
from shared.adapters.versions.store import CheckpointStore
from shared.messages.codec import decode_trajectory
from shared.messages.conditions import Condition
from shared.messages.schemas import AlertRaised, ControlIssued, Heartbeat, now
from shared.messages.streams import ALERTS, CHECKPOINTS, CONTROL, DEAD, TRAINER_GROUP, TRAJECTORIES
from shared.runtime.redis_server import RedisServer
from tests.broken_connections import BREAKS_CONNECTIONS
from tests.faults.counts import print_figures, rounds, steps
from tests.faults.intake import journalled_by, send_sessions, settings_without_updates
from tests.faults.reading import (
    Tally,
    in_background,
    journal_all,
    journalled,
    send,
    until_drained,
)
from tests.services.api.conftest import API_KEY, KEY, running_system
from tests.services.api.conftest import System as Gateway
from tests.services.api.test_alerts import webhook
from tests.services.trainer.runs import CONFIG
from tests.services.trainer.test_service import running as running_trainer
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = BREAKS_CONNECTIONS

#: Share of the memory above which the gateway raises its alert; an empty Redis stays below it.
FULL = 0.9


async def fill(plain: Redis) -> None:
    """Make Redis full, and keep it full whatever is removed."""
    await plain.config_set("maxmemory", 1)
    with pytest.raises(OutOfMemoryError):
        await plain.set("one more", "byte")


@rounds(1, 20)
async def test_a_full_redis_pauses_producers_raises_an_alert_and_drains(
    own_bus: Bus, plain: Redis, own_redis: RedisServer, tmp_path: Path, count: int
) -> None:
    producer, journal, tally = Bus(own_redis.url), Journal(tmp_path / "journal"), Tally()

    async def produce() -> None:
        for seed in itertools.count(100_000):
            await send(producer, seed, tally)

    full = 0
    gateway = GatewayConfig(redis_timeout_seconds=5.0)
    async with webhook(200) as (url, posted):
        alerts = AlertConfig(redis_memory_share=FULL, check_seconds=0.1, webhook_url=SecretStr(url))
        async with running_system(own_redis.url, own_bus, tmp_path, gateway, alerts) as system:
            assert await _told_that_it_is_full(system) is False
            used = (await plain.info("memory"))["used_memory"]
            await plain.config_set("maxmemory", used + 1_000_000)
            async with in_background(produce()):
                for _ in steps(count):
                    await until(lambda: producer.degraded)
                    full += await _told_that_it_is_full(system)
                    waiting = await own_bus.length(TRAJECTORIES)
                    assert waiting > 10
                    async with in_background(journal_all(own_bus, journal, tally)):
                        before = len(tally.sent)
                        await until(lambda: len(tally.sent) > before)  # noqa: B023
            async with in_background(journal_all(own_bus, journal, tally)):
                await until_drained(own_bus)
            assert await _told_that_it_is_full(system) is False
            async with asyncio.timeout(PATIENCE_SECONDS):
                while (await posted.get())["name"] != "redis_memory":
                    pass
    held = journalled(journal)
    journal.close()
    await producer.close()
    lost = tally.sent.keys() - set(held)
    print_figures(
        "redis full",
        times=count,
        alerts=full,
        acknowledged=len(tally.sent),
        journalled=len(held),
        lost=len(lost),
        doubled=len(held) - len(set(held)),
    )
    assert full == count
    assert lost == set()
    assert len(held) == len(set(held))


async def _told_that_it_is_full(system: Gateway) -> bool:
    """Whether both /status and /metrics report a full Redis; they must agree."""
    alerts = (await system.client.get("/status")).json()["alerts"]
    words = any(alert["name"] == "redis_memory" and "Redis uses" in alert["detail"] for alert in alerts)
    figures = dict(
        re.findall(r"^mm_redis_(\w+) (\S+)$", (await system.client.get("/metrics")).text, re.MULTILINE)
    )
    assert words == (float(figures["memory_bytes"]) > FULL * float(figures["memory_limit_bytes"]))
    return words


@rounds(10, 1_000)
async def test_a_full_redis_accepts_dead_letters_and_acknowledgements(
    own_bus: Bus, plain: Redis, tmp_path: Path, count: int
) -> None:
    """No byte is free, and every batch starts with an entry that is unreadable or refused."""
    journal = Journal(tmp_path / "journal")
    unreadable, refused = 0, 0
    for number in steps(1, count + 1):
        if number % 2:
            await plain.xadd(TRAJECTORIES.key, {"garbage": b"\xff"})
            unreadable += 1
        await send(own_bus, 100_000 + number)
        await send(own_bus, number)
        await fill(plain)
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for batch in own_bus.consume(TRAJECTORIES, TRAINER_GROUP, "trainer"):
                if batch.entries:
                    break
            await own_bus.dead_letter(TRAJECTORIES, TRAINER_GROUP, batch.entries[0], "for this test")
            refused += 1
            journal.append([decode_trajectory(entry.message, entry.arrays) for entry in batch.entries[1:]])
            await batch.ack()
        assert await own_bus.length(TRAJECTORIES) == 0
        assert (await plain.xpending(TRAJECTORIES.key, TRAINER_GROUP))["pending"] == 0
        await plain.config_set("maxmemory", 0)
    letters = await own_bus.length(DEAD)
    held = journalled(journal)
    journal.close()
    print_figures(
        "dead letters of a full redis",
        unreadable=unreadable,
        refused=refused,
        letters=letters,
        sent=count,
        journalled=len(held),
        lost=count - len(set(held)),
        doubled=len(held) - len(set(held)),
    )
    assert letters == unreadable + refused
    assert held == list(range(1, count + 1))


async def test_a_full_redis_accepts_everything_but_trajectories(
    own_redis: RedisServer, own_bus: Bus, plain: Redis
) -> None:
    await send(own_bus, 0)
    await plain.xadd(ALERTS.key, {"garbage": b"\xff"}, id="7-0")
    await fill(plain)
    lease = Lease(own_redis.url, "trader", "one", seconds=10.0)
    keeping = asyncio.create_task(lease.keep())
    waiting = asyncio.create_task(send(own_bus, 1))
    beat = Heartbeat(service="trader", instance="one", state="running", pid=1, started_at=now())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await lease.acquired()
        await own_bus.beat(beat)
        killed = ControlIssued(target="trader", state="killed", by="gateway", reason="test")
        await own_bus.announce(CONTROL, killed, name="trader")
        await own_bus.append(ALERTS, AlertRaised(source="test", name="first"))
        assert await own_bus.append_all(ALERTS, [(AlertRaised(source="test", name="second"), b"")]) == 3
        began = AlertRaised(source="test", name="full", detail="\0 text", phase="began")
        assert await own_bus.append_condition_alert(began)
        assert not await own_bus.append_condition_alert(began)  # not by another gateway either
        assert await own_bus.active_conditions() == {Condition("test", "full"): "\0 text"}
        batch = await anext(own_bus.consume(TRAJECTORIES, TRAINER_GROUP, "trainer"))  # creates the group
        await own_bus.dead_letter(TRAJECTORIES, TRAINER_GROUP, batch.entries[0], "for this test")
        (letter,) = await own_bus.dead.letters(count=10)
        await own_bus.dead.replay(letter)
        follower = own_bus.follow(ALERTS, block_ms=20)
        assert [entry.message.name for entry in await anext(follower)] == ["first", "second", "full"]
        assert await own_bus.newest(CONTROL, name="trader") == killed
        assert await own_bus.heartbeats() == [beat]
        await until(lambda: own_bus.degraded)
    (letter,) = await own_bus.dead.letters(count=10)  # the follower wrote it
    assert letter.entry_id == "7-0"
    assert not waiting.done()
    assert await own_bus.length(TRAJECTORIES) == 1  # the replayed one
    await plain.config_set("maxmemory", 0)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await waiting
    assert await own_bus.length(TRAJECTORIES) == 2
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await lease.release()


async def test_a_full_redis_accepts_an_order_to_stop_trading(
    own_redis: RedisServer, own_bus: Bus, plain: Redis, tmp_path: Path
) -> None:
    config = GatewayConfig(api_key=SecretStr(API_KEY), redis_timeout_seconds=5.0)
    async with running_system(own_redis.url, own_bus, tmp_path, config) as system:
        await fill(plain)
        answer = await system.client.post("/trader/kill", headers=KEY)
        assert answer.status_code == 200
        await system.until(lambda: "trader" in system.gateway.history.controls)
    ordered = await own_bus.newest(CONTROL, name="trader")
    assert ordered is not None
    assert ordered.state == "killed"


async def test_a_trainer_starts_learns_and_publishes_with_a_full_redis(
    own_redis: RedisServer, own_bus: Bus, plain: Redis, bars: tuple[Path, Dataset], tmp_path: Path
) -> None:
    """There is no consumer group yet, and no version has been announced."""
    settings = settings_without_updates(own_redis, bars[0], tmp_path)
    await send_sessions(own_bus, bars[1], range(150))
    await fill(plain)
    async with running_trainer(settings) as trainer:
        await until(lambda: trainer.heartbeat.detail.get("episode") == 150)
        await until_drained(own_bus)
    assert sorted(journalled_by(settings)) == list(range(150))
    announced = [entry.message.version for entry in await own_bus.recent(CHECKPOINTS, count=100)]
    assert announced[::-1] == CheckpointStore(settings.checkpoint_root).versions() == list(range(16))


async def test_a_trainer_announces_a_rollback_to_a_full_redis(
    own_redis: RedisServer, own_bus: Bus, plain: Redis, bars: tuple[Path, Dataset], tmp_path: Path
) -> None:
    settings = settings_without_updates(own_redis, bars[0], tmp_path)
    learner = replace(
        CONFIG.learner, reward_weight=1e38, max_skipped_in_a_row=3
    )  # makes all gradients non-finite
    trainer_config = replace(settings.trainer, min_replay_steps=1, samples_per_insert=0.05)
    await send_sessions(own_bus, bars[1], range(50))
    await fill(plain)
    async with running_trainer(
        settings.model_copy(update={"learner": learner, "trainer": trainer_config})
    ) as trainer:
        await until(lambda: trainer.heartbeat.detail.get("episode") == 50)
        await until_drained(own_bus)
    assert sorted(journalled_by(settings)) == list(range(50))
    alerts = [entry.message.name for entry in await own_bus.recent(ALERTS, count=100)]
    assert set(alerts) == {"training_rolled_back"}
