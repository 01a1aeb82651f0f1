"""The store, the same in every place: versions whole or not there, all damage found, pointers, garbage."""

import errno
import hashlib
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.adapters import checkpoint_files
from shared.adapters.checkpoint_files import MANIFEST, MANIFEST_SHA256
from shared.adapters.checkpoints import TRAINING, WEIGHTS, CheckpointStore, Pointed, Pointer, moved
from shared.adapters.files import write_synced
from shared.errors import CheckpointError, SettingsError
from tests.conftest import ROOT
from tests.shared.adapters.checkpoint_versions import (
    Place,
    equal,
    fill,
    filled,
    folder,
    key_of,
    manifest,
    new_place,
    tensors,
)

#: All that a version consists of.
FILES = (WEIGHTS, TRAINING, MANIFEST, MANIFEST_SHA256)


@pytest.fixture(params=["folder", "memory", "bucket"])
def place(request: pytest.FixtureRequest) -> Place:
    return new_place(request)


def test_what_was_saved_comes_back(place: Place) -> None:
    fill(place.store(), 0, 1)
    store = place.store()
    assert store.versions() == [0, 1]
    read = store.verify(1)
    assert read.model_copy(update={"files": {}}) == manifest(1).model_copy(
        update={"created_at": read.created_at}
    )
    assert equal(store.weights(1), tensors(1))
    assert equal(store.training(1), tensors(101))
    assert set(read.files) == {WEIGHTS, TRAINING}
    assert read.libraries["torch"]
    weights = place.read(key_of(place, 1, WEIGHTS))
    assert store.file_bytes(1, WEIGHTS) == weights
    assert read.files[WEIGHTS].sha256 == hashlib.sha256(weights).hexdigest()


def test_tensors_may_be_none_at_all(place: Place) -> None:
    store = place.store()
    store.save(manifest(0), tensors(0), {})
    assert store.training(0) == {}


def test_tensors_of_some_megabytes_come_back(place: Place) -> None:
    store = place.store()
    large = {"large": np.random.default_rng(1).normal(size=(1_500, 1_000))}
    store.save(manifest(0), large, tensors(0))
    assert equal(store.weights(0), large)


def test_an_empty_or_missing_store_has_no_versions(place: Place) -> None:
    store = place.store()
    assert store.versions() == []
    assert store.newest_valid() == (None, [])
    with pytest.raises(CheckpointError, match=r"no version 3 in .*; newest there: none"):
        store.manifest(3)
    assert store.pointer(Pointer.LATEST) is None
    assert store.collect_garbage(keep=1) == []


def test_a_version_is_never_written_over(place: Place) -> None:
    fill(place.store(), 4)
    store = place.store()
    with pytest.raises(CheckpointError, match="version 4 exists already"):
        store.save(manifest(4), tensors(9), tensors(9))
    assert equal(store.weights(4), tensors(4))


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_and_a_cut_tail_are_found(place: Place, name: str) -> None:
    store = fill(place.store(), 1, 2)
    key = key_of(place, 2, name)
    whole = place.read(key)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (bytes(flipped), whole[:-1], b""):
        place.write(key, damaged)
        with pytest.raises(CheckpointError, match="v000002/"):
            store.verify(2)
        valid, refused = store.newest_valid()
        assert valid is not None
        assert (valid.version, len(refused)) == (1, 1)
    place.write(key, whole)
    assert store.verify(2).version == 2


@given(data=st.data())
def test_one_flipped_bit_anywhere_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = filled(tmp_path_factory.mktemp("store"), 1, 2)
    path = folder(store, 2) / data.draw(st.sampled_from(FILES))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="v000002/"):
        store.verify(2)


def test_files_that_are_gone_are_found(place: Place) -> None:
    store = fill(place.store(), 1)
    place.remove(key_of(place, 1, WEIGHTS))
    with pytest.raises(CheckpointError, match=r"v000001/weights\.safetensors: No such file"):
        store.weights(1)
    with pytest.raises(CheckpointError, match="version 1 lists no file"):
        store.file_bytes(1, "../../etc/passwd")


def test_another_versions_files_are_found(place: Place) -> None:
    store = fill(place.store(), 1, 2)
    second = place.read(key_of(place, 2, MANIFEST))
    place.write("v000001/manifest.sha256", place.read("v000002/manifest.sha256"))
    place.write(key_of(place, 1, MANIFEST), second)
    with pytest.raises(CheckpointError, match="says version 2, expected 1"):
        store.manifest(1)


