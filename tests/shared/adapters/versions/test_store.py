"""The store on every backend: atomic versions, detection of damage, pointers, garbage collection."""

import errno
import hashlib
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.adapters.files import read_beneath, sync, write_synced
from shared.adapters.versions import directory as checkpoint_files
from shared.adapters.versions.directory import MAX_SMALL_BYTES, DirectoryFiles
from shared.adapters.versions.manifest import (
    MANIFEST,
    MANIFEST_SHA256,
    TRAINING,
    WEIGHTS,
    Pointed,
    Pointer,
    PointerHistoryEntry,
    moved,
    stage_of,
)
from shared.adapters.versions.object_store import ObjectFiles
from shared.adapters.versions.store import CheckpointStore, Collected
from shared.errors import CheckpointError, SettingsError, StoreUnavailableError
from tests.conftest import ROOT
from tests.shared.adapters.versions.checkpoint_versions import (
    InFolder,
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

#: All files of a version.
FILES = (WEIGHTS, TRAINING, MANIFEST, MANIFEST_SHA256)


@pytest.fixture(params=["folder", "memory", "bucket"])
def place(request: pytest.FixtureRequest) -> Place:
    return new_place(request)


def test_a_saved_version_is_read_back(place: Place) -> None:
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


def test_a_version_may_have_no_training_tensors(place: Place) -> None:
    store = place.store()
    store.save(manifest(0), tensors(0), {})
    assert store.training(0) == {}


def test_tensors_of_some_megabytes_are_read_back(place: Place) -> None:
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
    assert store.collect_garbage(keep=1) == Collected(())


def test_a_version_is_never_overwritten(place: Place) -> None:
    fill(place.store(), 4)
    store = place.store()
    with pytest.raises(CheckpointError, match="version 4 exists already"):
        store.save(manifest(4), tensors(9), tensors(9))
    assert equal(store.weights(4), tensors(4))


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits_and_truncated_files_are_detected(place: Place, name: str) -> None:
    store = fill(place.store(), 1, 2)
    key = key_of(place, 2, name)
    intact = place.read(key)
    flipped = bytearray(intact)
    flipped[len(intact) // 2] ^= 1
    for damaged in (bytes(flipped), intact[:-1], b""):
        place.write(key, damaged)
        with pytest.raises(CheckpointError, match="v000002/"):
            store.verify(2)
        valid, refused = store.newest_valid()
        assert valid is not None
        assert (valid.version, len(refused)) == (1, 1)
    place.write(key, intact)
    assert store.verify(2).version == 2


@given(data=st.data())
def test_a_flipped_bit_anywhere_is_detected(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = filled(tmp_path_factory.mktemp("store"), 1, 2)
    path = folder(store, 2) / data.draw(st.sampled_from(FILES))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="v000002/"):
        store.verify(2)


def test_missing_files_are_detected(place: Place) -> None:
    store = fill(place.store(), 1)
    place.remove(key_of(place, 1, WEIGHTS))
    with pytest.raises(CheckpointError, match=r"v000001/weights\.safetensors: No such file"):
        store.weights(1)
    with pytest.raises(CheckpointError, match="version 1 lists no file"):
        store.file_bytes(1, "../../etc/passwd")


def test_files_of_another_version_are_detected(place: Place) -> None:
    store = fill(place.store(), 1, 2)
    second = place.read(key_of(place, 2, MANIFEST))
    place.write("v000001/manifest.sha256", place.read("v000002/manifest.sha256"))
    place.write(key_of(place, 1, MANIFEST), second)
    with pytest.raises(CheckpointError, match="says version 2, expected 1"):
        store.manifest(1)


def test_a_pickle_is_never_read(place: Place) -> None:
    """A file that is not safetensors is refused even if its hash is right."""
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


def test_a_non_finite_number_is_never_saved(place: Place) -> None:
    with pytest.raises(ValidationError, match=r"metrics\.loss\n.*finite number"):
        type(manifest(1))(**{**manifest(1).model_dump(), "metrics": {"loss": math.nan}})
    store = place.store()
    unchecked = manifest(1).model_copy(update={"metrics": {"loss": math.nan}})
    with pytest.raises(CheckpointError, match=r"version 1 cannot be saved: manifest: metrics\.loss"):
        store.save(unchecked, tensors(1), tensors(1))
    assert store.versions() == []


def test_a_manifest_too_large_to_read_is_never_saved(place: Place) -> None:
    large = manifest(1).model_copy(update={"state": {"text": "x" * MAX_SMALL_BYTES}})
    with pytest.raises(CheckpointError, match=r"version 1 cannot be saved: manifest: .* bytes are more than"):
        place.store().save(large, tensors(1), tensors(1))


@pytest.mark.parametrize("name", FILES)
def test_a_file_over_the_limit_is_not_read(place: Place, name: str) -> None:
    store = fill(place.store(), 1, 2)
    place.write(key_of(place, 2, name), b"x" * (MAX_SMALL_BYTES + 1))
    with pytest.raises(CheckpointError, match=rf"{name}: {MAX_SMALL_BYTES + 1} bytes, expected at most \d+"):
        store.verify(2)


def test_a_file_larger_than_the_memory_is_refused(tmp_path: Path) -> None:
    store = filled(tmp_path, 1)
    os.truncate(folder(store, 1) / WEIGHTS, 1 << 42)
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}: 4398046511104 bytes, expected at most"):
        store.weights(1)


def test_files_and_links_are_not_versions_and_block_none(tmp_path: Path) -> None:
    store = filled(tmp_path / "store", 1)
    filled(tmp_path / "other", 5)
    (tmp_path / "store" / "v000009").write_text("a file")
    (tmp_path / "store" / "v000005").symlink_to(tmp_path / "other" / "v000005")
    assert store.versions() == [1]
    for version in (5, 9):
        store.save(manifest(version), tensors(version), {})
        assert store.verify(version).version == version
    assert (tmp_path / "store" / "v000009.no-version").read_text() == "a file"


@pytest.mark.parametrize("name", FILES)
def test_links_pipes_and_folders_are_not_read_as_files(tmp_path: Path, name: str) -> None:
    """Even a symbolic link to an intact file is refused, because the file is outside the store."""
    store = filled(tmp_path / "store", 1, 2)
    path = folder(store, 2) / name
    path.rename(tmp_path / name)
    path.symlink_to(tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"v000002/{name}: a symbolic link, which is not followed"):
        store.verify(2)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match=rf"v000002/{name}: not a regular file"):
        store.verify(2)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=rf"v000002/{name}: not a regular file"):
        store.verify(2)
    valid, refused = store.newest_valid()
    assert valid is not None
    assert (valid.version, len(refused)) == (1, 1)


