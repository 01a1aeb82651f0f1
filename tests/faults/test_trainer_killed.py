"""The trainer as a real process, killed with its trajectories in the journal and not yet acknowledged."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from services.trainer.journal import Journal
from shared.adapters.bus import Bus
from shared.adapters.dataset import write_dataset
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

#: Trajectories sent for each kill.
EACH = 10


@rounds(2, 60)
async def test_a_trainer_killed_between_its_journal_and_the_acknowledgement_counts_once(
    own_redis: RedisServer, tmp_path: Path, count: int
) -> None:
    """Killed in turn with its acknowledgement on the way to Redis, and with the reply on the way back."""
    dataset = write_dataset(tmp_path / "bars.duckdb", synthesize(Market.OU, 2_000, seed=1), "synthetic ou")
    bus = Bus(own_redis.url)
    system = ForkedSystem(tmp_path, dataset, own_redis, bus)
    acknowledging = False
    kill_at_request = kill_at_reply = False
    kills = 0

    def kill() -> None:
        nonlocal kills, kill_at_request, kill_at_reply
        kill_at_request = kill_at_reply = False
        kills += 1
        system.processes["trainer"].kill()

    async def at_request(request: bytes) -> bytes | None:
        nonlocal acknowledging
        if b"XACK" in request:
            acknowledging = True
            if kill_at_request:
                kill()
                return None
        return request

    async def at_reply(reply: bytes) -> bytes | None:
        if acknowledging and kill_at_reply and reply.startswith(b":"):  # a number; a heartbeat's is +OK
            kill()
            return None
        return reply

    async with Proxy(own_redis, request=at_request, reply=at_reply) as proxy:
        for number in steps(count):
            acknowledging = False
            kill_at_request, kill_at_reply = number % 2 == 0, number % 2 == 1
            trainer = system.start("trainer", MM_REDIS_URL=proxy.url)
            for seed in range(EACH * number, EACH * (number + 1)):
                trajectory = random_trajectory(seed, SESSION_BARS, start_bar=500, dataset=dataset.fingerprint)
                await bus.append(TRAJECTORIES, *encode_trajectory(trajectory))
            await until(_ended(trainer))
        system.start("trainer", MM_REDIS_URL=proxy.url)

        async def all_journalled() -> bool:
            return await system.detail("trainer", "journalled") == EACH * count

        await system.until("everything is journalled", all_journalled)
        await until_drained(bus)
        assert await asyncio.to_thread(system.stop, "trainer") == 0
    journal = Journal(tmp_path / "journal")
    held = journalled(journal)
    journal.close()
    await bus.close()
    tell(
        "trainer killed between journal and acknowledgement",
        kills=kills,
        sent=EACH * count,
        journalled=len(held),
        lost=EACH * count - len(set(held)),
        doubled=len(held) - len(set(held)),
    )
    assert kills == count
    assert sorted(held) == list(range(EACH * count))


def _ended(process: Process) -> Callable[[], bool]:
    return lambda: process.poll() is not None
