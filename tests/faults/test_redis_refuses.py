"""A Redis that answers, but not as hoped: loading, busy, full, unable to save, with a clock that jumped."""

import asyncio
import itertools
import re
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import redis
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from services.api.config import AlertConfig, GatewayConfig
from services.trainer.config import TrainerConfig
from services.trainer.journal import Journal
from services.trainer.publishing import Publisher
from services.trainer.settings import TrainerSettings
from shared.adapters.bus import Bus
from shared.adapters.checkpoints import CheckpointStore, Manifest, Tensors
from shared.adapters.dataset import Dataset
from shared.messages.codec import decode_trajectory, encode, encode_trajectory
from shared.messages.streams import ALERTS, CHECKPOINTS, DEAD, TRAINER_GROUP, TRAJECTORIES
from shared.runtime.redis_server import RedisServer
from tests.faults.counts import rounds, steps, tell
from tests.faults.reading import (
    PATIENCE_SECONDS,
    Tally,
    in_background,
    journal_all,
    journalled,
    send,
    until,
    until_drained,
)
from tests.services.api.conftest import System as Gateway
from tests.services.api.conftest import running_system
from tests.services.api.test_alerts import webhook
from tests.services.trainer.runs import CONFIG
from tests.services.trainer.test_service import running as running_trainer
from tests.shared.messages.trajectories import random_trajectory

#: A connection that breaks is not closed by its client, which Python warns of when it is forgotten.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.usefixtures("broken_connections"),
]

#: Share of the memory at which the gateway is set to tell; what Redis needs for itself is less.
FULL = 0.9


@pytest_asyncio.fixture
async def plain(own_redis: RedisServer) -> AsyncIterator[Redis]:
    """A client to do harm with."""
    async with Redis.from_url(own_redis.url, protocol=2) as client:
        yield client


@pytest_asyncio.fixture
async def own_bus(own_redis: RedisServer) -> AsyncIterator[Bus]:
    """A bus to the server that is harmed."""
    bus = Bus(own_redis.url)
    yield bus
    await bus.close()


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
    tell("redis loading", starts=count, refused=refused, sent=count, lost=0)
    assert refused == count


