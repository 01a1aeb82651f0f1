"""A worker in this process with a real Redis: versions, pauses, and delivery of finished trajectories."""

import asyncio
import contextlib
import itertools
import re
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import structlog.testing
from pydantic import SecretStr

from services.selfplay import sender as sender_module
from services.selfplay.config import SelfPlayConfig
from services.selfplay.exploration import exploration_at
from services.selfplay.service import SelfPlayService
from services.selfplay.settings import SelfPlaySettings
from services.selfplay.spool import Spool
from services.selfplay.versions import NewestVersion
from services.selfplay.worker import SelfPlayWorker
from shared.adapters.streams.bus import ENTRIES_PER_APPEND, Bus
from shared.adapters.tables.dataset import Dataset, write_dataset
from shared.adapters.versions.agents import load_agent
from shared.adapters.versions.manifest import WEIGHTS, Manifest
from shared.adapters.versions.store import CheckpointStore
from shared.agent.agent import Agent
from shared.agent.rollout import MarketView, play
from shared.agent.trajectory import Trajectory
from shared.environment.environment import EnvironmentConfig, Prices
from shared.errors import ServiceError, SettingsError
from shared.market.session import Split
from shared.market.synthetic import Market, synthesize
from shared.messages.codec import decode_trajectory
from shared.messages.schemas import CheckpointPublished
from shared.messages.streams import CHECKPOINTS, TRAJECTORIES
from shared.model.config import ModelConfig
from shared.runtime.lifecycle import Lifecycle
from shared.runtime.redis_server import RedisServer
from shared.search.config import SearchConfig, Selection
from tests.shared.adapters.versions.checkpoint_versions import folder
from tests.shared.messages.trajectories import random_trajectory
from tests.shared.model.networks import randomized_network
from tests.waiting import PATIENCE_SECONDS, until

MODEL = ModelConfig(temporal_channels=12, static_channels=4, value_bins=31)
LANES = 3
STEPS = 20
EPISODES_A_VERSION = 2_000  # between versions, so that their temperatures differ


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    path = tmp_path_factory.mktemp("bars") / "bars.duckdb"
    return path, write_dataset(path, synthesize(Market.OU, 3_000, seed=1), "synthetic ou")


@pytest.fixture
def settings(tmp_path: Path, dataset: tuple[Path, Dataset], redis_server: RedisServer) -> SelfPlaySettings:
    return SelfPlaySettings(
        home=tmp_path,
        dataset=dataset[0],
        instance="worker-1",
        redis_url=SecretStr(redis_server.url),
        selfplay=SelfPlayConfig(lanes=LANES, high_water=9),
        environment=EnvironmentConfig(session_bars=STEPS),
    )


async def publish(bus: Bus, settings: SelfPlaySettings, version: int) -> None:
    """Save and announce a version with random weights, whose decisions differ from other versions'."""
    network = randomized_network(MODEL, seed=version)
    manifest = Manifest(
        version=version,
        episode=EPISODES_A_VERSION * version,
        update=0,
        journal_position=version,
        dataset="5e" * 32,
        model=asdict(MODEL),
        settings={},
        metrics={},
        state={},
    )
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    saved = CheckpointStore(settings.checkpoint_root).save(manifest, weights, {})
    await announce(bus, version, saved.files[WEIGHTS].sha256)


async def announce(bus: Bus, version: int, sha256: str = "0" * 64) -> None:
    message = CheckpointPublished(
        version=version, episode=EPISODES_A_VERSION * version, update=0, weights_sha256=sha256
    )
    await bus.announce(CHECKPOINTS, message)


@contextlib.asynccontextmanager
async def running(settings: SelfPlaySettings) -> AsyncIterator[Lifecycle]:
    lifecycle = Lifecycle("selfplay", settings)
    task = asyncio.create_task(SelfPlayService(settings, lifecycle).run())
    try:
        yield lifecycle
    finally:
        lifecycle.stop()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await task
        finally:
            await lifecycle.bus.close()


