"""The store: whole or not at all, every damage found, pointers and their history, what is collected."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.adapters import checkpoints as checkpoints_module
from shared.adapters.checkpoints import (
    MANIFEST,
    MANIFEST_SHA256,
    TRAINING,
    WEIGHTS,
    CheckpointStore,
    Manifest,
    Pointer,
)
from shared.adapters.files import write_synced
from shared.errors import CheckpointError
from tests.conftest import ROOT

Arrays = dict[str, np.ndarray]


def manifest(version: int) -> Manifest:
    return Manifest(
        version=version,
        episode=50 * version,
        update=300 * version,
        journal_position=50 * version,
        dataset="5e" * 32,
        model={"temporal_channels": 12},
        settings={"learner": {"batch_size": 64}},
        metrics={"loss": 1.5},
        state={"seed": 0, "large": 2**63 - 1},
    )


def tensors(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "layer.weight": rng.normal(size=(7, 5)).astype(np.float32),
        "norm.count": np.array(seed, np.int64),
    }


def filled(root: Path, *versions: int) -> CheckpointStore:
    store = CheckpointStore(root)
    for version in versions:
        store.save(manifest(version), tensors(version), tensors(version + 100))
    return store


def equal(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]) for name in one
    )


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    store = filled(tmp_path / "store", 0, 1)
    assert store.versions() == [0, 1]
    read = store.verify(1)
    assert read.model_copy(update={"files": {}}) == manifest(1).model_copy(
        update={"created_at": read.created_at}
    )
    assert equal(store.weights(1), tensors(1))
    assert equal(store.training(1), tensors(101))
    assert set(read.files) == {WEIGHTS, TRAINING}
    assert read.libraries["torch"]


def test_tensors_may_be_none_at_all(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(manifest(0), tensors(0), {})
    assert store.training(0) == {}


def test_an_empty_or_missing_store_has_no_versions(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "nowhere")
    assert store.versions() == []
    assert store.newest_valid() == (None, [])
    with pytest.raises(CheckpointError, match=r"no version 3 in .*; newest there: none"):
        store.manifest(3)
    assert store.pointer(Pointer.LATEST) is None


def test_a_version_is_never_written_over(tmp_path: Path) -> None:
    store = filled(tmp_path, 4)
    with pytest.raises(CheckpointError, match="version 4 exists already"):
        store.save(manifest(4), tensors(9), tensors(9))
    assert equal(store.weights(4), tensors(4))


@given(data=st.data())
def test_one_flipped_bit_anywhere_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = filled(tmp_path_factory.mktemp("store"), 1, 2)
    name = data.draw(st.sampled_from([WEIGHTS, TRAINING]))
    path = store.folder(2) / name
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: SHA-256 differs"):
        store.verify(2)
    valid, refused = store.newest_valid()
    assert valid is not None
    assert (valid.version, len(refused)) == (1, 1)


@given(data=st.data())
def test_a_cut_tail_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    store = filled(tmp_path_factory.mktemp("store"), 1, 2)
    path = store.folder(2) / data.draw(st.sampled_from([WEIGHTS, TRAINING, MANIFEST]))
    os.truncate(path, data.draw(st.integers(0, path.stat().st_size - 1)))
    with pytest.raises(CheckpointError, match=path.name):
        store.verify(2)
    valid, _ = store.newest_valid()
    assert valid is not None
    assert valid.version == 1


def test_files_that_are_gone_or_swapped_are_found(tmp_path: Path) -> None:
    store = filled(tmp_path, 1, 2)
    (store.folder(2) / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        store.weights(2)
    for name in (MANIFEST, MANIFEST_SHA256):
        (store.folder(1) / name).write_bytes((store.folder(2) / name).read_bytes())
    with pytest.raises(CheckpointError, match="says version 2, expected 1"):
        store.manifest(1)
    with pytest.raises(CheckpointError, match="version 2 lists no file"):
        store.file_bytes(2, "../../etc/passwd")


def test_no_pickle_is_ever_read(tmp_path: Path) -> None:
    """A file that is no safetensors is refused even where its hash is right."""
    import hashlib
    import pickle

    store = filled(tmp_path, 1)
    evil = pickle.dumps({"weights": 1})
    (store.folder(1) / WEIGHTS).write_bytes(evil)
    path = store.folder(1) / MANIFEST
    read = store.manifest(1)
    entry = read.files[WEIGHTS].model_copy(
        update={"bytes": len(evil), "sha256": hashlib.sha256(evil).hexdigest()}
    )
    path.write_text(read.model_copy(update={"files": {**read.files, WEIGHTS: entry}}).model_dump_json())
    own = hashlib.sha256(path.read_bytes()).hexdigest()
    (store.folder(1) / MANIFEST_SHA256).write_text(f"{own}  {MANIFEST}\n")
    with pytest.raises(CheckpointError, match=WEIGHTS):
        store.weights(1)


@pytest.mark.parametrize("failing_write", [1, 2, 3, 4])
def test_a_full_disk_leaves_nothing_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_write: int
) -> None:
    store = filled(tmp_path, 1)
    written, writes = write_synced, []

    def full(path: Path, data: bytes) -> None:
        writes.append(path)
        if len(writes) == failing_write:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        written(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints_module, "write_synced", full)
        with pytest.raises(OSError, match="No space left"):
            store.save(manifest(2), tensors(2), tensors(2))
    assert store.versions() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["v000001"]
    store.save(manifest(2), tensors(2), tensors(2))
    assert store.verify(2).version == 2


SAVER = """
import sys
from pathlib import Path
from tests.shared.adapters.test_checkpoints import CheckpointStore, manifest, tensors
store = CheckpointStore(Path(sys.argv[1]))
version = (store.versions() or [-1])[-1]
while True:
    version += 1
    store.save(manifest(version), tensors(version), tensors(version))
    print(version, flush=True)