def test_a_pointer_that_is_a_link_is_damaged_and_is_replaced(tmp_path: Path) -> None:
    store = filled(tmp_path / "store", 1)
    store.point(Pointer.BEST, 1)
    pointer = tmp_path / "store" / "best.json"
    pointer.rename(tmp_path / "outside.json")
    pointer.symlink_to(tmp_path / "outside.json")
    outside = (tmp_path / "outside.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"best\.json: damaged pointer: a symbolic link"):
        store.pointer(Pointer.BEST)
    store.point(Pointer.BEST, 1, stage="paper")
    assert not pointer.is_symlink()
    assert (tmp_path / "outside.json").read_bytes() == outside


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ENOTDIR])
def test_a_file_that_cannot_be_read_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store = filled(tmp_path, 1, 2)
    store.point(Pointer.BEST, 1)

    def refuse(root: Path, name: str, *, limit: int) -> bytes:
        if name in ("v000002/manifest.sha256", "best.json"):
            raise OSError(code, os.strerror(code), name)
        return read_beneath(root, name, limit=limit)

    monkeypatch.setattr(checkpoint_files, "read_beneath", refuse)
    valid, refused = store.newest_valid()
    assert valid is not None
    assert (valid.version, len(refused)) == (1, 1)
    assert os.strerror(code) in str(refused[0])
    with pytest.raises(CheckpointError, match=rf"damaged pointer: {os.strerror(code)}"):
        store.pointer(Pointer.BEST)


