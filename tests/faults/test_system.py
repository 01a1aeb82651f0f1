"""Services as processes, with a silent stream and with hostile entries."""

import asyncio
import time
from pathlib import Path

import numpy as np
from redis.asyncio import Redis

from services.trainer.intake.journal import Journal
from shared.messages.streams import ALERTS, DEAD, TRAJECTORIES
from shared.runtime.ports import free_port
from tests.broken_connections import BREAKS_CONNECTIONS
from tests.faults.counts import print_figures, rounds, soaked, steps
from tests.faults.hostile import hostile
from tests.faults.processes import cpu_seconds, resident_kib
from tests.faults.reading import journalled, until_drained
from tests.faults.test_hostile_entries import MOST_GROWTH_KIB
from tests.services.trainer.processes import System, sendable

pytestmark = BREAKS_CONNECTIONS

#: Largest share of a core that an idle trainer may use, in a soak test and in the default suite. The latter
#: lasts two seconds, in which heartbeats alone can exceed the first limit. A busy loop exceeds the second.
IDLE_SHARE, BUSY_MACHINE_SHARE = 0.05, 0.2

#: Samples per insert; a batch has 16 steps.
SAMPLES_PER_INSERT = 1.0


@rounds(2, 60)
async def test_a_silent_stream_raises_an_alert_and_costs_no_cpu_time(system: System, count: int) -> None:
    """Nothing is sent for `count` seconds."""
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

    async def alerted() -> bool:
        alerts = [entry.message.name for entry in await system.bus.recent(ALERTS, count=100)]
        return "no_checkpoint" in alerts

    await system.until("an alert reports the silence", alerted)
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
    print_figures(
        "stream silent",
        seconds=count,
        trainer_cpu_percent=round(100 * share, 2),
        alerts=1,
        samples_per_insert=round(ratio, 3),
        target=SAMPLES_PER_INSERT,
    )
    assert share < (IDLE_SHARE if count >= 60 else BUSY_MACHINE_SHARE)


@soaked(10_000)
async def test_a_trainer_survives_hostile_entries_and_its_memory_does_not_grow(
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
    print_figures(
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
