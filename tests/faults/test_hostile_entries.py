"""Entries that are not what they claim, among good ones: each a dead letter, every good one delivered."""

import hashlib
import resource
from pathlib import Path

import numpy as np
from redis.asyncio import Redis

from services.trainer.journal import Journal
from shared.adapters.bus import Bus
from shared.errors import MessageError
from shared.messages.codec import decode_trajectory, encode, encode_trajectory
from shared.messages.streams import DEAD, TRAINER_GROUP, TRAJECTORIES
from shared.runtime.redis_server import RedisServer
from tests.broken_connections import BREAKS_CONNECTIONS
from tests.faults.counts import rounds, steps, tell
from tests.faults.reading import in_background, journalled, send, until_drained
from tests.shared.messages.trajectories import random_trajectory

pytestmark = BREAKS_CONNECTIONS

#: A process that grows by more than this holds on to what it refused.
MOST_GROWTH_KIB = 50 << 10


def hostile(number: int, rng: np.random.Generator) -> dict[str, bytes]:
    """An entry that must be refused; every kind in turn."""
    header, arrays = encode_trajectory(random_trajectory(1_000_000 + number))
    good = encode(header, arrays)
    not_finite = arrays[:-4] + np.float32("nan").tobytes()
    digest = header.arrays_sha256.encode()
    kinds = (
        {rng.bytes(4).hex(): rng.bytes(200) for _ in range(3)},
        {**good, "body": rng.bytes(300)},
        {**good, "body": good["body"].replace(b'"shape":[12', b'"shape":[268435456', 1)},
        {
            **good,
            "body": good["body"].replace(digest, hashlib.sha256(not_finite).hexdigest().encode()),
            "arrays": not_finite,
        },
        {**good, "arrays": arrays[: len(arrays) // 2]},
        {**good, "arrays": arrays + bytes(4_000_001)},
        {**good, "version": b"0"},
        {**good, "version": b"2"},
        {**good, "body": b"[" * 100_000},
        {**good, "type": b"ControlIssued"},
        {"type": good["type"], "version": good["version"]},
    )
    return kinds[number % len(kinds)]


@rounds(110, 10_000)
async def test_hostile_entries_are_dead_letters_and_every_good_one_is_journalled(
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

    good, dead = 0, 0
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
                dead += await bus.length(DEAD)
                await plain.delete(DEAD.key)
        await until_drained(bus)
        dead += await bus.length(DEAD)
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    held = journalled(journal)
    journal.close()
    tell(
        "hostile entries",
        hostile=count,
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
