"""A Redis that answers but refuses: loading, busy, unable to save, or with a clock that jumped."""

import asyncio
import itertools
import subprocess
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.trainer.intake.journal import Journal
from shared.adapters.streams.bus import Bus
from shared.adapters.tables.dataset import Dataset
from shared.adapters.versions.manifest import Manifest
from shared.adapters.versions.store import CheckpointStore, Tensors
from shared.messages.codec import encode, encode_trajectory
from shared.messages.streams import CHECKPOINTS, TRAINER_GROUP, TRAJECTORIES
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
from tests.services.trainer.test_service import running as running_trainer
from tests.shared.messages.trajectories import random_trajectory
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = BREAKS_CONNECTIONS


@rounds(1, 20)
async def test_while_redis_loads_its_data_the_bus_waits(
    own_redis: RedisServer, own_bus: Bus, plain: Redis, count: int
) -> None:
    refused = 0
    for number in steps(count):
        async with plain.pipeline(transaction=False) as pipe:
            for key in range(4_000):
                pipe.set(f"filler:{key}", "x" * 64)
            await pipe.execute()
        await asyncio.to_thread(own_redis.stop, kill=True)
        config = own_redis.folder / "redis.conf"
        slow = f"{config.read_text()}key-load-delay 250\nloading-process-events-interval-bytes 1024\n"
        (own_redis.folder / "slow.conf").write_text(slow)
        process = await asyncio.to_thread(_begin, own_redis.folder / "slow.conf")
        try:
            sending = asyncio.create_task(send(own_bus, number))
            refused += await _told_that_it_loads(own_redis)
            async with asyncio.timeout(PATIENCE_SECONDS):
                await sending
            assert await own_bus.length(TRAJECTORIES) == number + 1
        finally:
            process.kill()
            process.wait()
        await asyncio.to_thread(own_redis.start)
    print_figures("redis loading", starts=count, refused=refused, sent=count, lost=0)
    assert refused == count


