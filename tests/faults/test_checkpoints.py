"""Checkpoints whose writer is killed or whose files are damaged: the previous version is used."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from shared.adapters.versions.manifest import MANIFEST, MANIFEST_SHA256, TRAINING, WEIGHTS, Pointer
from shared.adapters.versions.store import CheckpointStore
from shared.errors import CheckpointError
from tests.conftest import ROOT
from tests.faults.checkpoint_writer import publish
from tests.faults.counts import print_figures, rounds, steps
from tests.shared.adapters.versions.checkpoint_versions import (
    InBucket,
    InFolder,
    equal,
    fill,
    filled,
    key_of,
    new_place,
    tensors,
)

#: The files of a version.
FILES = (WEIGHTS, TRAINING, MANIFEST, MANIFEST_SHA256)


@rounds(1, 10)
def test_a_writer_killed_before_any_step_leaves_only_intact_versions(tmp_path: Path, count: int) -> None:
    """Kill it in turn before every step that creates, moves or removes files; the store stays usable."""
    store = CheckpointStore(tmp_path)
    filled(tmp_path, 0, 1)
    store.point(Pointer.LATEST, 1)
    kills = 0
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.checkpoint_writer", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        for _ in steps(count):
            step, was_killed = 0, True
            while was_killed:
                newest = store.versions()[-1]
                print(step, file=writer.stdin, flush=True)
                was_killed = writer.stdout.readline() == "1\n"
                kills += was_killed
                step += 1
                versions = store.versions()
                assert versions[-1] >= newest
                for version in versions:
                    assert store.verify(version).version == version
                    assert equal(store.weights(version), tensors(version))
                pointed = store.pointer(Pointer.LATEST)
                assert pointed is not None
                assert pointed.version in versions
            assert step > 20
            assert list(tmp_path.glob(".writing-*")) == list(tmp_path.glob(".removing-*")) == []
    print_figures("checkpoint writer killed", kills=kills, versions=store.versions()[-1] + 1, damaged=0)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> InFolder | InBucket:
    made = new_place(request)
    assert isinstance(made, InFolder | InBucket)
    return made


def rounds_in_stores(folder: tuple[int, int], bucket: tuple[int, int]) -> pytest.MarkDecorator:
    """Like `rounds`, for a folder and for a bucket, which is slower: `(few, many)` for each."""
    few, many = zip(folder, bucket, strict=True)
    return pytest.mark.parametrize(
        ("place", "count"),
        [
            *zip(("folder", "bucket"), few, strict=True),
            *(
                pytest.param(*case, marks=pytest.mark.soak)
                for case in zip(("folder", "bucket"), many, strict=True)
            ),
        ],
        indirect=["place"],
    )


@rounds_in_stores(folder=(20, 1_000), bucket=(10, 200))
def test_a_writer_killed_at_any_moment_leaves_a_loadable_latest_version(
    place: InFolder | InBucket, count: int
) -> None:
    rng = np.random.default_rng(5)
    store = fill(place.store(), 0, 1)
    store.point(Pointer.LATEST, 1)
    begin = time.monotonic()
    root = place.root if isinstance(place, InFolder) else place.url
    publish(root)
    usual = time.monotonic() - begin
    kills = loaded = 0
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.checkpoint_writer", str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        while kills < count:
            newest = store.versions()[-1]
            print("after", rng.uniform(0.0, 1.5 * usual), file=writer.stdin, flush=True)
            kills += writer.stdout.readline() == "1\n"
            valid, refused = store.newest_valid()
            assert valid is not None
            assert valid.version >= newest
            assert refused == []
            pointed = store.pointer(Pointer.LATEST)
            assert pointed is not None
            assert equal(store.weights(pointed.version), tensors(pointed.version))
            loaded += 1
    publish(root)  # incomplete files do not disturb it
    print_figures(
        "checkpoint writer killed at random", kills=kills, loaded=loaded, versions=store.versions()[-1] + 1
    )
    assert store.newest_valid()[1] == []


@rounds_in_stores(folder=(100, 2_000), bucket=(20, 400))
def test_a_damaged_version_is_detected_and_the_previous_one_is_used(
    place: InFolder | InBucket, count: int
) -> None:
    rng = np.random.default_rng(6)
    store = fill(place.store(), 1, 2)
    keys = [key_of(place, 2, name) for name in FILES]
    contents = [place.read(key) for key in keys]
    found = 0
    for number in steps(count):
        key, intact = keys[number % len(keys)], contents[number % len(keys)]
        place.write(key, damaged(intact, rng))
        valid, refused = store.newest_valid()
        assert valid is not None
        found += (valid.version, len(refused)) == (1, 1)
        place.write(key, intact)
    print_figures("checkpoint damaged", damaged=count, found=found, missed=count - found)
    assert found == count
    assert store.verify(2).version == 2


@rounds_in_stores(folder=(50, 1_000), bucket=(10, 200))
def test_a_damaged_pointer_is_detected_and_prevents_removal_of_versions(
    place: InFolder | InBucket, count: int
) -> None:
    """It may have pointed to any version; the next published version sets it again."""
    rng = np.random.default_rng(7)
    store = fill(place.store(), 1, 2, 3)
    for name in Pointer:
        store.point(name, 1, stage="paper")
        store.point(name, 2, stage="paper")
    found = 0
    for number in steps(count):
        name = list(Pointer)[number % len(Pointer)]
        intact = place.read(f"{name}.json")
        place.write(f"{name}.json", damaged(intact, rng))
        before = store.pointers()[name]
        found += isinstance(before, CheckpointError)
        assert store.collect_garbage(keep=1).removed == ()
        store.point(name, 2, stage="paper")
        pointed = store.pointer(name)
        assert pointed is not None
        assert pointed.version == 2
        place.write(f"{name}.json", intact)
    print_figures("pointer damaged", damaged=count, found=found, missed=count - found)
    assert found == count
    assert store.versions() == [1, 2, 3]


def damaged(intact: bytes, rng: np.random.Generator) -> bytes:
    """Truncate the data, or flip one bit."""
    if rng.random() < 0.5:
        return intact[: rng.integers(len(intact))]
    flipped = bytearray(intact)
    flipped[rng.integers(len(intact))] ^= 1 << int(rng.integers(8))
    return bytes(flipped)