def _begin(config: Path) -> subprocess.Popen[bytes]:
    """Start a server and do not wait until it answers."""
    from shared.runtime.redis_server import find_redis_server

    return subprocess.Popen(
        [find_redis_server(), str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


async def _told_that_it_loads(server: RedisServer) -> bool:
    """Ask until the server answers; True when it answered that it is loading."""
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
    tell("redis busy with a script", times=count, sent=count, lost=0)


@rounds(1, 10)
async def test_a_redis_that_cannot_save_delays_and_loses_nothing(
    own_bus: Bus, plain: Redis, own_redis: RedisServer, count: int
) -> None:
    """After a snapshot failed Redis refuses writes, by default, until one succeeds."""
    await plain.config_set("save", "3600 1")
    snapshot = own_redis.folder / "dump.rdb"
    for number in steps(count):
        snapshot.unlink(missing_ok=True)
        snapshot.mkdir()  # in the snapshot's way
        await _snapshot(plain, succeeds=False)
        sending = asyncio.create_task(send(own_bus, number))
        await until(lambda: own_bus.degraded or sending.done())  # noqa: B023
        snapshot.rmdir()
        await _snapshot(plain, succeeds=True)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await sending
        assert await own_bus.length(TRAJECTORIES) == number + 1
    tell("redis unable to save", times=count, sent=count, lost=0)


async def _snapshot(redis: Redis, *, succeeds: bool) -> None:
    wanted = "ok" if succeeds else "err"
    await redis.bgsave()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            info = await redis.info("persistence")
            if not info["rdb_bgsave_in_progress"] and info["rdb_last_bgsave_status"] == wanted:
                return
            await asyncio.sleep(0.01)


@rounds(1, 20)
async def test_a_full_redis_makes_producers_wait_alerts_and_drains_by_itself(
    own_bus: Bus, plain: Redis, own_redis: RedisServer, tmp_path: Path, count: int
) -> None:
    producer, journal, tally = Bus(own_redis.url), Journal(tmp_path / "journal"), Tally()
    await send(own_bus, 0)
    async with in_background(journal_all(own_bus, journal, tally)):
        await until_drained(own_bus)  # the group exists: below it is a trainer that starts again

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
    tell(
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
    """As /status tells it in words and /metrics in figures; both or neither."""
    alerts = (await system.client.get("/status")).json()["alerts"]
    words = any(alert["name"] == "redis_memory" and "Redis holds" in alert["detail"] for alert in alerts)
    figures = dict(
        re.findall(r"^mm_redis_(\w+) (\S+)$", (await system.client.get("/metrics")).text, re.MULTILINE)
    )
    assert words == (float(figures["memory_bytes"]) > FULL * float(figures["memory_limit_bytes"]))
    return words


@rounds(10, 1_000)
async def test_a_full_redis_takes_letters_and_acknowledgements_at_once(
    own_bus: Bus, plain: Redis, tmp_path: Path, count: int
) -> None:
    """No byte is free, and the head of every batch is an entry that cannot be read, or that is refused."""
    await send(own_bus, 0)
    journal, tally = Journal(tmp_path / "journal"), Tally()
    async with in_background(journal_all(own_bus, journal, tally)):
        await until_drained(own_bus)  # the group exists
    unreadable, refused = 0, 0
    for number in steps(1, count + 1):
        if number % 2:
            await plain.xadd(TRAJECTORIES.key, {"garbage": b"\xff"})
            unreadable += 1
        await send(own_bus, 100_000 + number)
        await send(own_bus, number)
        await plain.config_set("maxmemory", 1)
        with pytest.raises(OutOfMemoryError):
            await plain.set("one more", "byte")
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
    tell(
        "letters of a full redis",
        unreadable=unreadable,
        refused=refused,
        letters=letters,
        sent=count + 1,
        journalled=len(held),
        lost=count + 1 - len(set(held)),
        doubled=len(held) - len(set(held)),
    )
    assert letters == unreadable + refused
    assert held == list(range(count + 1))


@pytest.fixture
def fill(own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[int]]:
    """Have Redis full, by so many bytes, from when the trainer has a version's files to its announcement."""

    def fill_at(version: int, excess: int) -> list[int]:
        save, filled = CheckpointStore.save, list[int]()

        def save_then_fill(store: CheckpointStore, manifest: Manifest, *tensors: Tensors) -> Manifest:
            saved = save(store, manifest, *tensors)
            if manifest.version == version:
                _fill(own_redis, excess)
                filled.append(version)
            return saved

        monkeypatch.setattr(CheckpointStore, "save", save_then_fill)
        return filled

    return fill_at


def _fill(server: RedisServer, excess: int) -> None:
    """Have a Redis hold so many bytes more than it may."""
    with redis.Redis.from_url(server.url, protocol=2) as client:
        client.config_set("maxmemory", max(client.info("memory")["used_memory"] - excess, 1))
        with pytest.raises(OutOfMemoryError):
            client.set("one more", "byte")


@pytest.mark.parametrize("version", [0, 1], ids=["it starts with", "that is due"])
async def test_a_trainer_that_waits_to_announce_a_version_drains_the_full_redis_that_refuses_it(
    own_redis: RedisServer,
    own_bus: Bus,
    plain: Redis,
    bars: tuple[Path, Dataset],
    tmp_path: Path,
    fill: Callable[[int, int], list[int]],
    version: int,
) -> None:
    """There is room when a third of what waits is taken in, which is more than the trainer may be ahead."""
    settings = _trainer_settings(own_redis, bars[0], tmp_path)
    await plain.xgroup_create(TRAJECTORIES.key, TRAINER_GROUP, id="0", mkstream=True)  # by an earlier trainer
    await _send_sessions(own_bus, bars[1], range(150))
    filled = fill(version, 1_000_000)
    async with running_trainer(settings) as trainer:
        await until(lambda: bool(filled))
        assert await own_bus.length(TRAJECTORIES) > 100
        await until(lambda: trainer.heartbeat.detail.get("episode") == 150)
        await until_drained(own_bus)
    assert sorted(_journalled(settings)) == list(range(150))
    announced = [entry.message.version for entry in await own_bus.recent(CHECKPOINTS, count=100)]
    assert announced[::-1] == CheckpointStore(settings.checkpoint_root).versions() == list(range(16))


async def test_a_trainer_that_waits_to_tell_of_a_roll_back_drains_the_full_redis_that_refuses_it(
    own_redis: RedisServer,
    own_bus: Bus,
    plain: Redis,
    bars: tuple[Path, Dataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    roll_back, filled = Publisher.roll_back, list[int]()

    def roll_back_then_fill(publisher: Publisher) -> int:
        version = roll_back(publisher)
        if not filled:
            _fill(own_redis, 1_000_000)
            filled.append(version)
        return version

    monkeypatch.setattr(Publisher, "roll_back", roll_back_then_fill)
    settings = _trainer_settings(own_redis, bars[0], tmp_path)
    learner = replace(CONFIG.learner, reward_weight=1e38, max_skipped_in_a_row=3)  # no gradient is finite
    trainer_config = replace(settings.trainer, min_replay_steps=1, samples_per_insert=0.05)
    await plain.xgroup_create(TRAJECTORIES.key, TRAINER_GROUP, id="0", mkstream=True)  # by an earlier trainer
    await _send_sessions(own_bus, bars[1], range(150))
    async with running_trainer(
        settings.model_copy(update={"learner": learner, "trainer": trainer_config})
    ) as trainer:
        await until(lambda: trainer.heartbeat.detail.get("episode") == 150)
        await until_drained(own_bus)
    assert filled
    assert sorted(_journalled(settings)) == list(range(150))
    alerts = [entry.message.name for entry in await own_bus.recent(ALERTS, count=100)]
    assert set(alerts) == {"training_rolled_back"}


@pytest.mark.parametrize("version", [0, 1], ids=["it starts with", "that is due"])
async def test_a_trainer_that_waits_to_announce_a_version_stops_when_asked_and_announces_it_next_time(
    own_redis: RedisServer,
    own_bus: Bus,
    plain: Redis,
    bars: tuple[Path, Dataset],
    tmp_path: Path,
    fill: Callable[[int, int], list[int]],
    version: int,
) -> None:
    settings = _trainer_settings(own_redis, bars[0], tmp_path)
    await plain.xgroup_create(TRAJECTORIES.key, TRAINER_GROUP, id="0", mkstream=True)  # by an earlier trainer
    await _send_sessions(own_bus, bars[1], range(50))
    filled = fill(version, 100_000_000)  # by more than it holds: there is no room whatever is taken in
    async with running_trainer(settings) as trainer:
        await until(lambda: bool(filled) and trainer.bus.degraded)
        trainer.stop()
    told = await own_bus.newest(CHECKPOINTS)
    assert (told.version if told else -1) == version - 1
    await plain.config_set("maxmemory", 0)
    async with running_trainer(settings) as trainer:
        await until(lambda: trainer.heartbeat.detail.get("episode") == 50)
        await until_drained(own_bus)
    assert sorted(_journalled(settings)) == list(range(50))
    told = await own_bus.newest(CHECKPOINTS)
    assert told is not None
    assert told.version == CheckpointStore(settings.checkpoint_root).versions()[-1]


def _trainer_settings(server: RedisServer, bars: Path, home: Path) -> TrainerSettings:
    """Of a trainer that takes trajectories in, publishes, and makes no update."""
    return TrainerSettings(
        home=home,
        dataset=bars,
        redis_url=SecretStr(server.url),
        model=CONFIG.model,
        replay=CONFIG.replay,
        learner=CONFIG.learner,
        trainer=TrainerConfig(
            min_replay_steps=1_000_000,
            max_ahead_episodes=16,
            publish_every_episodes=10,
            keep_checkpoints=100,
        ),
    )


async def _send_sessions(bus: Bus, dataset: Dataset, seeds: range) -> None:
    """About 25 kB each."""
    for seed in seeds:
        session = random_trajectory(seed, 360, start_bar=500, dataset=dataset.fingerprint)
        await bus.append(TRAJECTORIES, *encode_trajectory(session))


def _journalled(settings: TrainerSettings) -> list[int]:
    journal = Journal(settings.journal_root)
    held = journalled(journal)
    journal.close()
    return held


@rounds(2, 50)
async def test_a_clock_that_jumps_an_hour_either_way_keeps_order_and_trims_nothing(
    own_bus: Bus, plain: Redis, tmp_path: Path, count: int
) -> None:
    """An entry with the id of an hour ahead is what a jump forward leaves, and all after it a jump back."""
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
    tell("clock jumps", jumps=2 * count, sent=sent, journalled=len(held), lost=sent - len(held), doubled=0)
    assert held == list(range(sent))


async def _leave_pending(bus: Bus) -> None:
    """Have what is in the stream delivered, and die before it is acknowledged."""
    async for batch in bus.consume(TRAJECTORIES, TRAINER_GROUP, "trainer"):
        if batch.entries:
            return