def _begin(config: Path) -> subprocess.Popen[bytes]:
    """Start a server without waiting until it answers."""
    from shared.runtime.redis_server import find_redis_server

    return subprocess.Popen(
        [find_redis_server(), str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


async def _told_that_it_loads(server: RedisServer) -> bool:
    """Poll until the server answers; returns whether it answered that it was loading."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            except OSError:
                await asyncio.sleep(0.001)
                continue
            writer.write(f"AUTH {server.password}\r\nPING\r\n".encode())
            await reader.readline()
            answer = await reader.readline()
            writer.close()
            await writer.wait_closed()
            return answer.startswith(b"-LOADING")


@rounds(1, 20)
async def test_while_a_script_keeps_redis_busy_the_bus_waits(
    own_bus: Bus, plain: Redis, own_redis: RedisServer, count: int
) -> None:
    await plain.config_set("busy-reply-threshold", 10)
    for number in steps(count):
        async with Redis.from_url(own_redis.url, protocol=2) as other:
            script = asyncio.ensure_future(other.eval("while true do end", 0))
            await asyncio.sleep(0.05)
            sending = asyncio.create_task(send(own_bus, number))
            await until(lambda: own_bus.degraded or sending.done())  # noqa: B023
            await plain.script_kill()
            await asyncio.gather(script, return_exceptions=True)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await sending
        assert await own_bus.length(TRAJECTORIES) == number + 1
    print_figures("redis busy with a script", times=count, sent=count, lost=0)


@rounds(1, 10)
async def test_a_redis_that_cannot_save_only_delays_delivery(
    own_bus: Bus, plain: Redis, own_redis: RedisServer, count: int
) -> None:
    """By default, Redis refuses writes after a failed snapshot until one succeeds."""
    await plain.config_set("save", "3600 1")
    snapshot = own_redis.folder / "dump.rdb"
    for number in steps(count):
        snapshot.unlink(missing_ok=True)
        snapshot.mkdir()  # blocks the snapshot
        await _snapshot(plain, succeeds=False)
        sending = asyncio.create_task(send(own_bus, number))
        await until(lambda: own_bus.degraded or sending.done())  # noqa: B023
        snapshot.rmdir()
        await _snapshot(plain, succeeds=True)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await sending
        assert await own_bus.length(TRAJECTORIES) == number + 1
    print_figures("redis unable to save", times=count, sent=count, lost=0)


async def _snapshot(redis: Redis, *, succeeds: bool) -> None:
    wanted = "ok" if succeeds else "err"
    await redis.bgsave()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            info = await redis.info("persistence")
            if not info["rdb_bgsave_in_progress"] and info["rdb_last_bgsave_status"] == wanted:
                return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("version", [0, 1], ids=["first version", "later version"])
async def test_a_version_that_could_not_be_announced_is_announced_at_the_next_start(
    own_redis: RedisServer,
    own_bus: Bus,
    bars: tuple[Path, Dataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: int,
) -> None:
    """Redis dies after the files of the version are written."""
    save, interrupted = CheckpointStore.save, list[int]()

    def save_then_die(store: CheckpointStore, manifest: Manifest, *tensors: Tensors) -> Manifest:
        saved = save(store, manifest, *tensors)
        if manifest.version == version and not interrupted:
            own_redis.stop(kill=True)
            interrupted.append(version)
        return saved

    monkeypatch.setattr(CheckpointStore, "save", save_then_die)
    settings = settings_without_updates(own_redis, bars[0], tmp_path)
    await send_sessions(own_bus, bars[1], range(50))
    async with running_trainer(settings) as trainer:
        await until(lambda: bool(interrupted) and trainer.bus.degraded)
        trainer.stop()
    await asyncio.to_thread(own_redis.start)
    announced = await own_bus.newest(CHECKPOINTS)
    assert (announced.version if announced else -1) == version - 1
    async with running_trainer(settings) as trainer:
        await until(lambda: trainer.heartbeat.detail.get("episode") == 50)
        await until_drained(own_bus)
    assert sorted(journalled_by(settings)) == list(range(50))
    announced = await own_bus.newest(CHECKPOINTS)
    assert announced is not None
    assert announced.version == CheckpointStore(settings.checkpoint_root).versions()[-1]


@rounds(2, 50)
async def test_a_clock_jump_of_an_hour_keeps_the_order_and_trims_nothing(
    own_bus: Bus, plain: Redis, tmp_path: Path, count: int
) -> None:
    """The clock jumps an hour forward for one entry, whose id is set, and back for the entries after it."""
    journal, tally = Journal(tmp_path / "journal"), Tally()
    seeds = itertools.count()
    hour_ms = 3_600_000
    for jump in steps(1, count + 1):
        for _ in range(5):
            await send(own_bus, next(seeds))
        seconds, _ = await plain.time()
        fields = encode(*encode_trajectory(random_trajectory(next(seeds))))
        await plain.xadd(TRAJECTORIES.key, fields, id=f"{1000 * seconds + jump * hour_ms}-0")  # type: ignore[arg-type]
        for _ in range(5):
            await send(own_bus, next(seeds))
        if jump == 1:
            await _leave_pending(own_bus)
    sent = next(seeds)
    assert await own_bus.length(TRAJECTORIES) == sent
    pending = await plain.xpending_range(TRAJECTORIES.key, TRAINER_GROUP, "-", "+", 100)
    assert len(pending) == 11
    assert all(int(entry["time_since_delivered"]) >= 0 for entry in pending)
    async with in_background(journal_all(own_bus, journal, tally)):
        await until_drained(own_bus)
    held = journalled(journal)
    journal.close()
    print_figures(
        "clock jumps", jumps=2 * count, sent=sent, journalled=len(held), lost=sent - len(held), doubled=0
    )
    assert held == list(range(sent))


async def _leave_pending(bus: Bus) -> None:
    """Read the stream as a consumer that dies before it acknowledges."""
    async for batch in bus.consume(TRAJECTORIES, TRAINER_GROUP, "trainer"):
        if batch.entries:
            return
