"""The trainer's loops in this process over a real Redis: refusals, pauses, disk failures, restarts."""

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
from prometheus_client import generate_latest
from pydantic import SecretStr
from redis.asyncio import Redis

from services.trainer.config import LearnerConfig, TrainerConfig
from services.trainer.intake import journal as journal_module
from services.trainer.intake.journal import Journal
from services.trainer.service import TrainerService
from services.trainer.settings import TrainerSettings
from shared.adapters.streams.bus import Bus
from shared.adapters.tables.dataset import Dataset, write_dataset
from shared.adapters.versions.manifest import Manifest, Pointer
from shared.adapters.versions.store import CheckpointStore, Tensors
from shared.agent.trajectory import Trajectory
from shared.errors import DataError, SettingsError
from shared.market.synthetic import Market, synthesize
from shared.messages.codec import encode, encode_trajectory
from shared.messages.schemas import ControlIssued
from shared.messages.streams import ALERTS, CHECKPOINTS, CONTROL, DEAD, TRAJECTORIES
from shared.runtime.lifecycle import Lifecycle
from shared.runtime.redis_server import RedisServer
from tests.services.trainer.runs import CONFIG
from tests.shared.adapters.versions.checkpoint_versions import folder
from tests.shared.messages.trajectories import random_trajectory
from tests.waiting import PATIENCE_SECONDS, until

STEPS = 40


#: Metrics of stale trajectories.
STALE = 'mm_trainer_refused_total{reason="stale"}'
DUPLICATES = "mm_trainer_duplicates_total"
JOURNALLED = "mm_trainer_version_lag_count"
NOT_BEHIND = 'mm_trainer_version_lag_bucket{le="0.0"}'
STALE_METRICS = (STALE, DUPLICATES, JOURNALLED, NOT_BEHIND)

#: Metric of unreadable control messages.
UNREADABLE = "mm_trainer_control_unreadable_total"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    path = tmp_path_factory.mktemp("bars") / "bars.duckdb"
    return path, write_dataset(path, synthesize(Market.OU, 2_000, seed=1), "synthetic ou")


@pytest.fixture
def settings(tmp_path: Path, dataset: tuple[Path, Dataset], redis_server: RedisServer) -> TrainerSettings:
    return TrainerSettings(
        home=tmp_path,
        dataset=dataset[0],
        redis_url=SecretStr(redis_server.url),
        model=CONFIG.model,
        replay=CONFIG.replay,
        learner=CONFIG.learner,
        trainer=TrainerConfig(
            samples_per_insert=1.0, min_replay_steps=80, publish_every_episodes=5, keep_checkpoints=2
        ),
    )


@contextlib.asynccontextmanager
async def running(settings: TrainerSettings) -> AsyncIterator[Lifecycle]:
    """Run a trainer and stop it gracefully at the end."""
    lifecycle = Lifecycle("trainer", settings)
    task = asyncio.create_task(TrainerService(settings, lifecycle).run())
    try:
        yield lifecycle
    finally:
        lifecycle.stop()
        await task
        await lifecycle.bus.close()


async def until_drained(bus: Bus) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await bus.length(TRAJECTORIES):  # noqa: ASYNC110  a state, not an event
            await asyncio.sleep(0.01)


def counted(name: str) -> float:
    """A metric of this process, as exported to Prometheus."""
    lines = generate_latest().decode().splitlines()
    (value,) = [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]
    return float(value)


def detail(lifecycle: Lifecycle, name: str) -> object:
    return lifecycle.heartbeat.detail.get(name)


def played(dataset: Dataset, seed: int, version: int = 3) -> Trajectory:
    return random_trajectory(seed, STEPS, start_bar=500, dataset=dataset.fingerprint, version=version)


async def send(bus: Bus, dataset: Dataset, seeds: range) -> None:
    made = [played(dataset, seed) for seed in seeds]
    await bus.append_all(TRAJECTORIES, [encode_trajectory(trajectory) for trajectory in made])


