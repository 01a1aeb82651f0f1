"""The trainer as a real process that is killed, before an acknowledgement or at any time."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

from services.trainer.intake.journal import Journal
from shared.adapters.streams.bus import Bus
from shared.adapters.tables.dataset import write_dataset
from shared.adapters.versions.store import CheckpointStore
from shared.market.synthetic import Market, synthesize
from shared.messages.codec import encode_trajectory
from shared.messages.streams import TRAJECTORIES
from shared.runtime.redis_server import RedisServer
from tests.broken_connections import BREAKS_CONNECTIONS
from tests.faults.counts import print_figures, rounds, steps
from tests.faults.forked import ForkedSystem
from tests.faults.proxy import Proxy
from tests.faults.reading import journalled, until_drained
from tests.services.trainer.processes import SESSION_BARS, Process, System, drained, sendable
from tests.shared.messages.trajectories import random_trajectory
from tests.waiting import until

pytestmark = BREAKS_CONNECTIONS

#: Trajectories sent before each kill.
EACH = 10


@rounds(2, 60)
async def test_a_trainer_killed_before_the_acknowledgement_counts_once(
    own_redis: RedisServer, tmp_path: Path, count: int
) -> None:
    """It is killed in turn before Redis sees the acknowledgement and before the reply arrives."""
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
        if (
            acknowledging and kill_at_reply and reply.startswith(b":")
        ):  # a number; the reply to a heartbeat is +OK
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
    print_figures(
        "trainer killed between journal and acknowledgement",
        kills=kills,
        sent=EACH * count,
        journalled=len(held),
        lost=EACH * count - len(set(held)),
        doubled=len(held) - len(set(held)),
    )
    assert kills == count
    assert sorted(held) == list(range(EACH * count))


async def test_a_trainer_killed_at_any_time_counts_each_trajectory_once(
    forked_system: System,
) -> None:
    system, sent = forked_system, 0
    for last in (False, False, True):
        system.start("trainer")
        await system.bus.append_all(TRAJECTORIES, sendable(system, sent, sent + 17))
        # A worker repeats trajectories in this way after a lost reply.
        await system.bus.append_all(TRAJECTORIES, sendable(system, sent + 10, sent + 17))
        sent += 17
        if not last:
            await system.learned_from(sent - 8)
            system.stop("trainer", signal.SIGKILL)
    # The number of updates for these trajectories does not depend on the kills.
    owed = (sent * SESSION_BARS) // 16

    async def all_made() -> bool:
        return await system.detail("trainer", "update") >= owed and await drained(system)

    await system.until(f"{sent} episodes are learned from", all_made)
    assert system.stop("trainer") == 0

    wanted = {str(random_trajectory(seed, SESSION_BARS).trajectory_id) for seed in range(sent)}
    ids = system.journalled_ids()
    assert len(ids) == len(wanted)
    assert set(ids) == wanted
    manifest, _ = CheckpointStore(system.home / "checkpoints").newest_valid()
    assert manifest is not None
    assert manifest.episode == manifest.journal_position == sent
    assert manifest.update == owed
    # The record has each trajectory and each version once.
    assert system.recorded("episodes", "episode") == list(range(1, sent + 1))
    assert system.recorded("updates", "attempt") == list(range(1, manifest.update + 1))
    versions = CheckpointStore(system.home / "checkpoints").versions()
    assert system.recorded("versions", "version") == versions


def _ended(process: Process) -> Callable[[], bool]:
    return lambda: process.poll() is not None
