"""Trajectories that too old a version played, among others, and a trainer killed in the midst of them."""

import asyncio
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from services.trainer.journal import Journal
from shared.adapters.bus import Bus
from shared.adapters.dataset import write_dataset
from shared.adapters.dead_letters import Letter
from shared.market.synthetic import Market, synthesize
from shared.messages.codec import encode_trajectory
from shared.messages.streams import TRAJECTORIES
from shared.runtime.redis_server import RedisServer
from tests.broken_connections import BREAKS_CONNECTIONS
from tests.faults.counts import rounds, steps, tell
from tests.faults.forked import ForkedSystem
from tests.faults.proxy import Proxy
from tests.faults.reading import journalled, until, until_drained
from tests.services.trainer.processes import SESSION_BARS, Process
from tests.shared.messages.trajectories import random_trajectory

pytestmark = BREAKS_CONNECTIONS

#: Trajectories of version 0 that come first and are learned from, so that there is a later version.
EARLY = 10

#: Sent for each kill, in the mean half of them played by version 0.
EACH = 24

#: Played by a version that no limit refuses.
YOUNG = 1_000_000

#: No updates: versions are published all the same, and what is looked at here comes before learning.
NO_LAG = {"MM_TRAINER__MAX_VERSION_LAG": "0", "MM_TRAINER__MIN_REPLAY_STEPS": "1000000000"}


@rounds(3, 60)
async def test_every_stale_trajectory_is_a_dead_letter_and_every_other_is_journalled_once(
    own_redis: RedisServer, tmp_path: Path, count: int
) -> None:
    """Killed in turn with a letter or an acknowledgement on its way, and with the reply on its way back."""
    dataset = write_dataset(tmp_path / "bars.duckdb", synthesize(Market.OU, 2_000, seed=1), "synthetic ou")
    bus = Bus(own_redis.url)
    system = ForkedSystem(tmp_path, dataset, own_redis, bus)
    rng = np.random.default_rng(18)
    left = -1  # letters and acknowledgements until the trainer is killed; never when it is negative
    at_the_reply = False
    kills = 0

    def kill() -> None:
        nonlocal left, kills
        left = -1
        kills += 1
        system.processes["trainer"].kill()

    async def at_request(request: bytes) -> bytes | None:
        nonlocal left
        if left > 0 and b"XACK" in request:
            left -= 1
            if left == 0 and not at_the_reply:
                kill()
                return None
        return request

    async def at_reply(reply: bytes) -> bytes | None:
        if left == 0 and reply.startswith((b"$", b":")):  # a letter's id or a number; a heartbeat's is +OK
            kill()
            return None
        return reply

    async def send(seeds: Iterable[int], versions: Iterable[int]) -> None:
        sent = [
            random_trajectory(seed, SESSION_BARS, start_bar=500, dataset=dataset.fingerprint, version=version)
            for seed, version in zip(seeds, versions, strict=True)
        ]
        await bus.append_all(TRAJECTORIES, [encode_trajectory(trajectory) for trajectory in sent])

    async def later_version() -> bool:
        return await system.detail("trainer", "version") >= 1

    stale: set[int] = set()
    async with Proxy(own_redis, request=at_request, reply=at_reply) as proxy:
        await send(range(EARLY), [0] * EARLY)
        trainer = system.start("trainer", MM_REDIS_URL=proxy.url, **NO_LAG)
        await system.until("a version after the first", later_version)
        for number in steps(count):
            first = EARLY + EACH * number
            versions = rng.choice([0, YOUNG], EACH)
            stale |= {first + at for at in np.flatnonzero(versions == 0).tolist()}
            left, at_the_reply = int(rng.integers(1, 6)), number % 2 == 1
            await send(range(first, first + EACH), versions.tolist())
            await send(rng.choice(EARLY, 3, replace=False).tolist(), [0] * 3)  # again: their reply was lost
            await until(_ended(trainer))
            trainer = system.start("trainer", MM_REDIS_URL=proxy.url, **NO_LAG)
        await until_drained(bus)
        assert await asyncio.to_thread(system.stop, "trainer") == 0
    letters = await bus.dead.letters(count=2_000)
    await bus.close()
    journal = Journal(tmp_path / "journal")
    held = journalled(journal)
    journal.close()
    refused = [_seed(letter) for letter in letters]
    sent = EARLY + EACH * count
    tell(
        "stale trajectories",
        kills=kills,
        sent=sent,
        stale=len(stale),
        dead_letters=len(refused),
        journalled=len(held),
        lost=sent - len(set(held) | set(refused)),
        doubled=len(held) + len(refused) - len(set(held)) - len(set(refused)),
        in_both=len(set(held) & set(refused)),
    )
    assert kills == count
    assert sorted(refused) == sorted(stale)
    assert sorted(held) == sorted(set(range(sent)) - stale)
    assert {letter.reason.rpartition("; ")[2] for letter in letters} == {"trainer.max_version_lag allows 0"}


def _ended(process: Process) -> Callable[[], bool]:
    return lambda: process.poll() is not None


def _seed(letter: Letter) -> int:
    assert letter.original is not None
    return int(json.loads(letter.original[b"body"])["seed"])
