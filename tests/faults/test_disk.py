"""A full disk: journal and checkpoints stay whole and go on later, and a trainer counts what was refused."""

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY

from services.trainer.journal import Journal
from services.trainer.settings import TrainerSettings
from shared.adapters.bus import Bus
from shared.adapters.checkpoints import CheckpointStore
from shared.adapters.dataset import Dataset
from shared.adapters.files import write_synced
from shared.messages.codec import encode_trajectory
from shared.messages.streams import TRAJECTORIES
from shared.runtime.redis_server import RedisServer
from tests.faults.counts import rounds, steps, tell
from tests.faults.intake import trainer_that_only_takes_in
from tests.faults.reading import until, until_drained
from tests.services.trainer.test_service import detail
from tests.services.trainer.test_service import running as running_trainer
from tests.shared.adapters.checkpoint_versions import equal, folder, manifest, tensors
from tests.shared.messages.trajectories import random_trajectory, same


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel writes up to this size of any file of this process and refuses the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@rounds(100, 500)
def test_a_journal_that_meets_a_full_disk_is_as_it_was_and_goes_on(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(1)
    journal = Journal(tmp_path, segment_bytes=40_000)
    journal.append([random_trajectory(0)])
    refused = 0
    for _ in steps(count):
        position = journal.position
        files = {path: path.read_bytes() for path in tmp_path.glob("*.segment")}
        batch = [random_trajectory(seed) for seed in range(position, position + 2)]
        last = max(files)
        begun = len(files[last]) if len(files[last]) < 40_000 else 0
        with files_of_at_most(begun + int(rng.integers(2_000))), pytest.raises(OSError, match="too large"):
            journal.append(batch)
        refused += 1
        assert {path: path.read_bytes() for path in tmp_path.glob("*.segment")} == files
        assert journal.position == position
        assert journal.append(batch) == batch
    journal.close()
    again = Journal(tmp_path)
    assert again.bytes_cut == 0
    assert all(same(again.read(n), random_trajectory(n)) for n in range(again.position))
    tell("journal on a full disk", refused=refused, journalled=again.position, lost=0, doubled=0)
    assert again.position == 1 + 2 * count
    again.close()


@rounds(50, 500)
def test_a_record_torn_at_any_byte_is_cut_off_and_comes_again(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(2)
    torn = 0
    journal = Journal(tmp_path, segment_bytes=40_000)
    for seed in steps(count):
        journal.append([random_trajectory(seed)])
        journal.close()
        last = max(tmp_path.glob("*.segment"))
        whole = last.stat().st_size
        begin = last.read_bytes().rindex(b"MMJ1")  # a record's mark
        os.truncate(last, int(rng.integers(begin, whole)))
        journal = Journal(tmp_path, segment_bytes=40_000)
        torn += 1
        assert journal.position == seed
        assert journal.append([random_trajectory(seed)]) != []
    held = [journal.read(n).seed for n in range(journal.position)]
    journal.close()
    tell("journal torn", torn=torn, journalled=len(held), lost=count - len(set(held)), doubled=0)
    assert held == list(range(count))


@rounds(100, 1_000)
def test_a_checkpoint_that_meets_a_full_disk_leaves_the_one_before(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(4)
    store = CheckpointStore(tmp_path)
    store.save(manifest(1), tensors(1), tensors(2))
    sizes = [path.stat().st_size for path in folder(store, 1).iterdir()]
    refused = 0
    for _ in steps(count):
        with files_of_at_most(int(rng.integers(max(sizes)))), pytest.raises(OSError, match="too large"):
            store.save(manifest(2), tensors(3), tensors(4))
        refused += 1
        assert [path.name for path in tmp_path.iterdir()] == ["v000001"]
        valid, damaged = store.newest_valid()
        assert (valid and valid.version, damaged) == (1, [])
        assert equal(store.weights(1), tensors(1))
    store.save(manifest(2), tensors(3), tensors(4))
    tell("checkpoint on a full disk", refused=refused, visible=0, then_saved=store.verify(2).version)


#: A file there takes nothing: the kernel says that the disk is full.
FULL = Path("/dev/full")


@pytest.fixture
def settings(own_redis: RedisServer, bars: tuple[Path, Dataset], tmp_path: Path) -> TrainerSettings:
    """Of a trainer that makes a version after each episode."""
    settings = trainer_that_only_takes_in(own_redis, bars[0], tmp_path)
    return settings.model_copy(update={"trainer": replace(settings.trainer, publish_every_episodes=1)})


def failures(what: str) -> float:
    """As Prometheus is told of them."""
    return REGISTRY.get_sample_value("mm_trainer_disk_failures_total", {"what": what}) or 0.0


def of_versions(store: Path | str) -> list[str]:
    """Folders, also of those that are half written."""
    return [path.name for path in Path(store).glob("*v0*")]


async def send_short(bus: Bus, dataset: Dataset, *seeds: int) -> None:
    made = [random_trajectory(seed, 12, start_bar=500, dataset=dataset.fingerprint) for seed in seeds]
    await bus.append_all(TRAJECTORIES, [encode_trajectory(trajectory) for trajectory in made])


async def test_a_trainer_counts_what_its_journal_s_disk_refuses_and_goes_on(
    settings: TrainerSettings, bars: tuple[Path, Dataset], own_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.service.DISK_RETRY_SECONDS", 0.01)
    before = failures("journal")
    async with running_trainer(settings) as trainer:
        await until(lambda: detail(trainer, "journalled") == 0)
        segment = settings.journal_root / "000000000000.segment"
        segment.symlink_to(FULL)
        await send_short(own_bus, bars[1], 0, 1, 2)
        await until(lambda: failures("journal") >= before + 3)
        assert detail(trainer, "episode") == 0
        segment.unlink()
        segment.touch()  # there is room again
        await until(lambda: detail(trainer, "episode") == 3)
        await until_drained(own_bus)
    journal = Journal(settings.journal_root)
    assert sorted(journal.read(n).seed for n in range(journal.position)) == [0, 1, 2]
    journal.close()


async def test_a_trainer_counts_every_write_of_a_version_that_is_refused_and_goes_on(
    settings: TrainerSettings, bars: tuple[Path, Dataset], own_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first file of the first try, the second of the second, until each was refused once."""
    refused: list[str] = []

    def each_once(path: Path, data: bytes) -> None:
        if path.name not in refused:
            refused.append(path.name)
            path.symlink_to(FULL)
        write_synced(path, data)

    before = failures("checkpoint")
    store = CheckpointStore(settings.checkpoint_root)
    async with running_trainer(settings) as trainer:
        await until(lambda: detail(trainer, "version") == 0)
        files = [path.name for path in folder(store, 0).iterdir()]
        monkeypatch.setattr("shared.adapters.checkpoint_files.write_synced", each_once)
        for number in range(1, len(files) + 1):
            await send_short(own_bus, bars[1], number)
            await until(lambda: failures("checkpoint") == before + number)  # noqa: B023
            await until(lambda: detail(trainer, "episode") == number)  # noqa: B023
            newest, damaged = store.newest_valid()
            assert (newest and newest.version, damaged) == (0, [])
            assert of_versions(settings.checkpoint_root) == ["v000000"]
        await send_short(own_bus, bars[1], 0)
        await until(lambda: detail(trainer, "version") == 1)
    assert sorted(refused) == sorted(files)
    assert store.verify(1).episode == len(files) + 1


async def test_a_trainer_that_starts_while_the_record_s_disk_refuses_counts_it_and_learns(
    settings: TrainerSettings, bars: tuple[Path, Dataset], own_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = failures("record")
    with monkeypatch.context() as full:
        full.setattr("shared.adapters.run_record.write_whole", refuse)
        async with running_trainer(settings) as trainer:
            await send_short(own_bus, bars[1], 0)
            await until(lambda: detail(trainer, "version") == 1)
            assert failures("record") > before
            assert not (settings.record_root / "settings.json").exists()
            full.undo()
            await send_short(own_bus, bars[1], 1)
            await until(lambda: detail(trainer, "version") == 2)
    assert (settings.record_root / "settings.json").exists()
