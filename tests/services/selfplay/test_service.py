"""The worker in this process over a real Redis: versions, pauses, and nothing finished is lost."""

import asyncio
import contextlib
import itertools
import re
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import structlog.testing
from pydantic import SecretStr

from services.selfplay import service as service_module
from services.selfplay.config import SelfPlayConfig
from services.selfplay.exploration import exploration_at
from services.selfplay.service import SelfPlayService
from services.selfplay.settings import SelfPlaySettings
from services.selfplay.spool import Spool
from services.selfplay.worker import SelfPlayWorker
from shared.adapters.streams.bus import PIPELINE, Bus
from shared.adapters.tables.dataset import Dataset, write_dataset
from shared.adapters.versions.agents import load_agent
from shared.adapters.versions.store import WEIGHTS, CheckpointStore, Manifest
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
from shared.runtime.ports import free_port
from shared.runtime.redis_server import RedisServer
from shared.search.config import SearchConfig, Selection
from tests.shared.adapters.versions.checkpoint_versions import folder
from tests.shared.messages.trajectories import random_trajectory
from tests.shared.model.networks import randomized_network
from tests.waiting import PATIENCE_SECONDS, until

MODEL = ModelConfig(temporal_channels=12, static_channels=4, value_bins=31)
LANES = 3
STEPS = 20
EPISODES_A_VERSION = 2_000  # the temperature falls with them


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
    """A version with random weights of its own, and opinions that no other version has."""
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
    """What lies in the stream, oldest first, once it is at least so many."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await bus.length(TRAJECTORIES) < count:  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0.01)
    entries = await bus.recent(TRAJECTORIES, count=1_000)
    return [decode_trajectory(entry.message, entry.arrays) for entry in entries[::-1]]


async def test_sessions_of_the_train_split_are_played_to_their_end_and_sent(
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
    assert len(played) % LANES == 0  # batches are sent whole; one that was not finished is not sent
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


async def test_the_newest_version_plays_the_next_batch_and_no_batch_has_two(
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


class Gate:
    """Holds each batch at its middle until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[int] = []  # version of each batch
        self.open = threading.Event()
        play = SelfPlayWorker.play

        def held(worker: SelfPlayWorker, agent: Agent, episode: int, stop: Callable[[], bool]) -> object:
            self.begun.append(agent.version)
            asked = itertools.count(1)

            def stop_once_let_go() -> bool:
                if next(asked) == STEPS // 2:
                    assert self.open.wait(PATIENCE_SECONDS)
                return stop()

            return play(worker, agent, episode, stop_once_let_go)

        monkeypatch.setattr(SelfPlayWorker, "play", held)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Versions that the service heard of."""
    versions: list[int] = []

    def hear(service: SelfPlayService, announced: CheckpointPublished | None) -> None:
        vars(service)["_newest_heard"] = announced
        if announced is not None:
            versions.append(announced.version)

    monkeypatch.setattr(
        SelfPlayService,
        "_announced",
        property(lambda service: vars(service).get("_newest_heard"), hear),
        raising=False,
    )
    return versions


async def test_a_version_that_arrives_mid_episode_plays_the_very_next_batch(
    settings: SelfPlaySettings, bus: Bus, monkeypatch: pytest.MonkeyPatch, heard: list[int]
) -> None:
    gate = Gate(monkeypatch)
    await publish(bus, settings, 0)
    async with running(settings):
        await until(lambda: gate.begun == [0])
        for version in (1, 2):
            await publish(bus, settings, version)
        await until(lambda: heard[-1:] == [2])
        gate.open.set()
        played = await sent(bus, count=2 * LANES)
    assert gate.begun[:2] == [0, 2]
    assert [t.checkpoint_version for t in played[: 2 * LANES]] == [0] * LANES + [2] * LANES


async def test_a_version_that_arrives_while_the_worker_waits_plays_the_next_batch(
    settings: SelfPlaySettings, bus: Bus, monkeypatch: pytest.MonkeyPatch, heard: list[int]
) -> None:
    monkeypatch.setattr(service_module, "BACKLOG_SECONDS", 0.01)
    await publish(bus, settings, 0)
    async with running(settings) as worker:
        await until(lambda: worker.heartbeat.detail.get("waiting") is True)
        await publish(bus, settings, 1)
        await until(lambda: heard[-1:] == [1])
        waiting = await bus.length(TRAJECTORIES)
        reader = bus.consume(TRAJECTORIES, "trainer", "one")
        taken: list[Trajectory] = []
        while not taken or taken[-1].checkpoint_version == 0:
            batch = await anext(reader)
            taken += [decode_trajectory(entry.message, entry.arrays) for entry in batch.entries]
            await batch.ack()
    versions = [trajectory.checkpoint_version for trajectory in taken]
    # Batches that were queued when the worker began to wait are still of version 0.
    assert versions.count(0) <= waiting + settings.selfplay.unsent_batches * LANES
    assert versions[-1] == 1


def alike(one: Trajectory, other: Trajectory) -> bool:
    """True when all that was decided, thought and earned is the same."""
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
async def test_all_of_a_trajectory_is_what_its_version_plays(
    settings: SelfPlaySettings,
    dataset: tuple[Path, Dataset],
    bus: Bus,
    heard: list[int],
    selection: Selection,
) -> None:
    """Versions arrive as fast as they can be written, in the middle of whatever is played then."""
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
    """Make versions what no worker plays with."""
    for version in versions:
        path = folder(CheckpointStore(settings.checkpoint_root), version) / WEIGHTS
        path.write_bytes(path.read_bytes()[:-1])


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Version and episode of each batch that is begun."""
    batches: list[tuple[int, int]] = []
    play = SelfPlayWorker.play

    def noted(worker: SelfPlayWorker, agent: Agent, episode: int, stop: Callable[[], bool]) -> object:
        batches.append((agent.version, episode))
        return play(worker, agent, episode, stop)

    monkeypatch.setattr(SelfPlayWorker, "play", noted)
    return batches


