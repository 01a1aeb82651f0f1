"""Checkpoint versions in a folder: written aside, hashed, synced, renamed; verified whenever read.

A version is a folder `v000042` with `weights.safetensors`, `training.safetensors` (optimizer and random
state), `manifest.json`, which holds the SHA-256 of both, and `manifest.sha256`, which holds its own (as
`sha256sum -c` reads it). It appears whole or not at all. No pickle is ever read. Pointers (`latest`,
`best`, `promoted`) are small JSON files, replaced atomically.
"""

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from shared.adapters.files import sync, write_synced, write_whole
from shared.errors import CheckpointError
from shared.messages.schemas import Fingerprint, now

Tensors = Mapping[str, npt.NDArray[np.generic]]

WEIGHTS = "weights.safetensors"
TRAINING = "training.safetensors"
MANIFEST = "manifest.json"
MANIFEST_SHA256 = "manifest.sha256"
_FOLDER = re.compile(r"v(\d{6,})")
_LIBRARIES = ("torch", "numpy", "safetensors")


class Pointer(StrEnum):
    """Names that stand for a version."""

    LATEST = "latest"
    BEST = "best"
    PROMOTED = "promoted"


class FileEntry(BaseModel):
    """Size and hash of one file of a version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int = Field(ge=0)
    sha256: Fingerprint


class Manifest(BaseModel):
    """What a version is: where in training it was made, of what, and what its files must hash to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    version: int = Field(ge=0)
    episode: int = Field(ge=0)
    update: int = Field(ge=0)
    journal_position: int = Field(ge=0)  # number of trajectories of the journal that were learned from
    dataset: Fingerprint
    model: dict[str, JsonValue]  # sizes: the fields of ModelConfig
    settings: dict[str, JsonValue]
    metrics: dict[str, float]
    state: dict[str, JsonValue]  # counters and random state that are no arrays
    created_at: AwareDatetime = Field(default_factory=now)
    libraries: dict[str, str] = Field(default_factory=lambda: {n: installed_version(n) for n in _LIBRARIES})
    files: dict[str, FileEntry] = {}


