"""Checkpoints whose writer is killed anywhere, and that are damaged anywhere: the one before is used."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from shared.adapters.checkpoint_files import MANIFEST, MANIFEST_SHA256
from shared.adapters.checkpoints import TRAINING, WEIGHTS, CheckpointStore, Pointer
from tests.conftest import ROOT
from tests.faults.counts import rounds, tell
from tests.shared.adapters.checkpoint_versions import equal, filled, folder, tensors

#: All that a version consists of.
FILES = (WEIGHTS, TRAINING, MANIFEST, MANIFEST_SHA256)


@rounds(1, 10)
def test_a_writer_killed_before_any_step_leaves_whole_versions_only(tmp_path: Path, count: int) -> None:
    """At every step at which files are made, moved or removed, in turn; each time the store goes on."""
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
        for _ in range(count):
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
    tell("checkpoint writer killed", kills=kills, versions=store.versions()[-1] + 1, damaged=0)


@rounds(100, 2_000)
def test_a_flipped_bit_or_a_cut_tail_is_found_and_the_version_before_used(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(6)
    store = filled(tmp_path, 1, 2)
    found = 0
    for number in range(count):
        path = folder(store, 2) / FILES[number % len(FILES)]
        whole = path.read_bytes()
        if rng.random() < 0.5:
            os.truncate(path, int(rng.integers(len(whole))))
        else:
            damaged = bytearray(whole)
            damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
        valid, refused = store.newest_valid()
        assert valid is not None
        found += (valid.version, len(refused)) == (1, 1)
        path.write_bytes(whole)
    tell("checkpoint damaged", damaged=count, found=found, missed=count - found)
    assert found == count
    assert store.verify(2).version == 2