async def sent(bus: Bus, *, count: int = 1) -> list[Trajectory]:
    """The trajectories in the stream, oldest first, once there are at least `count`."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await bus.length(TRAJECTORIES) < count:  # noqa: ASYNC110  Redis has no event for it
            await asyncio.sleep(0.01)
    entries = await bus.recent(TRAJECTORIES, count=100_000)
    return [decode_trajectory(entry.message, entry.arrays) for entry in entries[::-1]]


async def test_sessions_of_the_train_split_are_played_to_the_end_and_sent(
    settings: SelfPlaySettings, dataset: tuple[Path, Dataset], bus: Bus
) -> None:
    await publish(bus, settings, 0)
    async with running(settings) as worker:
        await sent(bus, count=2 * LANES)
        await until(lambda: bool(worker.heartbeat.detail.get("episodes")))
        assert worker.heartbeat.detail["version"] == 0
    played = await sent(bus)
    starts = set(dataset[1].sessions.every(Split.TRAIN).tolist())
    assert len({trajectory.trajectory_id for trajectory in played}) == len(played)
    assert len(played) % LANES == 0  # an unfinished batch is not sent
    for trajectory in played:
        assert len(trajectory) == STEPS
        assert trajectory.start_bar in starts
        assert trajectory.dataset == dataset[1].fingerprint
        assert trajectory.worker == "worker-1"
        assert trajectory.checkpoint_version == 0
        assert np.array_equal(
            trajectory.outcomes,
            dataset[1].outcomes[trajectory.start_bar : trajectory.start_bar + STEPS],
        )
    assert Spool(settings.unsent_root).files() == []


async def test_two_starts_of_a_worker_play_different_sessions(settings: SelfPlaySettings, bus: Bus) -> None:
    await publish(bus, settings, 0)
    for count in (LANES, 4 * LANES):
        async with running(settings):
            await sent(bus, count=count)
    played = await sent(bus)
    assert len({trajectory.seed for trajectory in played}) == len(played)


async def test_the_newest_version_plays_the_next_batch_and_a_batch_has_one_version(
    settings: SelfPlaySettings, bus: Bus
) -> None:
    roomy = settings.model_copy(update={"selfplay": SelfPlayConfig(lanes=LANES, high_water=10_000)})
    await publish(bus, roomy, 0)
    async with running(roomy) as worker:
        await sent(bus, count=LANES)
        for version in (1, 2):
            await publish(bus, roomy, version)
            await until(lambda version=version: worker.heartbeat.detail.get("version") == version)  # type: ignore[misc]
    versions = [trajectory.checkpoint_version for trajectory in await sent(bus)]
    assert versions == sorted(versions)
    assert set(versions) == {0, 1, 2}
    assert all(versions.count(version) % LANES == 0 for version in (0, 1, 2))


class Batches:
    """Records the batches that workers of this process play, and can hold them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[tuple[int, int]] = []  # version and episode of each batch
        self.finished: list[Trajectory] = []
        self.is_waiting = False
        self._released = threading.Event()
        self._released.set()
        play = SelfPlayWorker.play

        def recorded(
            worker: SelfPlayWorker, agent: Agent, episode: int, stop: Callable[[], bool]
        ) -> Sequence[Trajectory]:
            self.begun.append((agent.version, episode))
            steps = itertools.count(1)

            def wait_at_the_middle() -> bool:
                if next(steps) == STEPS // 2:
                    while not (self._released.is_set() or stop()):
                        self.is_waiting = True
                        self._released.wait(0.01)
                    self.is_waiting = False
                return stop()

            finished = play(worker, agent, episode, wait_at_the_middle)
            self.finished.extend(finished)
            return finished

        monkeypatch.setattr(SelfPlayWorker, "play", recorded)

    @property
    def versions(self) -> list[int]:
        """The version of each batch that has begun."""
        return [version for version, _ in self.begun]

    @property
    def ids(self) -> set[str]:
        """Ids of the finished trajectories."""
        return {str(trajectory.trajectory_id) for trajectory in self.finished}

    def hold(self) -> None:
        """Let each batch wait at its middle step, until it is released or asked to stop."""
        self._released.clear()

    def release(self) -> None:
        """Let batches continue."""
        self._released.set()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Batches:
    """A record of all batches."""
    return Batches(monkeypatch)