async def test_unusable_trajectories_become_dead_letters_with_their_reason(
    settings: TrainerSettings, dataset: tuple[Path, Dataset], bus: Bus
) -> None:
    fingerprint = dataset[1].fingerprint
    good = random_trajectory(1, STEPS, start_bar=500, dataset=fingerprint)
    foreign = random_trajectory(2, STEPS, start_bar=500)
    outside = random_trajectory(3, STEPS, start_bar=1_999, dataset=fingerprint)
    for trajectory in (foreign, outside, good):
        await bus.append(TRAJECTORIES, *encode_trajectory(trajectory))
    message, arrays = encode_trajectory(replace(good, seed=9))
    await bus.append(TRAJECTORIES, message, arrays[:-1])
    async with running(settings) as trainer:
        await until(lambda: detail(trainer, "episode") == 1)
        assert detail(trainer, "journalled") == 1
        await until_drained(bus)
    reasons = [entry.message.reason for entry in await bus.recent(DEAD, count=10)]
    assert len(reasons) == 3
    assert "bytes of arrays, the shapes say" in reasons[0]
    assert "bars 1999 to 2038, but the data set has windows only for 150 to 1999" in reasons[1]
    assert f"data set {'5e' * 6}…, but the trainer has {fingerprint[:12]}…" in reasons[2]


async def test_stale_trajectories_become_dead_letters_and_all_others_are_learned_from(
    settings: TrainerSettings, dataset: tuple[Path, Dataset], bus: Bus
) -> None:
    limited = settings.model_copy(update={"trainer": replace(settings.trainer, max_version_lag=1)})
    early = [played(dataset[1], seed, version=0) for seed in range(10)]
    # Version 2 is the newest when these arrive, so version 0 is stale, except for redeliveries.
    stale = [played(dataset[1], seed, version=0) for seed in range(10, 16)]
    late = [played(dataset[1], 20 + version, version=version) for version in (1, 2, 7)]
    await bus.append_all(TRAJECTORIES, [encode_trajectory(one) for one in early])
    async with running(limited) as trainer:
        await until(lambda: detail(trainer, "version") == 2)
        before = {name: counted(name) for name in STALE_METRICS}
        mixed = [*stale[:3], early[4], late[0], *stale[3:], late[1], early[9], late[2]]
        await bus.append_all(TRAJECTORIES, [encode_trajectory(one) for one in mixed])
        await until(lambda: detail(trainer, "episode") == 13)
        await until_drained(bus)
        assert detail(trainer, "journalled") == 13
    journal = Journal(limited.journal_root)
    learned = [journal.read(n).trajectory_id for n in range(journal.position)]
    journal.close()
    assert learned == [one.trajectory_id for one in (*early, *late)]
    letters = [(e.message.stream, e.message.reason) for e in await bus.recent(DEAD, count=100)]
    assert sorted(letters) == sorted(
        (
            "mm:trajectories",
            f"trajectory {one.trajectory_id}: played by version 0, newest 2: a lag of 2; "
            "trainer.max_version_lag allows 1",
        )
        for one in stale
    )
    assert {name: counted(name) - before[name] for name in STALE_METRICS} == {
        STALE: len(stale),
        DUPLICATES: 2,
        JOURNALLED: 3,
        NOT_BEHIND: 2,  # of versions 2 and 7
    }


async def test_learning_pauses_and_resumes_on_request_and_a_pause_survives_a_restart(
    settings: TrainerSettings, dataset: tuple[Path, Dataset], bus: Bus
) -> None:
    async def ask(state: str) -> None:
        control = ControlIssued.model_validate({"target": "training", "state": state, "by": "test"})
        await bus.announce(CONTROL, control, name="training")

    await ask("paused")
    for _ in range(2):
        async with running(settings) as trainer:
            await until(lambda: detail(trainer, "paused") is True)
            await send(bus, dataset[1], range(8))
            await until(lambda: detail(trainer, "journalled") == 8)
            assert detail(trainer, "episode") == 0
    async with running(settings) as trainer:
        await until(lambda: detail(trainer, "paused") is True)
        await ask("running")
        await until(lambda: detail(trainer, "episode") == 8)