class _PointerFile(BaseModel):
    """A pointer on disk, with the versions that it named before, the newest last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=0)
    stage: str | None = None
    history: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pointed:
    """Where a pointer stands, for which stage, and where it stood before."""

    version: int
    stage: str | None
    history: tuple[int, ...]


class CheckpointStore:
    """All versions in one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def versions(self) -> list[int]:
        """Every complete version, ascending; an empty or missing store has none."""
        if not self.root.is_dir():
            return []
        found = (_FOLDER.fullmatch(path.name) for path in self.root.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def save(self, manifest: Manifest, weights: Tensors, training: Tensors) -> Manifest:
        """Write one version; it exists only after everything is on disk.

        One process, the trainer, writes: what an earlier write left half done is removed here.

        Returns:
            The manifest with the files' sizes and hashes.
        Raises:
            CheckpointError: the version exists already.
            OSError: the disk refuses; nothing visible is left behind.
        """
        final = self.folder(manifest.version)
        if final.exists():
            raise CheckpointError(f"version {manifest.version} exists already in {self.root}")
        contents = {WEIGHTS: save_tensors(dict(weights)), TRAINING: save_tensors(dict(training))}
        entries = {
            name: FileEntry(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in contents.items()
        }
        complete = manifest.model_copy(update={"files": entries})
        contents[MANIFEST] = complete.model_dump_json(indent=2).encode()
        contents[MANIFEST_SHA256] = _sha256_line(contents[MANIFEST])
        for left_over in self.root.glob(".writing-*"):
            shutil.rmtree(left_over)
        aside = self.root / f".writing-{final.name}"
        try:
            aside.mkdir(parents=True)
            for name, data in contents.items():
                write_synced(aside / name, data)
            sync(aside)
            aside.rename(final)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        sync(self.root)
        return complete

    def manifest(self, version: int) -> Manifest:
        """The manifest of a version.

        Raises:
            CheckpointError: there is no such version, or its manifest is damaged.
        """
        path = self.folder(version) / MANIFEST
        try:
            data, line = path.read_bytes(), path.with_name(MANIFEST_SHA256).read_bytes()
        except FileNotFoundError as missing:
            if self.folder(version).exists():
                raise CheckpointError(f"{missing.filename}: {missing.strerror}") from missing
            have = ", ".join(str(v) for v in self.versions()[-5:]) or "none"
            raise CheckpointError(f"no version {version} in {self.root}; newest there: {have}") from missing
        if line != _sha256_line(data):
            raise CheckpointError(f"{path}: damaged manifest: its SHA-256 is not that of {MANIFEST_SHA256}")
        try:
            manifest = Manifest.model_validate_json(data)
        except ValidationError as invalid:
            problem = invalid.errors(include_url=False, include_input=False)[0]
            raise CheckpointError(f"{path}: damaged manifest: {problem['msg']}") from invalid
        if manifest.version != version:
            raise CheckpointError(f"{path}: says version {manifest.version}, expected {version}")
        return manifest

    def weights(self, version: int) -> dict[str, npt.NDArray[np.generic]]:
        """The network's weights, verified.

        Raises:
            CheckpointError: missing or damaged.
        """
        return self._tensors(version, WEIGHTS)

    def training(self, version: int) -> dict[str, npt.NDArray[np.generic]]:
        """Optimizer and random state, verified.

        Raises:
            CheckpointError: missing or damaged.
        """
        return self._tensors(version, TRAINING)

    def file_bytes(self, version: int, name: str) -> bytes:
        """One file of a version, verified against its manifest.

        Raises:
            CheckpointError: missing, or its size or SHA-256 is not the manifest's.
        """
        entry = self.manifest(version).files.get(name)
        path = self.folder(version) / name
        if entry is None:
            raise CheckpointError(f"version {version} lists no file {name}")
        try:
            data = path.read_bytes()
        except OSError as missing:
            raise CheckpointError(f"{path}: {missing.strerror}") from missing
        if len(data) != entry.bytes:
            raise CheckpointError(f"{path}: {len(data)} bytes, the manifest says {entry.bytes}")
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise CheckpointError(f"{path}: SHA-256 differs from the manifest's; the file is damaged")
        return data

    def verify(self, version: int) -> Manifest:
        """Check every file of a version.

        Raises:
            CheckpointError: the first thing that is wrong.
        """
        manifest = self.manifest(version)
        for name in (WEIGHTS, TRAINING):
            self._tensors(version, name)
        return manifest

    def newest_valid(self) -> tuple[Manifest | None, list[CheckpointError]]:
        """The newest version whose files are whole, and what was wrong with the newer ones."""
        refused: list[CheckpointError] = []
        for version in reversed(self.versions()):
            try:
                return self.verify(version), refused
            except CheckpointError as damaged:
                refused.append(damaged)
        return None, refused

    def pointer(self, name: Pointer) -> Pointed | None:
        """Where a pointer stands, or None when it was never set.

        Raises:
            CheckpointError: the pointer's file is damaged.
        """
        path = self._pointer_path(name)
        try:
            held = _PointerFile.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as invalid:
            raise CheckpointError(f"{path}: damaged pointer; delete it or set it again") from invalid
        return Pointed(held.version, held.stage, held.history)

    def point(self, name: Pointer, version: int, *, stage: str | None = None) -> None:
        """Make a pointer stand for a version.

        Raises:
            CheckpointError: there is no such version.
        """
        self.manifest(version)
        before = self.pointer(name)
        history = (*before.history, before.version)[-100:] if before else ()
        self._write_pointer(name, _PointerFile(version=version, stage=stage, history=history))

    def roll_back(self, name: Pointer, *, stage: str | None = None) -> Pointed:
        """Make a pointer stand where it stood before, for the stage it stands for now unless told another.

        Raises:
            CheckpointError: it never stood elsewhere, or that version is gone.
        """
        now_at = self.pointer(name)
        if now_at is None or not now_at.history:
            raise CheckpointError(f"pointer {name} has no earlier version to roll back to")
        earlier = now_at.history[-1]
        self.manifest(earlier)
        stage = stage or now_at.stage
        self._write_pointer(name, _PointerFile(version=earlier, stage=stage, history=now_at.history[:-1]))
        return Pointed(earlier, stage, now_at.history[:-1])

    def collect_garbage(self, *, keep: int) -> list[int]:
        """Remove all but the newest `keep` versions, the pointers' targets and a roll-back's target.

        Returns:
            The versions removed.
        """
        held = set(self.versions()[-keep:]) if keep > 0 else set()
        for name in Pointer:
            pointed = self.pointer(name)
            if pointed:
                held.add(pointed.version)
                if name is Pointer.PROMOTED:
                    held.update(pointed.history[-1:])
        removed = [version for version in self.versions() if version not in held]
        for left_over in self.root.glob(".removing-*"):
            shutil.rmtree(left_over)
        for version in removed:  # gone at once, then taken apart
            aside = self.root / f".removing-{self.folder(version).name}"
            self.folder(version).rename(aside)
            shutil.rmtree(aside)
        return removed

    def folder(self, version: int) -> Path:
        """Folder of a version, there or not."""
        return self.root / f"v{version:06d}"

    def _tensors(self, version: int, name: str) -> dict[str, npt.NDArray[np.generic]]:
        data = self.file_bytes(version, name)
        try:
            return dict(load_tensors(data))
        except SafetensorError as broken:
            raise CheckpointError(f"{self.folder(version) / name}: {broken}") from broken

    def _pointer_path(self, name: Pointer) -> Path:
        return self.root / f"{name}.json"

    def _write_pointer(self, name: Pointer, held: _PointerFile) -> None:
        write_whole(self._pointer_path(name), held.model_dump_json().encode())


def _sha256_line(manifest: bytes) -> bytes:
    """What `sha256sum manifest.json` prints."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()
