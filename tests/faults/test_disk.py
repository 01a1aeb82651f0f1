"""A full disk: journal and checkpoints stay intact and usable, and a trainer counts refused writes."""

import contextlib
import errno
import os
import re
import resource
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY

from services.trainer.intake.journal import Journal
from services.trainer.publishing.publishing import Publisher
from services.trainer.settings import TrainerSettings
from shared.adapters.streams.bus import Bus
from shared.adapters.tables.dataset import Dataset
from shared.adapters.versions.manifest import Pointer
from shared.adapters.versions.store import CheckpointStore
from shared.errors import CheckpointError
from shared.messages.codec import encode_trajectory
from shared.messages.streams import TRAJECTORIES
from shared.runtime.lifecycle import Lifecycle
from shared.runtime.redis_server import RedisServer
from tests.faults.counts import print_figures, rounds, steps
from tests.faults.full_disk import full_disk
from tests.faults.intake import settings_without_updates
from tests.faults.reading import journalled, until_drained
from tests.services.trainer.test_service import detail
from tests.services.trainer.test_service import running as running_trainer
from tests.shared.adapters.versions.checkpoint_versions import equal, folder, manifest, tensors
from tests.shared.messages.trajectories import random_trajectory, same
from tests.waiting import until


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Limit the size of all files of this process; the kernel refuses writes beyond it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@rounds(100, 500)
def test_a_full_disk_leaves_the_journal_unchanged_and_usable(tmp_path: Path, count: int) -> None:
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
    print_figures("journal on a full disk", refused=refused, journalled=again.position, lost=0, doubled=0)
    assert again.position == 1 + 2 * count
    again.close()