@pytest.mark.parametrize(
    "damage",
    [
        {b"": b""},
        {b"\xff\x00": b"\xfe" * 300},
        {b"type": b"ControlIssued", b"version": b"2"},
        {b"body": b'{"target": "training", "state": "halted", "by": "test"}'},
        {b"body": b"\x80\x02]q" * 100},
        {b"body": b" " * 5_000_000},
    ],
    ids=["empty", "binary", "another-schema", "unknown-state", "no-json", "huge"],
)
async def test_an_unreadable_control_message_changes_nothing(
    settings: TrainerSettings,
    dataset: tuple[Path, Dataset],
    bus: Bus,
    redis_server: RedisServer,
    damage: dict[bytes, bytes],
) -> None:
    paused = ControlIssued(target="training", state="paused", by="test")
    good = {name.encode(): value for name, value in encode(paused).items()}
    is_control = b"type" in damage or b"body" in damage
    unreadable: Any = {**good, **damage} if is_control else damage

    async def send_unreadable() -> None:
        """Write an unreadable message to the stream and as its newest, as `Bus.announce` does."""
        async with Redis.from_url(redis_server.url) as plain:
            await plain.delete(f"{CONTROL.key}:training")
            await plain.xadd(CONTROL.key, unreadable)
            await plain.hset(f"{CONTROL.key}:training", mapping=unreadable)

    await bus.announce(CONTROL, paused, name="training")
    await bus.announce(
        CONTROL, paused.model_copy(update={"target": "trader", "state": "running"}), name="trader"
    )
    await send_unreadable()
    before = counted(UNREADABLE)
    await send(bus, dataset[1], range(8))
    async with running(settings) as trainer:
        await until(lambda: detail(trainer, "journalled") == 8)
        assert detail(trainer, "paused") is True  # as the newest readable message asked
        assert counted(UNREADABLE) == before + 1
        assert await bus.length(DEAD) == 0
        await send_unreadable()
        await bus.announce(CONTROL, paused.model_copy(update={"state": "running"}), name="training")
        await until(lambda: detail(trainer, "episode") == 8)
    (letter,) = await bus.dead.letters(count=10)
    assert letter.stream == CONTROL.key
    assert letter.original == unreadable