"""


def test_a_killed_writer_leaves_whole_versions_only(tmp_path: Path) -> None:
    reported = -1
    for _ in range(2):
        writer = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert writer.stdout is not None
        for _ in range(4):
            reported = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        reported = max([reported, *map(int, writer.stdout.read().split())])
        writer.wait()
        writer.stdout.close()
        store = CheckpointStore(tmp_path)
        versions = store.versions()
        assert versions[-1] >= reported
        assert [store.verify(version).version for version in versions] == versions


def test_a_pointer_remembers_where_it_stood_and_goes_back(tmp_path: Path) -> None:
    store = filled(tmp_path, 1, 2, 3)
    for version in (1, 2, 3):
        store.point(Pointer.PROMOTED, version, stage="paper")
    pointed = store.pointer(Pointer.PROMOTED)
    assert pointed is not None
    assert (pointed.version, pointed.stage, pointed.history) == (3, "paper", (1, 2))
    assert store.roll_back(Pointer.PROMOTED).version == 2
    assert store.roll_back(Pointer.PROMOTED).version == 1
    with pytest.raises(CheckpointError, match="no earlier version"):
        store.roll_back(Pointer.PROMOTED)
    with pytest.raises(CheckpointError, match="no version 9"):
        store.point(Pointer.BEST, 9)
    assert store.pointer(Pointer.BEST) is None


def test_a_damaged_pointer_says_so(tmp_path: Path) -> None:
    store = filled(tmp_path, 1)
    store.point(Pointer.LATEST, 1)
    (tmp_path / "latest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"latest\.json: damaged pointer"):
        store.pointer(Pointer.LATEST)


def test_garbage_is_what_is_neither_new_nor_pointed_at(tmp_path: Path) -> None:
    store = filled(tmp_path, *range(10))
    store.point(Pointer.BEST, 2)
    store.point(Pointer.PROMOTED, 0)
    store.point(Pointer.PROMOTED, 1)
    store.point(Pointer.LATEST, 9)
    assert store.collect_garbage(keep=3) == [3, 4, 5, 6]
    assert store.versions() == [0, 1, 2, 7, 8, 9]  # 0: where a roll-back of `promoted` goes
    assert store.collect_garbage(keep=0) == [7, 8]
