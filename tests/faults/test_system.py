"""Services as processes: a stream that falls silent, Redis away, hostile entries, another schema."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import numpy as np
from redis.asyncio import Redis

from services.trainer.journal import Journal
from shared.adapters.dataset import Dataset
from shared.messages.codec import encode
from shared.messages.schemas import CheckpointPublished
from shared.messages.streams import ALERTS, CHECKPOINTS, DEAD, TRAJECTORIES
from shared.runtime.redis_server import free_port
from tests.broken_connections import BREAKS_CONNECTIONS
from tests.faults.counts import rounds, soaked, steps, tell
from tests.faults.hostile import hostile
from tests.faults.processes import cpu_seconds, resident_kib
from tests.faults.reading import journalled, until_drained
from tests.faults.test_hostile_entries import MOST_GROWTH_KIB
from tests.services.trainer.processes import SESSION_BARS, System, sendable

pytestmark = BREAKS_CONNECTIONS

#: Steps drawn for each that came in; a batch is 16.
SAMPLES_PER_INSERT = 1.0

#: A service has this long to work again once Redis is back.
BACK_SECONDS = 10.0


@rounds(2, 60)
async def test_a_silent_stream_is_told_of_costs_nothing_and_is_learned_from_as_before(
    system: System, count: int
) -> None:
    """Nothing is sent for so many seconds."""
    port = free_port()
    system.start(
        "api",
        MM_GATEWAY__PORT=str(port),
        MM_ALERTS__CHECK_SECONDS="0.2",
        MM_ALERTS__CHECKPOINT_SILENCE_MINUTES=str(count / 2 / 60),
    )
    trainer = system.start("trainer")
    await system.bus.append_all(TRAJECTORIES, sendable(system, 0, 30))
    await system.learned_from(30)
    begun, used = time.monotonic(), cpu_seconds(trainer.pid)
    await asyncio.sleep(count)
    share = (cpu_seconds(trainer.pid) - used) / (time.monotonic() - begun)

    async def told() -> bool:
        alerts = [entry.message.name for entry in await system.bus.recent(ALERTS, count=100)]
        return "no_checkpoint" in alerts

    await system.until("the silence is told of", told)
    await system.bus.append_all(TRAJECTORIES, sendable(system, 30, 60))
    await system.learned_from(60)
    ratio = 0.0

    async def as_before() -> bool:
        nonlocal ratio
        ratio = await system.detail("trainer", "samples_per_insert")
        return abs(ratio / SAMPLES_PER_INSERT - 1.0) < 0.1

    await system.until("samples are drawn as before", as_before)
    assert await system.detail("trainer", "samples_per_insert_target") == SAMPLES_PER_INSERT
    assert await asyncio.to_thread(system.stop, "trainer") == 0
    tell(
        "stream silent",
        seconds=count,
        trainer_cpu_percent=round(100 * share, 2),
        alerts=1,
        samples_per_insert=round(ratio, 3),
        target=SAMPLES_PER_INSERT,
    )
    assert share < 0.05


@soaked(30)
async def test_every_service_works_again_soon_after_redis_was_away(system: System, count: int) -> None:
    """Redis is stopped for so many seconds."""
    port = free_port()
    system.start("api", MM_GATEWAY__PORT=str(port))
    system.start("trainer")
    system.start("selfplay", MM_ENVIRONMENT__SESSION_BARS=str(SESSION_BARS))
    system.start("validator", MM_VALIDATION__MAX_SESSIONS="8", MM_VALIDATION__PAGE="false")
    await system.learned_from(20)

    async def ready(status: int) -> bool:
        async with httpx.AsyncClient() as client:
            return (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == status

    async def all_beat() -> bool:
        beats = await system.bus.heartbeats()
        return {beat.service for beat in beats if beat.state == "running"} >= set(system.processes)

    await system.until("all run", all_beat)
    assert await ready(200)
    await asyncio.to_thread(system.redis.stop)
    await asyncio.sleep(count)
    assert await ready(503)
    assert [name for name, process in system.processes.items() if process.poll() is not None] == []
    await asyncio.to_thread(system.redis.start)
    begun = time.monotonic()
    back: dict[str, float] = {}

    async def timed(name: str, holds: Callable[[], Awaitable[bool]]) -> None:
        await system.until(f"{name} works again", holds)
        back[name] = round(time.monotonic() - begun, 2)

    before = await system.detail("trainer", "journalled")

    async def journals() -> bool:
        return await system.detail("trainer", "journalled") > before

    await asyncio.gather(
        timed("gateway_ready", lambda: ready(200)),
        timed("all_services_beat", all_beat),
        timed("trajectories_journalled", journals),
    )
    tell("redis stopped", seconds=count, exits=0, **{f"{name}_after": value for name, value in back.items()})
    assert max(back.values()) < BACK_SECONDS
    for name in ("selfplay", "validator", "trainer", "api"):
        assert await asyncio.to_thread(system.stop, name) == 0


@soaked(10_000)
async def test_a_trainer_outlives_hostile_entries_and_does_not_grow(
    system: System, tmp_path: Path, count: int
) -> None:
    rng = np.random.default_rng(12)
    trainer = system.start("trainer", MM_TRAINER__PUBLISH_EVERY_EPISODES="1000000")
    good, dead, before, most = 0, 0, 0, 0
    async with Redis.from_url(system.redis.url) as plain:
        for number in steps(count):
            poison = hostile(number, rng, dataset=system.dataset.fingerprint, start_bar=500)
            await plain.xadd(TRAJECTORIES.key, poison)  # type: ignore[arg-type]
            if number % 10 == 0:
                await system.bus.append_all(TRAJECTORIES, sendable(system, good, good + 1))
                good += 1
            if number % 100 == 99:
                await until_drained(system.bus)
                dead += await system.bus.length(DEAD)
                await plain.delete(DEAD.key)
                most = max(most, resident_kib(trainer.pid))
                before = before or most
        await until_drained(system.bus)
        dead += await system.bus.length(DEAD)
    await system.learned_from(good)
    growth = max(most, resident_kib(trainer.pid)) - before
    assert await asyncio.to_thread(system.stop, "trainer") == 0
    journal = Journal(tmp_path / "journal")
    held = journalled(journal)
    journal.close()
    tell(
        "hostile entries to a trainer",
        hostile=count,
        exits=0,
        dead_letters=dead,
        good=good,
        journalled=len(held),
        lost=good - len(set(held)),
        doubled=len(held) - len(set(held)),
        growth_kib=growth,
    )
    assert dead == count
    assert held == list(range(good))
    assert growth < MOST_GROWTH_KIB


@rounds(1, 10)
async def test_messages_of_another_schema_are_dead_letters_and_no_service_ends(
    system: System, bars: tuple[Path, Dataset], count: int
) -> None:
    """What a system of another release left: its last announcement, versions and trajectories."""
    announced = CheckpointPublished(version=7, episode=7, update=7, weights_sha256="0" * 64)
    old = {**encode(announced), "version": b"0"}
    trajectory = {**encode(*sendable(system, 0, 1)[0]), "version": b"0"}
    async with Redis.from_url(system.redis.url) as plain:
        await plain.hset(f"{CHECKPOINTS.key}:latest", mapping=old)  # type: ignore[arg-type]
        for _ in range(count):
            await plain.xadd(CHECKPOINTS.key, old)  # type: ignore[arg-type]
            await plain.xadd(TRAJECTORIES.key, trajectory)  # type: ignore[arg-type]
    system.start("selfplay")
    system.start("validator", MM_VALIDATION__MAX_SESSIONS="8", MM_VALIDATION__PAGE="false")

    async def both_run() -> bool:
        return {beat.service for beat in await system.bus.heartbeats()} == {"selfplay", "validator"}

    await system.until("both run", both_run)
    system.start("trainer")
    await system.learned_from(10)
    letters = [entry.message for entry in await system.bus.recent(DEAD, count=1_000)]
    by_stream = {
        key: sum(letter.stream == key for letter in letters) for key in (CHECKPOINTS.key, TRAJECTORIES.key)
    }
    tell("messages of another schema", each=count, exits=0, letters=by_stream)
    assert by_stream[TRAJECTORIES.key] == count
    assert by_stream[CHECKPOINTS.key] == count
    assert all("schema version '0'" in letter.reason for letter in letters)
    for name in ("selfplay", "validator", "trainer"):
        assert await asyncio.to_thread(system.stop, name) == 0
