"""A disk that takes only so many bytes of a file: journal and checkpoints stay whole, and go on later."""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from services.trainer.journal import Journal
from shared.adapters.checkpoints import CheckpointStore
from tests.faults.counts import rounds, steps, tell
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
        held = {path: path.read_bytes() for path in tmp_path.glob("*.segment") if path.stat().st_size}
        assert held == files
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