@rounds(50, 500)
def test_a_journal_frame_torn_at_any_byte_is_truncated_and_redelivered(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(2)
    torn = 0
    journal = Journal(tmp_path, segment_bytes=40_000)
    for seed in steps(count):
        journal.append([random_trajectory(seed)])
        journal.close()
        last = max(tmp_path.glob("*.segment"))
        size = last.stat().st_size
        begin = last.read_bytes().rindex(b"MMJ1")  # the marker of a frame
        os.truncate(last, int(rng.integers(begin, size)))
        journal = Journal(tmp_path, segment_bytes=40_000)
        torn += 1
        assert journal.position == seed
        assert journal.append([random_trajectory(seed)]) != []
    held = [journal.read(n).seed for n in range(journal.position)]
    journal.close()
    print_figures("journal torn", torn=torn, journalled=len(held), lost=count - len(set(held)), doubled=0)
    assert held == list(range(count))


@rounds(100, 1_000)
def test_on_a_full_disk_saving_a_version_leaves_the_previous_one(tmp_path: Path, count: int) -> None:
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
    print_figures("checkpoint on a full disk", refused=refused, visible=0, then_saved=store.verify(2).version)


#: A device on which every write fails as on a full disk.
FULL = Path("/dev/full")


@pytest.fixture
def settings(own_redis: RedisServer, bars: tuple[Path, Dataset], tmp_path: Path) -> TrainerSettings:
    """Settings of a trainer that publishes a version after each episode."""
    settings = settings_without_updates(own_redis, bars[0], tmp_path)
    return settings.model_copy(update={"trainer": replace(settings.trainer, publish_every_episodes=1)})


def failures(what: str) -> float:
    """Number of failures in the Prometheus metric."""
    return REGISTRY.get_sample_value("mm_trainer_disk_failures_total", {"what": what}) or 0.0


EITHER_WAY = pytest.mark.parametrize("once", [False, True], ids=["and-all-later-calls", "once"])

#: Names of complete files and versions in the trainer's folders, and of the two locks.
_COMPLETE = re.compile(r"v\d{6}|latest\.json|\d{12}\.segment|removed\.ids|lock|\.pointers\.lock")


def incomplete_files(folder: Path) -> list[str]:
    """Names of incomplete files."""
    return sorted(path.name for path in folder.glob("*") if not _COMPLETE.fullmatch(path.name))


def files_of(folder: Path) -> dict[str, bytes]:
    """Contents by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def calls_for_files(store: CheckpointStore) -> set[str]:
    """The calls that need space, for each file of a version."""
    files = [path.name for path in folder(store, store.versions()[-1]).iterdir()]
    return {f"{what} {name}" for what in ("make", "write", "sync") for name in files}


def print_refused(what: str, refused: Sequence[str], *, once: bool) -> None:
    kinds = Counter(call.partition(" ")[0] for call in refused)
    print_figures(
        what, all_that_follow=not once, calls_refused=len(refused), **kinds, counted=len(refused), partial=0
    )


async def send_short(bus: Bus, dataset: Dataset, *seeds: int) -> None:
    made = [random_trajectory(seed, 12, start_bar=500, dataset=dataset.fingerprint) for seed in seeds]
    await bus.append_all(TRAJECTORIES, [encode_trajectory(trajectory) for trajectory in made])


async def test_a_trainer_counts_refused_journal_writes_and_continues(
    settings: TrainerSettings, bars: tuple[Path, Dataset], own_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.retry.RETRY_SECONDS", 0.01)
    before = failures("journal")
    async with running_trainer(settings) as trainer:
        await until(lambda: detail(trainer, "journalled") == 0)
        segment = settings.journal_root / "000000000000.segment"
        segment.symlink_to(FULL)
        await send_short(own_bus, bars[1], 0, 1, 2)
        await until(lambda: failures("journal") >= before + 3)
        assert detail(trainer, "episode") == 0
        segment.unlink()
        segment.touch()  # the disk has space again
        await until(lambda: detail(trainer, "episode") == 3)
        await until_drained(own_bus)
    journal = Journal(settings.journal_root)
    assert sorted(journal.read(n).seed for n in range(journal.position)) == [0, 1, 2]
    journal.close()


@EITHER_WAY
async def test_a_refused_call_while_saving_a_version_is_counted_and_retried(
    settings: TrainerSettings,
    bars: tuple[Path, Dataset],
    own_bus: Bus,
    monkeypatch: pytest.MonkeyPatch,
    *,
    once: bool,
) -> None:
    """Attempt N is refused call N, until an attempt needs fewer calls."""
    tries, write = 0, Publisher.write

    async def write_and_count(publisher: Publisher) -> None:
        nonlocal tries
        await write(publisher)
        tries += 1

    async def try_another() -> None:
        number = tries + 1
        await send_short(own_bus, bars[1], number)
        await until(lambda: tries == number)

    monkeypatch.setattr(Publisher, "write", write_and_count)
    settings = settings.model_copy(update={"trainer": replace(settings.trainer, keep_checkpoints=2)})
    root = Path(settings.checkpoint_root)
    store, disk = CheckpointStore(root), full_disk(root, monkeypatch)
    refused: list[str] = []
    halves: list[CheckpointError] = []
    disk.look = lambda: halves.extend(store.newest_valid()[1])
    async with running_trainer(settings) as trainer:
        await until(lambda: detail(trainer, "version") == 0)
        while True:
            before, failed = store.versions()[-1], failures("checkpoint")
            weights = store.weights(before)
            disk.refuse(len(refused), once=once)
            await try_another()
            disk.free()
            if not disk.refused:
                break
            refused.append(disk.refused[0])
            assert halves == []
            assert failures("checkpoint") == failed + 1
            assert incomplete_files(root) == []
            assert equal(store.weights(before), weights)
            assert [store.verify(version).version for version in store.versions()] == store.versions()
            latest = store.pointer(Pointer.LATEST)
            assert latest is not None
            assert latest.version in store.versions()
            await try_another()  # the disk has space again
            assert failures("checkpoint") == failed + 1
            assert store.verify(store.versions()[-1]).episode == tries
        await until(lambda: detail(trainer, "episode") == tries)
    print_refused("version on a full disk", refused, once=once)
    assert set(refused) > calls_for_files(store)
    assert sum(call.startswith("rename") for call in refused) == 3  # version, pointer and removals


@EITHER_WAY
async def test_a_refused_call_of_the_first_version_is_counted_and_retried(
    settings: TrainerSettings,
    bars: tuple[Path, Dataset],
    own_bus: Bus,
    monkeypatch: pytest.MonkeyPatch,
    *,
    once: bool,
) -> None:
    """The first start writes version 0, the second its pointer; each attempt is refused one call."""
    root = Path(settings.checkpoint_root)
    store, disk = CheckpointStore(root), full_disk(root, monkeypatch)
    for start in ("first", "second"):
        refused: list[str] = []
        seen: list[tuple[float, list[str]]] = []
        counted = failures("checkpoint")

        async def look(_lifecycle: Lifecycle, _seconds: float) -> None:
            """Replaces the wait before the next attempt."""
            refused.append(disk.refused[0])  # noqa: B023
            seen.append((failures("checkpoint") - counted, incomplete_files(root)))  # noqa: B023
            disk.refuse(len(refused), once=once)  # noqa: B023

        monkeypatch.setattr(Lifecycle, "sleep", look)
        disk.refuse(0, once=once)
        async with running_trainer(settings) as trainer:
            await until(lambda: detail(trainer, "version") is not None)
            disk.free()
            held = len(store.versions())
            await send_short(own_bus, bars[1], held)
            await until(lambda: len(store.versions()) == held + 1)  # noqa: B023
        print_refused(f"{start} start on a full disk", refused, once=once)
        assert seen == [(number, []) for number in range(1, len(refused) + 1)]
        assert store.newest_valid()[1] == []
        assert start == "second" or set(refused) > calls_for_files(store)
    assert [call.partition(" ")[0] for call in refused] == ["make", "write", "sync", "rename", "sync"]


JOURNAL = pytest.mark.parametrize(
    "segment_bytes", [1, 64 << 20], ids=["each-in-a-new-segment", "all-in-one-segment"]
)


@EITHER_WAY
@JOURNAL
async def test_a_refused_call_leaves_the_journal_unchanged_and_is_counted(
    settings: TrainerSettings,
    bars: tuple[Path, Dataset],
    own_bus: Bus,
    monkeypatch: pytest.MonkeyPatch,
    segment_bytes: int,
    *,
    once: bool,
) -> None:
    """The journal in a running trainer."""
    root = settings.journal_root
    monkeypatch.setattr(
        "services.trainer.run.Journal", lambda folder, **_: Journal(folder, segment_bytes=segment_bytes)
    )
    store, disk = CheckpointStore(settings.checkpoint_root), full_disk(root, monkeypatch)
    refused: list[str] = []
    seen: list[tuple[bool, bool, float]] = []
    async with running_trainer(settings) as trainer:
        await until(lambda: detail(trainer, "version") == 0)
        await send_short(own_bus, bars[1], 0)
        await until(lambda: detail(trainer, "version") == 1)
        sent = 1
        while True:
            held, weights, counted = files_of(root), store.weights(store.versions()[-1]), failures("journal")

            async def look(_seconds: float) -> None:
                """Replaces the wait before the next attempt."""
                newest, _ = store.newest_valid()
                loads = newest is not None and equal(store.weights(newest.version), weights)  # noqa: B023
                as_it_was = files_of(root) == held and incomplete_files(root) == []  # noqa: B023
                seen.append((loads, as_it_was, failures("journal") - counted))  # noqa: B023
                disk.free()

            monkeypatch.setattr(trainer, "sleep", look)
            disk.refuse(len(refused), once=once)
            await send_short(own_bus, bars[1], sent)
            sent += 1
            await until(lambda: detail(trainer, "episode") == sent)  # noqa: B023
            disk.free()
            if not disk.refused:
                break
            refused += disk.refused[:1]
        await until_drained(own_bus)
    journal = Journal(root)
    assert journal.bytes_cut == 0
    assert journalled(journal) == list(range(sent))
    journal.close()
    print_refused("segment on a full disk", refused, once=once)
    assert seen == [(True, True, 1.0)] * len(refused)
    assert [call.partition(" ")[0] for call in refused] == (
        ["make", "write", "sync", "sync"] if segment_bytes == 1 else ["write", "sync"]
    )


@EITHER_WAY
def test_a_refused_call_during_removal_loses_nothing_and_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, once: bool
) -> None:
    journal = Journal(tmp_path, segment_bytes=1)
    made = [random_trajectory(seed) for seed in range(40)]
    disk = full_disk(tmp_path, monkeypatch)
    refused: list[str] = []
    end = 4
    journal.append(made[:1])
    for one in made[1:end]:
        journal.append([one])
    while True:
        keep = journal.position - 2
        disk.refuse(len(refused), once=once)
        with contextlib.suppress(OSError):
            journal.remove_before(keep)
        disk.free()
        if not disk.refused:
            break
        refused += disk.refused[:1]
        assert incomplete_files(tmp_path) == []
        assert all(same(journal.read(number), made[number]) for number in range(journal.first, end))
        assert journal.append(made[:end]) == []  # all ids are known, including removed ones
        journal.append(made[end : end + 1])
        end += 1
        journal.remove_before(keep)  # the disk has space again
        assert (journal.first, journal.position) == (keep, end)
        assert min(tmp_path.glob("*.segment")).name == f"{keep:012d}.segment"
    journal.close()
    again = Journal(tmp_path)
    assert (again.first, again.position, again.bytes_cut) == (end - 2, end, 0)
    assert again.append(made[:end]) == []
    again.close()
    print_refused("removal on a full disk", refused, once=once)
    assert [call.partition(" ")[0] for call in refused] == ["make", "write", "sync", "rename", "sync", "sync"]


async def test_a_trainer_starts_and_learns_while_its_record_cannot_be_written(
    settings: TrainerSettings, bars: tuple[Path, Dataset], own_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = failures("record")
    with monkeypatch.context() as full:
        full.setattr("shared.adapters.tables.run_record.write_atomically", refuse)
        async with running_trainer(settings) as trainer:
            await send_short(own_bus, bars[1], 0)
            await until(lambda: detail(trainer, "version") == 1)
            assert failures("record") > before
            assert not (settings.record_root / "settings.json").exists()
            full.undo()
            await send_short(own_bus, bars[1], 1)
            await until(lambda: detail(trainer, "version") == 2)
    assert (settings.record_root / "settings.json").exists()