async def test_a_worker_that_starts_while_the_newest_version_is_damaged_plays_the_newest_whole_one(
    settings: SelfPlaySettings, bus: Bus, begun: list[tuple[int, int]]
) -> None:
    roomy = settings.model_copy(update={"selfplay": SelfPlayConfig(lanes=LANES, high_water=10_000)})
    for version in range(4):
        await publish(bus, roomy, version)
    damage(roomy, 2, 3)
    with structlog.testing.capture_logs() as logs:
        async with running(roomy) as worker:
            await sent(bus, count=2 * LANES)
            assert set(begun) == {(1, EPISODES_A_VERSION)}
            await publish(bus, roomy, 4)
            await until(lambda: worker.heartbeat.detail.get("version") == 4)
    told = [(entry["event"], entry["version"]) for entry in logs if "version" in entry]
    assert told == [("version_refused", 3), ("version_refused", 2), ("older_version_plays", 1)]


async def test_a_worker_that_starts_while_every_version_is_damaged_waits_for_the_next(
    settings: SelfPlaySettings, bus: Bus, begun: list[tuple[int, int]]
) -> None:
    await publish(bus, settings, 0)
    damage(settings, 0)
    with structlog.testing.capture_logs() as logs:
        async with running(settings):
            await until(lambda: any(entry["event"] == "version_refused" for entry in logs))
            await publish(bus, settings, 1)
            await sent(bus, count=LANES)
    assert {version for version, _ in begun} == {1}