@pytest.fixture
def accepted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Versions whose announcement a worker has accepted."""
    versions: list[int] = []
    accept = NewestVersion.accept

    def recorded(newest: NewestVersion, announced: CheckpointPublished) -> None:
        accept(newest, announced)
        versions.append(announced.version)

    monkeypatch.setattr(NewestVersion, "accept", recorded)
    return versions


async def test_a_version_that_is_announced_during_a_batch_plays_the_next_batch(
    settings: SelfPlaySettings, bus: Bus, batches: Batches, accepted: list[int]
) -> None:
    await publish(bus, settings, 0)
    batches.hold()
    async with running(settings):
        await until(lambda: batches.versions == [0])
        for version in (1, 2):
            await publish(bus, settings, version)
        await until(lambda: accepted[-1:] == [2])
        batches.release()
        played = await sent(bus, count=2 * LANES)
    assert batches.versions[:2] == [0, 2]
    assert [t.checkpoint_version for t in played[: 2 * LANES]] == [0] * LANES + [2] * LANES


async def test_a_version_that_is_announced_while_the_worker_waits_plays_the_next_batch(
    settings: SelfPlaySettings, bus: Bus, monkeypatch: pytest.MonkeyPatch, accepted: list[int]
) -> None:
    monkeypatch.setattr(sender_module, "BACKLOG_SECONDS", 0.01)
    await publish(bus, settings, 0)
    async with running(settings) as worker:
        await until(lambda: worker.heartbeat.detail.get("waiting") is True)
        await publish(bus, settings, 1)
        await until(lambda: accepted[-1:] == [1])
        waiting = await bus.length(TRAJECTORIES)
        reader = bus.consume(TRAJECTORIES, "trainer", "one")
        taken: list[Trajectory] = []
        while not taken or taken[-1].checkpoint_version == 0:
            batch = await anext(reader)
            taken += [decode_trajectory(entry.message, entry.arrays) for entry in batch.entries]
            await batch.ack()
    versions = [trajectory.checkpoint_version for trajectory in taken]
    # Batches that were queued before the worker began to wait are of version 0.
    assert versions.count(0) <= waiting + settings.selfplay.unsent_batches * LANES
    assert versions[-1] == 1


def alike(one: Trajectory, other: Trajectory) -> bool:
    """True when decisions, search results, rewards and trades are equal."""
    return one.trades == other.trades and all(
        np.allclose(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-5)
        for name in (
            "static",
            "actions",
            "rewards",
            "policies",
            "values",
            "outcomes",
            "outcome_probabilities",
        )
    )


@pytest.mark.parametrize("selection", list(Selection))
async def test_every_step_of_a_trajectory_is_played_by_its_version(
    settings: SelfPlaySettings,
    dataset: tuple[Path, Dataset],
    bus: Bus,
    selection: Selection,
) -> None:
    """Versions are published as fast as they can be written, during batches."""
    search = SearchConfig(selection)
    mine = settings.model_copy(
        update={"selfplay": SelfPlayConfig(lanes=LANES, high_water=10_000), "search": search}
    )
    await publish(bus, mine, 0)
    async with running(mine) as worker:
        for version in range(1, 6):
            await sent(bus, count=await bus.length(TRAJECTORIES) + 1)
            await publish(bus, mine, version)
        await until(lambda: worker.heartbeat.detail.get("version") == 5)
    played = await sent(bus)
    assert len({trajectory.checkpoint_version for trajectory in played}) >= 3

    data = dataset[1]
    market = MarketView(data.features, Prices.of(data.bars), data.outcomes, data.fingerprint)
    store = CheckpointStore(mine.checkpoint_root)

    def again(trajectory: Trajectory, version: int) -> Trajectory:
        (replayed,) = list(
            play(
                load_agent(store, version),
                market,
                np.array([trajectory.start_bar]),
                mine.environment,
                search,
                seeds=np.array([trajectory.seed]),
                exploration=exploration_at(EPISODES_A_VERSION * version, mine.selfplay),
                worker=trajectory.worker,
            )
        )[-1]
        return replayed

    for trajectory in played:
        version = trajectory.checkpoint_version
        assert alike(again(trajectory, version), trajectory)
        assert not alike(again(trajectory, (version + 1) % 6), trajectory)


def damage(settings: SelfPlaySettings, *versions: int) -> None:
    """Cut the last byte off the weights of versions."""
    for version in versions:
        path = folder(CheckpointStore(settings.checkpoint_root), version) / WEIGHTS
        path.write_bytes(path.read_bytes()[:-1])


async def test_a_worker_that_starts_with_a_damaged_newest_version_plays_an_older_one(
    settings: SelfPlaySettings, bus: Bus, batches: Batches
) -> None:
    roomy = settings.model_copy(update={"selfplay": SelfPlayConfig(lanes=LANES, high_water=10_000)})
    for version in range(4):
        await publish(bus, roomy, version)
    damage(roomy, 2, 3)
    with structlog.testing.capture_logs() as logs:
        async with running(roomy) as worker:
            await sent(bus, count=2 * LANES)
            assert set(batches.begun) == {(1, EPISODES_A_VERSION)}
            await publish(bus, roomy, 4)
            await until(lambda: worker.heartbeat.detail.get("version") == 4)
    logged = [(entry["event"], entry["version"]) for entry in logs if "version" in entry]
    assert logged == [("version_refused", 3), ("version_refused", 2), ("older_version_plays", 1)]


async def test_a_worker_that_starts_with_only_damaged_versions_waits_for_the_next(
    settings: SelfPlaySettings, bus: Bus, batches: Batches
) -> None:
    await publish(bus, settings, 0)
    damage(settings, 0)
    with structlog.testing.capture_logs() as logs:
        async with running(settings):
            await until(lambda: any(entry["event"] == "version_refused" for entry in logs))
            await publish(bus, settings, 1)
            await sent(bus, count=LANES)
    assert set(batches.versions) == {1}


async def test_a_missing_version_is_refused_and_the_previous_one_plays_on(
    settings: SelfPlaySettings, bus: Bus
) -> None:
    roomy = settings.model_copy(update={"selfplay": SelfPlayConfig(lanes=LANES, high_water=10_000)})
    await publish(bus, roomy, 0)
    async with running(roomy) as worker:
        await sent(bus, count=LANES)
        await announce(bus, 7)  # no such version in the store
        length = await bus.length(TRAJECTORIES)
        await sent(bus, count=length + 3 * LANES)
        await publish(bus, roomy, 8)
        await until(lambda: worker.heartbeat.detail.get("version") == 8)
    assert {t.checkpoint_version for t in await sent(bus)} == {0, 8}


async def test_a_worker_waits_while_the_stream_is_long(
    settings: SelfPlaySettings, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "BACKLOG_SECONDS", 0.01)
    await publish(bus, settings, 0)
    async with running(settings) as worker:
        await until(lambda: worker.heartbeat.detail.get("waiting") is True)
        length = await bus.length(TRAJECTORIES)
        assert 9 < length <= 9 + LANES  # a batch is less than a pipeline
        reader = bus.consume(TRAJECTORIES, "trainer", "one")
        taken = 0
        while taken < length:
            batch = await anext(reader)
            taken += len(batch.entries)
            await batch.ack()
        await until(lambda: worker.heartbeat.detail.get("waiting") is False)
        await sent(bus, count=LANES)


#: A batch of this many trajectories exceeds both one pipeline and the high-water mark.
MANY_LANES = 20


def with_many_lanes(settings: SelfPlaySettings) -> SelfPlaySettings:
    return settings.model_copy(update={"selfplay": SelfPlayConfig(lanes=MANY_LANES, high_water=9)})


async def test_a_long_batch_is_sent_in_pipelines_while_the_stream_is_short(
    settings: SelfPlaySettings, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "BACKLOG_SECONDS", 0.01)
    await publish(bus, settings, 0)
    async with running(with_many_lanes(settings)) as worker:
        await until(lambda: worker.heartbeat.detail.get("waiting") is True)
        longest = await bus.length(TRAJECTORIES)
        assert 9 < longest <= 9 + ENTRIES_PER_APPEND
        reader = bus.consume(TRAJECTORIES, "trainer", "one")
        taken: list[str] = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(taken) < 3 * MANY_LANES:
                batch = await anext(reader)
                taken += [str(entry.message.trajectory_id) for entry in batch.entries]
                await batch.ack()
                longest = max(longest, await bus.length(TRAJECTORIES))
    assert longest <= 9 + ENTRIES_PER_APPEND
    assert len(set(taken)) == len(taken)


async def test_no_batch_begins_while_the_trainer_lags(
    settings: SelfPlaySettings, bus: Bus, batches: Batches
) -> None:
    """Only the current batch is finished. Another one would be of an old version when it is sent."""
    await publish(bus, settings, 0)
    async with running(with_many_lanes(settings)) as worker:
        await until(lambda: worker.heartbeat.detail.get("waiting") is True)
        before = len(batches.begun)
        await asyncio.sleep(1.0)
        assert len(batches.begun) <= before + 1


async def test_a_worker_that_stops_while_it_waits_sends_its_finished_batches(
    settings: SelfPlaySettings, bus: Bus, batches: Batches
) -> None:
    await publish(bus, settings, 0)
    async with running(with_many_lanes(settings)) as worker:
        await until(lambda: worker.heartbeat.detail.get("waiting") is True)
        num_finished = len(batches.finished)
        assert await bus.length(TRAJECTORIES) < num_finished
    received = await sent(bus)
    assert len(received) == len(batches.finished)
    assert {str(trajectory.trajectory_id) for trajectory in received} == batches.ids
    assert Spool(settings.unsent_root).files() == []


async def test_two_workers_with_one_home_send_the_kept_trajectories_at_the_trainer_s_pace(
    settings: SelfPlaySettings, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "BACKLOG_SECONDS", 0.01)
    spool = Spool(settings.unsent_root)
    kept = [random_trajectory(seed) for seed in range(30)]
    assert spool.write(kept) == []
    longest, received = 0, set()
    async with running(settings) as one, running(settings) as other:
        await until(lambda: all(w.heartbeat.detail.get("waiting") is True for w in (one, other)))
        reader = bus.consume(TRAJECTORIES, "trainer", "one")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while spool.files() or await bus.length(TRAJECTORIES):
                longest = max(longest, await bus.length(TRAJECTORIES))
                batch = await anext(reader)
                received |= {entry.message.trajectory_id for entry in batch.entries}
                await batch.ack()
    assert 9 < longest <= 9 + 2
    assert received == {trajectory.trajectory_id for trajectory in kept}


async def test_a_worker_whose_spool_folder_is_not_writable_does_not_start(settings: SelfPlaySettings) -> None:
    settings.unsent_root.write_text("a file where the folder should be")
    lifecycle = Lifecycle("selfplay", settings)
    with pytest.raises(SettingsError, match=re.escape(str(settings.unsent_root))):
        await asyncio.wait_for(SelfPlayService(settings, lifecycle).run(), 30.0)
    await lifecycle.bus.close()


def without_backlog(settings: SelfPlaySettings, server: RedisServer) -> SelfPlaySettings:
    """Settings of a worker that never waits for a trainer."""
    config = SelfPlayConfig(lanes=LANES, high_water=10_000)
    return settings.model_copy(update={"redis_url": SecretStr(server.url), "selfplay": config})


async def play_until_the_queue_is_full(
    settings: SelfPlaySettings, server: RedisServer, bus: Bus, batches: Batches
) -> None:
    """Kill Redis once it holds every finished trajectory, and wait until the worker no longer plays.

    The sender holds one more batch, the queue its limit, and one finished batch waits for room in the queue.
    """
    batches.hold()
    await until(lambda: batches.is_waiting)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not batches.ids <= {str(played.trajectory_id) for played in await sent(bus)}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.to_thread(server.stop, kill=True)
    before = len(batches.finished)
    batches.release()
    await until(lambda: len(batches.finished) - before >= unsent(settings))
    await asyncio.sleep(0.5)
    # There is one more batch if the sender had read Redis's last reply.
    assert len(batches.finished) - before <= unsent(settings) + LANES


def unsent(settings: SelfPlaySettings) -> int:
    """Minimum number of trajectories that a worker finishes while Redis is unavailable."""
    return LANES * (settings.selfplay.unsent_batches + 1)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.usefixtures("broken_connections")
async def test_an_error_counts_the_trajectories_that_were_neither_sent_nor_kept(
    settings: SelfPlaySettings,
    own_redis: RedisServer,
    own_bus: Bus,
    batches: Batches,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sender_module, "LAST_SEND_SECONDS", 0.2)
    mine = without_backlog(settings, own_redis)
    await publish(own_bus, mine, 0)

    async def stop_without_redis_and_disk() -> None:
        async with running(mine):
            await sent(own_bus, count=LANES)
            await play_until_the_queue_is_full(mine, own_redis, own_bus, batches)
            mine.unsent_root.rmdir()
            mine.unsent_root.write_text("a file where the folder was")

    with pytest.raises(ServiceError) as failure:
        await stop_without_redis_and_disk()
    await asyncio.to_thread(own_redis.start)
    missing = len(batches.finished) - await own_bus.length(TRAJECTORIES)
    number, _, text = str(failure.value).partition(" ")
    # Redis may have stored a batch whose reply the worker did not read.
    assert unsent(mine) <= missing <= int(number) <= missing + LANES
    assert text.startswith("finished trajectories are lost")
    assert f"{mine.unsent_root} cannot be written: File exists" in text


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.usefixtures("broken_connections")
async def test_no_finished_trajectory_is_lost_when_redis_restarts_or_stays_unavailable(
    settings: SelfPlaySettings,
    own_redis: RedisServer,
    own_bus: Bus,
    batches: Batches,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sender_module, "LAST_SEND_SECONDS", 0.2)
    mine = without_backlog(settings, own_redis)
    await publish(own_bus, mine, 0)
    async with running(mine):
        await sent(own_bus, count=LANES)
        await asyncio.to_thread(own_redis.stop, kill=True)
        await asyncio.to_thread(own_redis.start)
        before = len(batches.finished)
        await until(lambda: len(batches.finished) >= before + LANES)
        await play_until_the_queue_is_full(mine, own_redis, own_bus, batches)
    spool = Spool(mine.unsent_root)
    assert len(spool.files()) >= unsent(mine)
    await asyncio.to_thread(own_redis.start)
    one_lane = replace(mine.selfplay, lanes=1)
    async with running(mine.model_copy(update={"selfplay": one_lane})):
        await until(lambda: not spool.files())
    received = {str(trajectory.trajectory_id) for trajectory in await sent(own_bus)}
    assert batches.ids <= received