def test_a_folder_that_cannot_be_listed_is_an_unavailable_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path, 1)

    def refuse(_: object) -> object:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StoreUnavailableError, match="Permission denied"):
        store.newest_valid()


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
from tests.shared.adapters.versions.checkpoint_versions import CheckpointStore, folder, manifest, tensors
store = CheckpointStore(Path(sys.argv[1]))
version = (store.versions() or [-1])[-1]
while True:
    version += 1
    store.save(manifest(version), tensors(version), tensors(version))
    print(version, flush=True)
"""


def test_a_killed_writer_leaves_only_complete_versions(tmp_path: Path) -> None:
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


def test_a_pointer_remembers_earlier_versions(place: Place) -> None:
    store = fill(place.store(), 1, 2, 3)
    for version in (1, 2, 3):
        store.point(Pointer.PROMOTED, version, stage="paper")
    earlier = (PointerHistoryEntry(1, "paper"), PointerHistoryEntry(2, "paper"))
    assert place.store().pointer(Pointer.PROMOTED) == Pointed(3, "paper", earlier)
    with pytest.raises(CheckpointError, match="no version 9"):
        store.point(Pointer.BEST, 9)
    assert store.pointer(Pointer.BEST) is None


def test_pointer_files_of_older_releases_without_stages_and_hashes_are_read(place: Place) -> None:
    store = fill(place.store(), 1, 2, 3)
    place.write("promoted.json", b'{"version":2,"stage":"live","history":[0,1]}')
    earlier = (PointerHistoryEntry(0, None), PointerHistoryEntry(1, None))
    assert store.pointer(Pointer.PROMOTED) == Pointed(2, "live", earlier)
    store.point(Pointer.PROMOTED, 3, stage="paper")
    assert store.pointer(Pointer.PROMOTED) == Pointed(3, "paper", (*earlier, PointerHistoryEntry(2, "live")))


def test_a_promoted_pointer_with_a_missing_or_unknown_stage_means_paper(tmp_path: Path) -> None:
    store = filled(tmp_path, 2)
    for stage in (b"null", b'"other"'):
        (tmp_path / "promoted.json").write_bytes(b'{"version":2,"stage":%b,"history":[]}' % stage)
        pointed = store.pointer(Pointer.PROMOTED)
        assert pointed is not None
        assert (pointed.stage, stage_of(pointed)) == (None, "paper")


def test_a_pointer_remembers_a_hundred_versions(place: Place) -> None:
    store = fill(place.store(), 1)
    long = Pointed(1, None, tuple(PointerHistoryEntry(number, None) for number in range(150)))
    store.move(Pointer.BEST, lambda _: moved(long, 1, None))
    pointed = store.pointer(Pointer.BEST)
    assert pointed is not None
    assert [entry.version for entry in pointed.history] == [*range(51, 150), 1]


def test_a_move_is_undone_unless_the_pointer_moved_again(place: Place) -> None:
    store = fill(place.store(), 1, 2)
    for first in (None, Pointed(1, "paper", ())):
        before, after = store.move(Pointer.BEST, lambda at: moved(at, 2, "live"))
        assert before == first
        store.move_back(Pointer.BEST, before, after)
        assert store.pointer(Pointer.BEST) == first
        store.point(Pointer.BEST, 1, stage="paper")
        store.move_back(Pointer.BEST, before, after)
        assert store.pointer(Pointer.BEST) == moved(first, 1, "paper")
        store.move(Pointer.BEST, lambda _: Pointed(1, "paper", ()))


def test_a_pointer_stays_if_the_move_declines_or_raises(place: Place) -> None:
    store = fill(place.store(), 1)
    store.point(Pointer.BEST, 1, stage="paper")
    at = Pointed(1, "paper", ())
    assert store.move(Pointer.BEST, lambda _: None) == (at, at)

    def refuse(_: Pointed | None) -> Pointed | None:
        raise CheckpointError("not this one")

    with pytest.raises(CheckpointError, match="not this one"):
        store.move(Pointer.BEST, refuse)
    assert store.pointer(Pointer.BEST) == at


def test_concurrent_moves_of_a_pointer_lose_none(place: Place) -> None:
    """Each mover appends to the history that it read, so a lost move would be missing there."""
    fill(place.store(), 0)
    movers = [threading.Thread(target=_move_often, args=(place, number)) for number in range(3)]
    for mover in movers:
        mover.start()
    for mover in movers:
        mover.join()
    pointed = place.store().pointer(Pointer.BEST)
    assert pointed is not None
    named = [*(entry.version for entry in pointed.history), pointed.version]
    assert sorted(named) == sorted(10 * number + turn for number in range(3) for turn in range(4))
    for number in range(3):  # the moves of each thread keep their order
        assert [at for at in named if at // 10 == number] == [10 * number + turn for turn in range(4)]


def _move_often(place: Place, number: int) -> None:
    store = place.store()
    for turn in range(4):
        store.move(Pointer.BEST, lambda at, turn=turn: moved(at, 10 * number + turn, None))  # type: ignore[misc]


DAMAGED = [b"", b"{", b'{"version":7}', b"x" * (MAX_SMALL_BYTES + 1)]


@pytest.mark.parametrize("content", DAMAGED, ids=["empty", "cut", "another", "large"])
def test_a_damaged_pointer_is_reported_and_can_be_set_again(place: Place, content: bytes) -> None:
    store = fill(place.store(), 1)
    store.point(Pointer.LATEST, 1)
    file = json.loads(place.read("latest.json"))
    if content == b'{"version":7}':  # only the version differs, so the hash does not match
        content = json.dumps({**file, "version": 7}).encode()
    place.write("latest.json", content)
    with pytest.raises(CheckpointError, match=r"latest\.json: damaged pointer: .*the next version sets it"):
        store.pointer(Pointer.LATEST)
    with pytest.raises(CheckpointError, match=r"latest\.json: damaged pointer"):
        store.move(Pointer.LATEST, lambda at: moved(at, 1, None))
    pointers = store.pointers()
    assert isinstance(pointers[Pointer.LATEST], CheckpointError)
    assert pointers[Pointer.BEST] is None
    store.point(Pointer.LATEST, 1)
    assert store.pointer(Pointer.LATEST) == Pointed(1, None, ())


@pytest.mark.parametrize("name", Pointer)
def test_no_version_is_removed_while_a_pointer_is_damaged(place: Place, name: Pointer) -> None:
    store = fill(place.store(), 0, 1, 2)
    place.write(f"{name}.json", b"{")
    collected = store.collect_garbage(keep=1)
    assert collected.removed == ()
    assert f"{name}.json: damaged pointer" in collected.obstacle
    assert store.versions() == [0, 1, 2]
    store.point(name, 2)
    assert store.collect_garbage(keep=1) == Collected((0, 1))


def test_garbage_collection_keeps_new_versions_and_those_pointers_need(place: Place) -> None:
    store = fill(place.store(), *range(10))
    store.point(Pointer.BEST, 2)
    store.point(Pointer.PROMOTED, 0)
    for stage in ("paper", "live"):
        store.point(Pointer.PROMOTED, 1, stage=stage)
    store.point(Pointer.LATEST, 9)
    assert store.collect_garbage(keep=3) == Collected((3, 4, 5, 6))
    assert store.versions() == [0, 1, 2, 7, 8, 9]  # 0: a roll-back of `promoted` would restore it
    assert store.collect_garbage(keep=0) == Collected((7, 8))
    assert [store.verify(version).version for version in store.versions()] == [0, 1, 2, 9]


def test_garbage_collection_keeps_the_newest_intact_version(place: Place) -> None:
    store = fill(place.store(), *range(6))
    for version in (3, 4, 5):
        place.remove(key_of(place, version, WEIGHTS))
    assert store.collect_garbage(keep=3) == Collected((0, 1))
    assert store.verify(2).version == 2
    place.remove(key_of(place, 2, WEIGHTS))
    collected = store.collect_garbage(keep=3)
    assert collected.removed == ()
    assert "no version is intact" in collected.obstacle
    assert store.versions() == [2, 3, 4, 5]


@pytest.mark.parametrize("moment", ["tidy", "remove"])
def test_a_version_that_a_pointer_moves_to_during_a_collection_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    store = fill(place.store(), 0, 1, 2)
    other, files = place.store(), backend_of(place)
    act = getattr(files, moment)

    def point_first(*arguments: object) -> object:
        other.point(Pointer.PROMOTED, 1)
        return act(*arguments)

    monkeypatch.setattr(files, moment, point_first)
    assert store.collect_garbage(keep=1).removed == (0,)
    assert store.verify(1).version == 1


def test_a_collection_tolerates_a_concurrent_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = fill(place.store(), *range(4)), place.store()
    files = backend_of(place)
    remove = files.remove
    begun: list[int] = []

    def overtaken(self: object, version: int, *rest: object) -> object:
        begun.append(version)
        if len(begun) == 1:
            assert other.collect_garbage(keep=1).removed == (0, 1, 2)
        return remove(self, version, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "remove", overtaken)
    assert store.collect_garbage(keep=1) == Collected(())
    assert store.versions() == [3]


def backend_of(place: Place) -> type[DirectoryFiles] | type[ObjectFiles]:
    return DirectoryFiles if isinstance(place, InFolder) else ObjectFiles


def test_concurrent_collections_may_finish_an_interrupted_removal(tmp_path: Path) -> None:
    tree = tmp_path / ".removing-v000001"
    for number in range(40):
        (tree / str(number)).mkdir(parents=True)
    with ThreadPoolExecutor(3) as pool:
        for finished in [pool.submit(DirectoryFiles(tmp_path).tidy) for _ in range(3)]:
            finished.result()
    assert not tree.exists()


def test_no_pointer_moves_between_the_check_and_the_removal_of_a_folder(tmp_path: Path) -> None:
    filled(tmp_path, 0, 1)
    other, waited = CheckpointStore(tmp_path), []
    moving = threading.Thread(target=other.move, args=(Pointer.BEST, lambda at: moved(at, 1, None)))

    def is_protected() -> bool:
        moving.start()
        moving.join(0.1)
        waited.append(moving.is_alive())
        return False

    assert DirectoryFiles(tmp_path).remove(0, is_protected)
    moving.join()
    assert waited == [True]
    assert other.versions() == [1]


def test_a_folder_may_be_given_as_a_url(tmp_path: Path) -> None:
    filled(tmp_path / "a b", 3)
    store = CheckpointStore((tmp_path / "a b").as_uri())
    assert store.versions() == [3]
    assert store.root == tmp_path / "a b"
    assert store.name == str(tmp_path / "a b")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/x",
        "s3://",
        "https://bucket.s3.amazonaws.com/x",
        "memory://",
        "s3://[x/y",
        "s3:/bucket/x",
        "S3:bucket",
        "file:/tmp/x",
        "ftp:/host",
    ],
)
def test_the_url_of_another_kind_of_store_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"checkpoint store.*expected.* s3://bucket/prefix"):
        CheckpointStore(url)


def test_a_version_whose_last_sync_fails_is_withdrawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        if folder == tmp_path:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(folder)

    store = CheckpointStore(tmp_path)
    with monkeypatch.context() as disk:
        disk.setattr("shared.adapters.versions.directory.sync", refuse)
        with pytest.raises(OSError, match="No space left"):
            store.save(manifest(0), tensors(0), tensors(0))
    assert store.versions() == []
    assert list(tmp_path.glob("*writing*")) == []
    store.save(manifest(0), tensors(0), tensors(0))
    assert store.versions() == [0]
