"""Checkpoint versions in a folder or an object store: hashed, whole or not there, verified whenever read.

A version `v000042` is `weights.safetensors`, `training.safetensors` (optimizer and random state),
`manifest.json`, which holds the SHA-256 of both, and `manifest.sha256`, which holds its own (as
`sha256sum -c` reads it). No pickle is ever read. Pointers (`latest`, `best`, `promoted`) are small JSON
files, replaced atomically.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import numpy.typing as npt
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from shared.adapters.checkpoint_files import MANIFEST, MANIFEST_SHA256, CheckpointFiles, DirectoryFiles
from shared.adapters.object_store import ObjectFiles
from shared.errors import CheckpointError, StoreAwayError
from shared.messages.schemas import Fingerprint, now

Tensors = Mapping[str, npt.NDArray[np.generic]]

WEIGHTS = "weights.safetensors"
TRAINING = "training.safetensors"
_MANIFEST_LINE = re.compile(rb"([0-9a-f]{64})  manifest\.json\n")
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
    """All versions in one place."""

    def __init__(self, root: Path | str | CheckpointFiles) -> None:
        """Name the place; nothing is asked of it yet.

        Args:
            root: a folder, a URL of one (`file:///...`) or of a prefix in an object store
                (`s3://bucket/prefix`), or the files themselves.
        Raises:
            SettingsError: the URL is none of these, or holds a secret.
        """
        self._files = _files_at(root) if isinstance(root, Path | str) else root

    @property
    def name(self) -> str:
        """The folder or URL, as `--store` takes it."""
        return self._files.name

    @property
    def root(self) -> Path | None:
        """The folder; None for an object store."""
        return self._files.root if isinstance(self._files, DirectoryFiles) else None

    def versions(self) -> list[int]:
        """Every complete version, ascending; an empty or missing store has none.

        Raises:
            StoreAwayError: the store does not answer, here as in all that follows.
        """
        return self._files.versions()

    def save(self, manifest: Manifest, weights: Tensors, training: Tensors) -> Manifest:
        """Write one version; it exists only after everything is there.

        Returns:
            The manifest with the files' sizes and hashes.
        Raises:
            CheckpointError: the version exists already.
            OSError: the disk refuses; nothing visible is left behind.
        """
        contents = {WEIGHTS: save_tensors(dict(weights)), TRAINING: save_tensors(dict(training))}
        entries = {
            name: FileEntry(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in contents.items()
        }
        complete = manifest.model_copy(update={"files": entries})
        contents[MANIFEST] = complete.model_dump_json(indent=2).encode()
        digest = hashlib.sha256(contents[MANIFEST]).hexdigest()
        contents[MANIFEST_SHA256] = f"{digest}  {MANIFEST}\n".encode()
        try:
            self._files.add(manifest.version, contents, digest)
        except FileExistsError as there:
            raise CheckpointError(f"version {manifest.version} exists already in {self.name}") from there
        return complete

    def manifest(self, version: int) -> Manifest:
        """The manifest of a version.

        Raises:
            CheckpointError: there is no such version, or its manifest is damaged.
        """
        return self._manifest(version)[0]

    def weights(self, version: int) -> dict[str, npt.NDArray[np.generic]]:
        """The network's weights, verified.

        Raises:
            CheckpointError: missing or damaged.
        """
        return self._tensors(*self._manifest(version), WEIGHTS)

    def training(self, version: int) -> dict[str, npt.NDArray[np.generic]]:
        """Optimizer and random state, verified.

        Raises:
            CheckpointError: missing or damaged.
        """
        return self._tensors(*self._manifest(version), TRAINING)

    def file_bytes(self, version: int, name: str) -> bytes:
        """One file of a version, verified against its manifest.

        Raises:
            CheckpointError: missing, or its size or SHA-256 is not the manifest's.
        """
        return self._verified(*self._manifest(version), name)

    def verify(self, version: int) -> Manifest:
        """Check every file of a version.

        Raises:
            CheckpointError: the first thing that is wrong.
        """
        manifest, digest = self._manifest(version)
        for name in (WEIGHTS, TRAINING):
            self._tensors(manifest, digest, name)
        return manifest

    def newest_valid(self) -> tuple[Manifest | None, list[CheckpointError]]:
        """The newest version whose files are whole, and what was wrong with the newer ones."""
        refused: list[CheckpointError] = []
        for version in reversed(self.versions()):
            try:
                return self.verify(version), refused
            except StoreAwayError:
                raise  # says nothing of the version
            except CheckpointError as damaged:
                refused.append(damaged)
        return None, refused

    def pointer(self, name: Pointer) -> Pointed | None:
        """Where a pointer stands, or None when it was never set.

        Raises:
            CheckpointError: the pointer's file is damaged.
        """
        return self._pointed(name, self._files.pointer(_pointer_file(name)))

    def move(
        self, name: Pointer, where: Callable[[Pointed | None], Pointed | None]
    ) -> tuple[Pointed | None, Pointed | None]:
        """Make a pointer stand elsewhere, as if nobody else moved it meanwhile.

        Args:
            name: the pointer.
            where: from where it stands, None where it was never set, to where it shall, None to leave it;
                may be called more than once, and what it raises leaves the pointer.
        Returns:
            Where it stood, and where it stands.
        Raises:
            CheckpointError: the pointer's file is damaged.
        """
        before = after = None

        def change(held: bytes | None) -> bytes | None:
            nonlocal before, after
            before = self._pointed(name, held)
            to = where(before)
            after = to or before
            if to is None:
                return None
            file = _PointerFile(version=to.version, stage=to.stage, history=to.history[-100:])
            return file.model_dump_json().encode()

        self._files.change_pointer(_pointer_file(name), change)
        return before, after

    def point(self, name: Pointer, version: int, *, stage: str | None = None) -> None:
        """Make a pointer stand for a version.

        Raises:
            CheckpointError: there is no such version.
        """
        self.manifest(version)
        self.move(name, lambda standing: moved(standing, version, stage))

    def collect_garbage(self, *, keep: int) -> list[int]:
        """Remove all but the newest `keep` versions, the pointers' targets and a roll-back's target.

        Returns:
            The versions removed.
        """
        versions = self.versions()
        held = set(versions[-keep:]) if keep > 0 else set()
        for name in Pointer:
            pointed = self.pointer(name)
            if pointed:
                held.add(pointed.version)
                if name is Pointer.PROMOTED:
                    held.update(pointed.history[-1:])
        self._files.tidy()
        removed = [version for version in versions if version not in held]
        for version in removed:
            self._files.remove(version)
        return removed

    def _manifest(self, version: int) -> tuple[Manifest, str]:
        """The manifest of a version, and its SHA-256."""
        place = self._files.place(version, MANIFEST)
        line = self._manifest_line(version)
        match = _MANIFEST_LINE.fullmatch(line)
        if match is None:
            where = self._files.place(version, MANIFEST_SHA256)
            raise CheckpointError(f"{where}: damaged; expected what `sha256sum {MANIFEST}` prints")
        digest = match[1].decode()
        data = self._read(version, MANIFEST, digest)
        if hashlib.sha256(data).hexdigest() != digest:
            raise CheckpointError(f"{place}: damaged manifest: its SHA-256 is not that of {MANIFEST_SHA256}")
        try:
            manifest = Manifest.model_validate_json(data)
        except ValidationError as invalid:
            problem = invalid.errors(include_url=False, include_input=False)[0]
            raise CheckpointError(f"{place}: damaged manifest: {problem['msg']}") from invalid
        if manifest.version != version:
            raise CheckpointError(f"{place}: says version {manifest.version}, expected {version}")
        return manifest, digest

    def _manifest_line(self, version: int) -> bytes:
        try:
            return self._files.manifest_line(version)
        except FileNotFoundError as missing:
            versions = self.versions()
            if version in versions:
                raise CheckpointError(f"{missing.filename}: {missing.strerror}") from missing
            have = ", ".join(str(v) for v in versions[-5:]) or "none"
            raise CheckpointError(f"no version {version} in {self.name}; newest there: {have}") from missing

    def _read(self, version: int, name: str, digest: str) -> bytes:
        try:
            return self._files.read(version, name, digest)
        except OSError as missing:
            raise CheckpointError(f"{self._files.place(version, name)}: {missing.strerror}") from missing

    def _verified(self, manifest: Manifest, digest: str, name: str) -> bytes:
        entry = manifest.files.get(name)
        if entry is None:
            raise CheckpointError(f"version {manifest.version} lists no file {name}")
        data = self._read(manifest.version, name, digest)
        place = self._files.place(manifest.version, name)
        if len(data) != entry.bytes:
            raise CheckpointError(f"{place}: {len(data)} bytes, the manifest says {entry.bytes}")
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise CheckpointError(f"{place}: SHA-256 differs from the manifest's; the file is damaged")
        return data

    def _tensors(self, manifest: Manifest, digest: str, name: str) -> dict[str, npt.NDArray[np.generic]]:
        data = self._verified(manifest, digest, name)
        try:
            return dict(load_tensors(data))
        except SafetensorError as broken:
            raise CheckpointError(f"{self._files.place(manifest.version, name)}: {broken}") from broken

    def _pointed(self, name: Pointer, held: bytes | None) -> Pointed | None:
        if held is None:
            return None
        try:
            file = _PointerFile.model_validate_json(held)
        except ValidationError as invalid:
            where = f"{self.name}/{_pointer_file(name)}"
            raise CheckpointError(f"{where}: damaged pointer; delete it or set it again") from invalid
        return Pointed(file.version, file.stage, file.history)


def moved(standing: Pointed | None, version: int, stage: str | None) -> Pointed:
    """A pointer after it was made to stand for a version."""
    return Pointed(version, stage, (*standing.history, standing.version) if standing else ())


def _files_at(root: Path | str) -> CheckpointFiles:
    if isinstance(root, str) and root.startswith("file://"):
        return DirectoryFiles(Path(url2pathname(urlsplit(root).path)))
    if isinstance(root, str) and "://" in root:
        return ObjectFiles.at(root)
    return DirectoryFiles(Path(root))


def _pointer_file(name: Pointer) -> str:
    return f"{name}.json"
