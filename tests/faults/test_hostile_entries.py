"""Hostile entries among valid ones: each becomes a dead letter, and all valid entries are delivered."""

import resource
from pathlib import Path
from typing import cast

import numpy as np
from redis.asyncio import Redis

from services.trainer.intake.journal import Journal
from shared.adapters.streams.bus import Bus
from shared.errors import MessageError
from shared.messages.codec import decode_trajectory
from shared.messages.streams import DEAD, TRAINER_GROUP, TRAJECTORIES
from shared.runtime.redis_server import RedisServer
from tests.broken_connections import BREAKS_CONNECTIONS
from tests.faults.counts import print_figures, rounds, steps
from tests.faults.hostile import hostile
from tests.faults.reading import in_background, journalled, send, until_drained

pytestmark = BREAKS_CONNECTIONS

#: A process that grows by more than this keeps refused entries in memory.
MOST_GROWTH_KIB = 50 << 10


@rounds(110, 10_000)
async def test_hostile_entries_become_dead_letters_and_valid_ones_are_journalled(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, count: int
) -> None:
    rng = np.random.default_rng(9)
    journal = Journal(tmp_path / "journal")
    refused = 0

    async def journal_good() -> None:
        nonlocal refused
        async for batch in bus.consume(TRAJECTORIES, TRAINER_GROUP, "trainer"):
            for entry in batch.entries:
                try:
                    journal.append([decode_trajectory(entry.message, entry.arrays)])
                except MessageError as reason:
                    refused += 1
                    await bus.dead_letter(TRAJECTORIES, TRAINER_GROUP, entry, str(reason))
            await batch.ack()

    good = 0
    async with Redis.from_url(redis_server.url) as plain, in_background(journal_good()):
        for number in steps(count):
            if number == count // 2:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            await plain.xadd(TRAJECTORIES.key, hostile(number, rng))  # type: ignore[arg-type]
            if number % 10 == 0:
                await send(bus, good)
                good += 1
            if number % 100 == 99:
                await until_drained(bus)
        await until_drained(bus)
        letters = await plain.xinfo_stream(DEAD.key)
        kept_bytes = cast("int", await plain.memory_usage(DEAD.key, samples=0))
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    held = journalled(journal)
    journal.close()
    print_figures(
        "hostile entries",
        hostile=count,
        dead_letters=letters["entries-added"],
        letters_kept=letters["length"],
        kept_bytes=kept_bytes,
        good=good,
        journalled=len(held),
        lost=good - len(set(held)),
        doubled=len(held) - len(set(held)),
        growth_kib=growth,
    )
    assert letters["entries-added"] == count
    assert kept_bytes <= cast("int", DEAD.max_bytes)
    assert held == list(range(good))
    assert growth < MOST_GROWTH_KIB
