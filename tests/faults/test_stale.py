"""Trajectories of outdated versions among others, and a trainer that is killed while reading them."""

import asyncio
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from services.trainer.intake.journal import Journal
from shared.adapters.streams.bus import Bus
from shared.adapters.streams.dead_letters import Letter
from shared.adapters.tables.dataset import write_dataset
from shared.market.synthetic import Market, synthesize
from shared.messages.codec import encode_trajectory
from shared.messages.streams import TRAJECTORIES
from shared.runtime.redis_server import RedisServer
from tests.broken_connections import BREAKS_CONNECTIONS
from tests.faults.counts import print_figures, rounds, steps
from tests.faults.forked import ForkedSystem
from tests.faults.proxy import Proxy
from tests.faults.reading import journalled, until_drained
from tests.services.trainer.processes import SESSION_BARS, Process
from tests.shared.messages.trajectories import random_trajectory
from tests.waiting import until

pytestmark = BREAKS_CONNECTIONS

#: Trajectories of version 0 that are learned from first, so that there is a later version.
EARLY = 10

#: Trajectories sent before each kill; on average version 0 played half of them.
EACH = 24

#: A version that no limit refuses.
YOUNG = 1_000_000

#: No version lag is allowed. No updates are made: this test is about the steps before learning, and versions
#: are published anyway.
NO_LAG = {"MM_TRAINER__MAX_VERSION_LAG": "0", "MM_TRAINER__MIN_REPLAY_STEPS": "1000000000"}


@rounds(3, 60)
async def test_stale_trajectories_become_dead_letters_and_others_are_journalled_once(
    own_redis: RedisServer, tmp_path: Path, count: int
) -> None:
    """The trainer is killed during a dead letter or acknowledgement, before or after Redis sees it."""
    dataset = write_dataset(tmp_path / "bars.duckdb", synthesize(Market.OU, 2_000, seed=1), "synthetic ou")
    bus = Bus(own_redis.url)
    system = ForkedSystem(tmp_path, dataset, own_redis, bus)
    killer = _Killer(lambda: system.processes["trainer"].kill())
    rng = np.random.default_rng(18)

    async def send(seeds: Iterable[int], versions: Iterable[int]) -> None:
        sent = [
            random_trajectory(seed, SESSION_BARS, start_bar=500, dataset=dataset.fingerprint, version=version)
            for seed, version in zip(seeds, versions, strict=True)
        ]
        await bus.append_all(TRAJECTORIES, [encode_trajectory(trajectory) for trajectory in sent])

    async def later_version() -> bool:
        return await system.detail("trainer", "version") >= 1

    stale: set[int] = set()
    async with Proxy(own_redis, request=killer.at_request, reply=killer.at_reply) as proxy:
        await send(range(EARLY), [0] * EARLY)
        trainer = system.start("trainer", MM_REDIS_URL=proxy.url, **NO_LAG)
        await system.until("a version after the first", later_version)
        for number in steps(count):
            first = EARLY + EACH * number
            versions = rng.choice([0, YOUNG], EACH)
            stale |= {first + at for at in np.flatnonzero(versions == 0).tolist()}
            killer.arm(int(rng.integers(1, 6)), at_the_reply=number % 2 == 1)
            await send(range(first, first + EACH), versions.tolist())
            # A worker repeats trajectories in this way after a lost reply.
            await send(rng.choice(EARLY, 3, replace=False).tolist(), [0] * 3)
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
    print_figures(
        "stale trajectories",
        kills=killer.kills,
        sent=sent,
        stale=len(stale),
        dead_letters=len(refused),
        journalled=len(held),
        lost=sent - len(set(held) | set(refused)),
        doubled=len(held) + len(refused) - len(set(held)) - len(set(refused)),
        in_both=len(set(held) & set(refused)),
    )
    assert killer.kills == count
    assert sorted(refused) == sorted(stale)
    assert sorted(held) == sorted(set(range(sent)) - stale)
    assert {letter.reason.rpartition("; ")[2] for letter in letters} == {"trainer.max_version_lag allows 0"}


class _Killer:
    """Proxy hooks that kill the trainer at a dead letter or acknowledgement, once armed."""

    def __init__(self, kill: Callable[[], None]) -> None:
        self._kill_trainer = kill
        self._left: int | None = None  # requests until the kill, or None if not armed
        self._at_the_reply = False
        self.kills = 0

    def arm(self, requests: int, *, at_the_reply: bool) -> None:
        """Kill at this request, counted from now: before Redis sees it, or before its reply arrives."""
        self._left, self._at_the_reply = requests, at_the_reply

    async def at_request(self, request: bytes) -> bytes | None:
        if self._left and b"XACK" in request:
            self._left -= 1
            if self._left == 0 and not self._at_the_reply:
                self._kill()
                return None
        return request

    async def at_reply(self, reply: bytes) -> bytes | None:
        # The reply is the id of a dead letter or a number of entries; the reply to a heartbeat is +OK.
        if self._left == 0 and reply.startswith((b"$", b":")):
            self._kill()
            return None
        return reply

    def _kill(self) -> None:
        self._left = None
        self.kills += 1
        self._kill_trainer()


def _ended(process: Process) -> Callable[[], bool]:
    return lambda: process.poll() is not None


def _seed(letter: Letter) -> int:
    assert letter.original is not None
    return int(json.loads(letter.original[b"body"])["seed"])