async def test_versions_are_published_and_announced_and_old_ones_are_deleted(
    settings: TrainerSettings, dataset: tuple[Path, Dataset], bus: Bus
) -> None:
    await send(bus, dataset[1], range(21))
    async with running(settings) as trainer:
        await until(lambda: detail(trainer, "update") == 21 * STEPS // 16)  # all owed updates are made
    store = CheckpointStore(settings.checkpoint_root)
    announced = [entry.message for entry in await bus.recent(CHECKPOINTS, count=100)]
    assert [message.version for message in announced] == [5, 4, 3, 2, 1, 0]
    assert [message.episode for message in announced] == [21, 20, 15, 10, 5, 0]
    assert store.versions() == [4, 5]
    pointed = store.pointer(Pointer.LATEST)
    assert pointed is not None
    assert pointed.version == 5
    assert announced[0].metrics["loss"] > 0
    async with running(settings) as trainer:  # nothing was learned, so no version is published
        await until(lambda: detail(trainer, "version") == 5)
    assert store.versions() == [4, 5]
    assert len(await bus.recent(CHECKPOINTS, count=100)) == 6


async def test_every_episode_update_and_version_is_recorded(
    settings: TrainerSettings, dataset: tuple[Path, Dataset], bus: Bus
) -> None:
    with_tensorboard = settings.model_copy(update={"trainer": replace(settings.trainer, tensorboard=True)})
    updates = 6 * STEPS // 16
    for episodes in (6, 8):  # the second run resumes
        await send(bus, dataset[1], range(episodes))
        async with running(with_tensorboard) as trainer:
            await until(lambda: detail(trainer, "update") == episodes * STEPS // 16)  # noqa: B023
            assert detail(trainer, "replay_age_episodes") == pytest.approx(1.5, abs=1.5)
    folder = with_tensorboard.record_root
    store = CheckpointStore(settings.checkpoint_root)
    played = [random_trajectory(s, STEPS, start_bar=500, dataset=dataset[1].fingerprint) for s in range(8)]
    with contextlib.closing(duckdb.connect()) as connection:

        def ask(query: str) -> list[tuple[Any, ...]]:
            return connection.execute(query).fetchall()

        for table in ("updates", "episodes", "versions"):
            connection.execute(f"create view {table} as from '{folder}/{table}-*.parquet'")
        assert ask("select episode, trajectory_id from episodes order by episode") == [
            (n, str(trajectory.trajectory_id)) for n, trajectory in enumerate(played, 1)
        ]
        assert ask("select attempt, update from updates order by attempt") == [
            (n, n) for n in range(1, 8 * STEPS // 16 + 1)
        ]
        manifests = [store.manifest(version) for version in store.versions()]
        assert [manifest.episode for manifest in manifests] == [6, 8]
        for manifest in manifests:
            ((loss, ratio),) = ask(
                f"select loss, samples_per_insert from updates where update = {manifest.update}"
            )
            assert loss == manifest.metrics["loss"]
            assert ratio == manifest.metrics["samples_per_insert"]
            ((win_rate, share),) = ask(
                f"select win_rate, share_hold from versions where version = {manifest.version}"
            )
            assert win_rate == manifest.metrics["win_rate"]
            assert share == manifest.metrics["share_hold"]
        assert ask("select version, episode from versions order by 1") == [(0, 0), (1, 5), (2, 6), (3, 8)]
        ((least, most, slowest),) = ask(
            "select min(replay_age_episodes), max(replay_age_episodes), min(steps_per_second) from updates"
        )
        assert 0.0 <= least < most <= 7.0
        assert slowest > 0.0
        assert ask(
            "select settings.dataset.fingerprint, settings.learner.batch_size, attempt "
            f"from '{folder}/settings.json' order by attempt"
        ) == [(dataset[1].fingerprint, 16, 0), (dataset[1].fingerprint, 16, updates)]
    assert {path.parent.name for path in folder.glob("tensorboard/*/events.out.tfevents.*")} == {
        "updates",
        "episodes",
    }


async def test_the_record_is_written_before_the_version_is_saved(
    settings: TrainerSettings, dataset: tuple[Path, Dataset], bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill therefore never leaves a version that is ahead of its record."""
    save = CheckpointStore.save
    found: list[tuple[int, int, int, int]] = []

    def watched(store: CheckpointStore, manifest: Manifest, *tensors: Tensors) -> Manifest:
        with contextlib.closing(duckdb.connect()) as connection:
            for table in ("episodes", "updates") if manifest.version else ():
                connection.execute(f"create view {table} as from '{settings.record_root}/{table}-*.parquet'")
                found.extend(
                    (*row, manifest.episode, manifest.update)
                    for row in connection.execute(f"select count(*), max(episode) from {table}").fetchall()
                )
        return save(store, manifest, *tensors)

    monkeypatch.setattr(CheckpointStore, "save", watched)
    await send(bus, dataset[1], range(12))
    async with running(settings) as trainer:
        await until(lambda: detail(trainer, "update") == 30)
    assert [row[2:] for row in found[::2]] == [(5, 5 * STEPS // 16), (10, 25), (12, 30)]
    for episodes, updates in zip(found[::2], found[1::2], strict=True):
        assert episodes[:2] == (episodes[2], episodes[2])
        assert updates[:2] == (updates[3], updates[2])


async def test_learning_continues_when_the_record_cannot_be_written(
    settings: TrainerSettings, dataset: tuple[Path, Dataset], bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[Path] = []

    def full(path: Path, data: bytes) -> None:
        failed.append(path)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shared.adapters.tables.growing_table.write_atomically", full)
    await send(bus, dataset[1], range(10))
    async with running(settings) as trainer:
        await until(lambda: detail(trainer, "version") == 2)
        monkeypatch.undo()
        await send(bus, dataset[1], range(10, 12))
        await until(lambda: detail(trainer, "episode") == 12)
    assert failed
    with contextlib.closing(duckdb.connect()) as connection:
        query = f"select episode from '{settings.record_root}/episodes-*.parquet' order by episode"
        assert connection.execute(query).fetchall() == [(n,) for n in range(1, 13)]


async def test_a_damaged_newest_version_is_skipped_and_learned_again(
    settings: TrainerSettings, dataset: tuple[Path, Dataset], bus: Bus
) -> None:
    await send(bus, dataset[1], range(10))
    async with running(settings) as trainer:
        await until(lambda: detail(trainer, "version") == 2)
    store = CheckpointStore(settings.checkpoint_root)
    intact = store.weights(2)
    weights = folder(store, 2) / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    async with running(settings) as trainer:
        await until(lambda: detail(trainer, "version") == 3)
    manifest, refused = store.newest_valid()
    assert manifest is not None
    assert (manifest.version, manifest.episode, refused) == (3, 10, [])
    for name, array in store.weights(3).items():
        assert (array == intact[name]).all(), name  # learning it again from the journal gives the same bits


async def test_divergence_rolls_back_to_the_last_good_version_and_raises_an_alert(
    settings: TrainerSettings, dataset: tuple[Path, Dataset], bus: Bus
) -> None:
    diverging = settings.model_copy(
        update={"learner": LearnerConfig(batch_size=16, unroll_steps=3, reward_weight=1e38)}
    )
    await send(bus, dataset[1], range(10))
    async with running(diverging) as trainer:
        await until(lambda: isinstance(rolls := detail(trainer, "roll_backs"), float) and rolls >= 1)
        await until(lambda: detail(trainer, "episode") == 10)
    alerts = [entry.message for entry in await bus.recent(ALERTS, count=100)]
    assert {alert.name for alert in alerts} == {"training_rolled_back"}
    assert "10 updates in a row were not finite; restored the weights of version 0" in alerts[-1].detail


async def test_a_full_disk_delays_learning_and_loses_nothing(
    settings: TrainerSettings, dataset: tuple[Path, Dataset], bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.retry.RETRY_SECONDS", 0.01)
    written = journal_module._append_synced
    failed: list[Path] = []

    def full_at_first(path: Path, data: bytes) -> None:
        if len(failed) < 3:
            failed.append(path)
            raise OSError(errno.ENOSPC, "No space left on device")
        written(path, data)

    monkeypatch.setattr(journal_module, "_append_synced", full_at_first)
    await send(bus, dataset[1], range(3))
    async with running(settings) as trainer:
        await until(lambda: detail(trainer, "episode") == 3)
    assert len(failed) == 3
    assert await bus.length(TRAJECTORIES) == 0


async def test_the_stream_is_not_read_while_too_many_trajectories_wait(
    settings: TrainerSettings, dataset: tuple[Path, Dataset], bus: Bus
) -> None:
    control = ControlIssued(target="training", state="paused", by="test")
    await bus.announce(CONTROL, control, name="training")
    await send(bus, dataset[1], range(200))
    async with running(settings) as trainer:
        await until(lambda: (detail(trainer, "journalled") or 0) == 32)  # the batch that reached the limit
        assert await bus.length(TRAJECTORIES) == 168


async def test_another_model_size_or_data_set_is_refused(
    settings: TrainerSettings, dataset: tuple[Path, Dataset], bus: Bus, tmp_path: Path
) -> None:
    async with running(settings) as trainer:
        await until(lambda: detail(trainer, "version") == 0)
    wider = settings.model_copy(update={"model": replace(CONFIG.model, temporal_channels=16)})
    with pytest.raises(SettingsError, match=r"version 0 has .*temporal_channels=12.*ask for .*channels=16"):
        async with running(wider):
            await asyncio.sleep(0)
    write_dataset(tmp_path / "other.duckdb", synthesize(Market.GBM, 2_000, seed=2), "other")
    other = settings.model_copy(update={"dataset": tmp_path / "other.duckdb"})
    with pytest.raises(DataError, match="was trained on data set"):
        async with running(other):
            await asyncio.sleep(0)