async def test_a_damaged_version_is_refused_and_the_one_before_plays_on(
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
    monkeypatch.setattr(service_module, "BACKLOG_SECONDS", 0.01)
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


@dataclass
class Finished:
    """What workers of this process finished, and which of them did so last."""

    trajectories: list[Trajectory] = field(default_factory=list)
    service: SelfPlayService | None = None

    @property
    def ids(self) -> set[str]:
        return {str(trajectory.trajectory_id) for trajectory in self.trajectories}

    def queue_is_full(self) -> bool:
        return self.service is not None and self.service._finished.full()


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> Finished:
    finished = Finished()
    count = SelfPlayService._count

    def counting(self, batch, version, seconds):  # type: ignore[no-untyped-def]
        finished.service = self
        finished.trajectories.extend(batch)
        count(self, batch, version, seconds)

    monkeypatch.setattr(SelfPlayService, "_count", counting)
    return finished


#: More than a pipeline is finished at once, while the stream may hold nine.
MANY_LANES = 20


def with_many_lanes(settings: SelfPlaySettings) -> SelfPlaySettings:
    return settings.model_copy(update={"selfplay": SelfPlayConfig(lanes=MANY_LANES, high_water=9)})


async def test_a_batch_goes_a_pipeline_at_a_time_while_the_stream_is_short(
    settings: SelfPlaySettings, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "BACKLOG_SECONDS", 0.01)
    await publish(bus, settings, 0)
    async with running(with_many_lanes(settings)) as worker:
        await until(lambda: worker.heartbeat.detail.get("waiting") is True)
        longest = await bus.length(TRAJECTORIES)
        assert 9 < longest <= 9 + PIPELINE
        reader = bus.consume(TRAJECTORIES, "trainer", "one")
        taken: list[str] = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(taken) < 3 * MANY_LANES:
                batch = await anext(reader)
                taken += [str(entry.message.trajectory_id) for entry in batch.entries]
                await batch.ack()
                longest = max(longest, await bus.length(TRAJECTORIES))
    assert longest <= 9 + PIPELINE
    assert len(set(taken)) == len(taken)


async def test_no_batch_is_begun_while_the_trainer_lags(
    settings: SelfPlaySettings, bus: Bus, finished: Finished
) -> None:
    """The one in play goes on to its end; another would be of an old version once it is sent."""
    await publish(bus, settings, 0)
    async with running(with_many_lanes(settings)) as worker:
        await until(lambda: worker.heartbeat.detail.get("waiting") is True)
        before = len(finished.trajectories)
        await asyncio.sleep(1.0)
        assert len(finished.trajectories) <= before + MANY_LANES


async def test_a_waiting_worker_that_stops_sends_what_is_complete_all_the_same(
    settings: SelfPlaySettings, bus: Bus, finished: Finished
) -> None:
    await publish(bus, settings, 0)
    async with running(with_many_lanes(settings)) as worker:
        await until(lambda: worker.heartbeat.detail.get("waiting") is True)
        num_finished = len(finished.trajectories)
        assert await bus.length(TRAJECTORIES) < num_finished
    received = await sent(bus)
    assert len(received) == len(finished.trajectories)
    assert {str(trajectory.trajectory_id) for trajectory in received} == finished.ids
    assert Spool(settings.unsent_root).files() == []


async def test_two_workers_of_one_home_send_what_was_kept_there_as_the_trainer_makes_room(
    settings: SelfPlaySettings, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "BACKLOG_SECONDS", 0.01)
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


async def test_a_worker_that_could_keep_nothing_does_not_start(settings: SelfPlaySettings) -> None:
    settings.unsent_root.write_text("a file where the folder should be")
    lifecycle = Lifecycle("selfplay", settings)
    with pytest.raises(SettingsError, match=re.escape(str(settings.unsent_root))):
        await asyncio.wait_for(SelfPlayService(settings, lifecycle).run(), 30.0)
    await lifecycle.bus.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.usefixtures("broken_connections")
async def test_what_can_be_neither_sent_nor_kept_is_told_by_its_number_and_the_folder(
    settings: SelfPlaySettings,
    own_redis: RedisServer,
    own_bus: Bus,
    finished: Finished,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service_module, "LAST_WORD_SECONDS", 0.2)
    mine = settings.model_copy(
        update={
            "redis_url": SecretStr(own_redis.url),
            "selfplay": SelfPlayConfig(lanes=LANES, high_water=10_000),
        }
    )
    await publish(own_bus, mine, 0)

    async def stopped_with_nowhere_to_go() -> None:
        async with running(mine):
            await sent(own_bus, count=LANES)
            await asyncio.to_thread(own_redis.stop, kill=True)
            await until(finished.queue_is_full)
            mine.unsent_root.rmdir()
            mine.unsent_root.write_text("a file where the folder was")

    with pytest.raises(ServiceError) as told:
        await stopped_with_nowhere_to_go()
    await asyncio.to_thread(own_redis.start)
    missing = len(finished.trajectories) - await own_bus.length(TRAJECTORIES)
    number, _, text = str(told.value).partition(" ")
    # What was on its way when Redis was killed may have arrived, though nobody was told.
    assert 2 * LANES <= missing <= int(number) <= missing + LANES
    assert text.startswith("finished trajectories are lost")
    assert f"{mine.unsent_root} cannot be written: File exists" in text


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.usefixtures("broken_connections")
async def test_nothing_finished_is_lost_when_redis_restarts_or_stays_away(
    settings: SelfPlaySettings, tmp_path: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "LAST_WORD_SECONDS", 0.2)
    server = RedisServer(tmp_path / "redis", free_port())
    server.start()
    bus = Bus(server.url)
    mine = settings.model_copy(
        update={
            "redis_url": SecretStr(server.url),
            "selfplay": SelfPlayConfig(lanes=LANES, high_water=10_000),
        }
    )
    await publish(bus, mine, 0)
    async with running(mine):
        await sent(bus, count=LANES)
        await asyncio.to_thread(server.stop, kill=True)
        await asyncio.to_thread(server.start)
        before = len(finished.trajectories)
        await until(lambda: len(finished.trajectories) >= before + LANES)
        await asyncio.to_thread(server.stop, kill=True)
        # Play goes on until the queue of two batches is full, then stops; then the worker is stopped.
        await until(finished.queue_is_full)
    spool = Spool(mine.unsent_root)
    assert len(spool.files()) >= 2 * LANES
    await asyncio.to_thread(server.start)
    async with running(replace_lanes(mine)):
        await until(lambda: not spool.files())
    received = {str(trajectory.trajectory_id) for trajectory in await sent(bus)}
    assert finished.ids <= received
    await bus.close()
    server.stop()


def replace_lanes(settings: SelfPlaySettings) -> SelfPlaySettings:
    return settings.model_copy(update={"selfplay": replace(settings.selfplay, lanes=1)})