def test_no_pickle_is_ever_read(place: Place) -> None:
    """A file that is no safetensors is refused even where its hash is right."""
    store = fill(place.store(), 1)
    evil = pickle.dumps({"weights": 1})
    read = store.manifest(1)
    entry = read.files[WEIGHTS].model_copy(
        update={"bytes": len(evil), "sha256": hashlib.sha256(evil).hexdigest()}
    )
    forged = read.model_copy(update={"files": {**read.files, WEIGHTS: entry}}).model_dump_json().encode()
    line = f"{hashlib.sha256(forged).hexdigest()}  {MANIFEST}\n".encode()
    place.write("v000001/manifest.sha256", line)
    for name, data in ((MANIFEST, forged), (WEIGHTS, evil)):
        place.write(key_of(place, 1, name), data)
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}: .*[Hh]eader"):
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
        patched.setattr(checkpoint_files, "write_synced", full)
        with pytest.raises(OSError, match="No space left"):
            store.save(manifest(2), tensors(2), tensors(2))
    assert store.versions() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["v000001"]
    store.save(manifest(2), tensors(2), tensors(2))
    assert store.verify(2).version == 2


SAVER = """
import sys
from pathlib import Path
from tests.shared.adapters.checkpoint_versions import CheckpointStore, folder, manifest, tensors
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


def test_a_pointer_remembers_where_it_stood(place: Place) -> None:
    store = fill(place.store(), 1, 2, 3)
    for version in (1, 2, 3):
        store.point(Pointer.PROMOTED, version, stage="paper")
    assert place.store().pointer(Pointer.PROMOTED) == Pointed(3, "paper", (1, 2))
    with pytest.raises(CheckpointError, match="no version 9"):
        store.point(Pointer.BEST, 9)
    assert store.pointer(Pointer.BEST) is None


def test_a_pointer_that_is_left_or_refused_stays(place: Place) -> None:
    store = fill(place.store(), 1)
    store.point(Pointer.BEST, 1, stage="paper")
    at = Pointed(1, "paper", ())
    assert store.move(Pointer.BEST, lambda _: None) == (at, at)

    def refuse(_: Pointed | None) -> Pointed | None:
        raise CheckpointError("not this one")

    with pytest.raises(CheckpointError, match="not this one"):
        store.move(Pointer.BEST, refuse)
    assert store.pointer(Pointer.BEST) == at


def test_pointers_moved_at_once_lose_no_move(place: Place) -> None:
    """Each mover adds to the history that it read; a lost move would be missing there."""
    fill(place.store(), 0)
    movers = [threading.Thread(target=_move_often, args=(place, number)) for number in range(3)]
    for mover in movers:
        mover.start()
    for mover in movers:
        mover.join()
    pointed = place.store().pointer(Pointer.BEST)
    assert pointed is not None
    stood = [*pointed.history, pointed.version]
    assert sorted(stood) == sorted(10 * number + turn for number in range(3) for turn in range(4))
    for number in range(3):  # each one's moves in its own order
        assert [at for at in stood if at // 10 == number] == [10 * number + turn for turn in range(4)]


def _move_often(place: Place, number: int) -> None:
    store = place.store()
    for turn in range(4):
        store.move(Pointer.BEST, lambda at, turn=turn: moved(at, 10 * number + turn, None))  # type: ignore[misc]


def test_a_damaged_pointer_says_so(place: Place) -> None:
    store = fill(place.store(), 1)
    store.point(Pointer.LATEST, 1)
    place.write("latest.json", b"{")
    with pytest.raises(CheckpointError, match=r"latest\.json: damaged pointer"):
        store.pointer(Pointer.LATEST)
    with pytest.raises(CheckpointError, match=r"latest\.json: damaged pointer"):
        store.point(Pointer.LATEST, 1)


def test_garbage_is_what_is_neither_new_nor_pointed_at(place: Place) -> None:
    store = fill(place.store(), *range(10))
    store.point(Pointer.BEST, 2)
    store.point(Pointer.PROMOTED, 0)
    store.point(Pointer.PROMOTED, 1)
    store.point(Pointer.LATEST, 9)
    assert store.collect_garbage(keep=3) == [3, 4, 5, 6]
    assert store.versions() == [0, 1, 2, 7, 8, 9]  # 0: where a roll-back of `promoted` goes
    assert store.collect_garbage(keep=0) == [7, 8]
    assert [store.verify(version).version for version in store.versions()] == [0, 1, 2, 9]


def test_a_folder_may_be_given_as_a_url(tmp_path: Path) -> None:
    filled(tmp_path / "a b", 3)
    store = CheckpointStore((tmp_path / "a b").as_uri())
    assert store.versions() == [3]
    assert store.root == tmp_path / "a b"
    assert store.name == str(tmp_path / "a b")


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "s3://", "https://bucket.s3.amazonaws.com/x", "memory://", "s3://[x/y"]
)
def test_a_url_of_no_store_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"checkpoint store.*expected.* s3://bucket/prefix"):
        CheckpointStore(url)
