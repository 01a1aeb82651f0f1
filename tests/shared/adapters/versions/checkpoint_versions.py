"""Small checkpoint versions for tests, and the backends that store them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
import numpy as np
import pytest
from obstore.store import MemoryStore

from shared.adapters.versions.manifest import MANIFEST_SHA256, Manifest
from shared.adapters.versions.object_store import ObjectFiles
from shared.adapters.versions.store import CheckpointStore
from tests.s3_server import SIGNED

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


def fill(store: CheckpointStore, *versions: int) -> CheckpointStore:
    for version in versions:
        store.save(manifest(version), tensors(version), tensors(version + 100))
    return store


def filled(root: Path, *versions: int) -> CheckpointStore:
    return fill(CheckpointStore(root), *versions)


def equal(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]) for name in one
    )


def folder(store: CheckpointStore, version: int) -> Path:
    """The folder of a version; only for a store on the file system."""
    assert store.root is not None
    return store.root / f"v{version:06d}"


class Place(Protocol):
    """A storage location, with access to its files that bypasses the store."""

    def store(self) -> CheckpointStore:
        """A new store object, as another process would open it."""

    def read(self, key: str) -> bytes:
        """Contents of a file."""

    def write(self, key: str, data: bytes) -> None:
        """Replace the contents of a file."""

    def remove(self, key: str) -> None:
        """Delete a file."""


@dataclass(frozen=True)
class InFolder:
    """A folder."""

    root: Path

    def store(self) -> CheckpointStore:
        return CheckpointStore(self.root)

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        (self.root / key).write_bytes(data)

    def remove(self, key: str) -> None:
        (self.root / key).unlink()


@dataclass(frozen=True)
class InMemory:
    """obstore's in-memory store."""

    objects: MemoryStore

    def store(self) -> CheckpointStore:
        return CheckpointStore(ObjectFiles("memory://", lambda: self.objects))

    def read(self, key: str) -> bytes:
        return bytes(self.objects.get(key).bytes())

    def write(self, key: str, data: bytes) -> None:
        self.objects.put(key, data)

    def remove(self, key: str) -> None:
        self.objects.delete(key)


@dataclass(frozen=True)
class InBucket:
    """A bucket of a real server, with plain HTTP to bypass the store."""

    bucket: str
    prefix: str = "runs/one"

    @property
    def url(self) -> str:
        return f"s3://{self.bucket.rpartition('/')[2]}/{self.prefix}"

    def store(self) -> CheckpointStore:
        return CheckpointStore(self.url)

    def read(self, key: str) -> bytes:
        return httpx.get(self._at(key), headers=SIGNED).raise_for_status().content

    def write(self, key: str, data: bytes) -> None:
        httpx.put(self._at(key), content=data, headers=SIGNED).raise_for_status()

    def remove(self, key: str) -> None:
        httpx.delete(self._at(key), headers=SIGNED).raise_for_status()

    def _at(self, key: str) -> str:
        return f"{self.bucket}/{self.prefix}/{key}"


def new_place(request: pytest.FixtureRequest) -> Place:
    """An empty location of the kind that the fixture's parameter names: folder, memory or bucket."""
    match request.param:
        case "folder":
            return InFolder(request.getfixturevalue("tmp_path") / "store")
        case "memory":
            return InMemory(MemoryStore())
        case _:
            return InBucket(request.getfixturevalue("bucket"))


def key_of(place: Place, version: int, name: str) -> str:
    """Key of a version's file in a location."""
    head = f"v{version:06d}"
    if isinstance(place, InFolder) or name == MANIFEST_SHA256:
        return f"{head}/{name}"
    return f"{head}/{place.read(f'{head}/{MANIFEST_SHA256}').split()[0].decode()}/{name}"
