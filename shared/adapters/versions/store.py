"""Checkpoint versions in a folder or an object store: hashed, whole or not there, verified whenever read.

A version `v000042` is `weights.safetensors`, `training.safetensors` (optimizer and random state),
`manifest.json`, which holds the SHA-256 of both, and `manifest.sha256`, which holds its own (as
`sha256sum -c` reads it). No pickle is ever read. Pointers (`latest`, `best`, `promoted`) are small JSON
files that hold their own hash, replaced atomically.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import numpy.typing as npt
import structlog
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from shared.adapters.versions.directory import (
    MANIFEST,
    MANIFEST_SHA256,
    MAX_SMALL_BYTES,
    CheckpointFiles,
    DirectoryFiles,
)
from shared.adapters.versions.object_store import SCHEMES, ObjectFiles
from shared.errors import CheckpointError, SettingsError
from shared.messages.schemas import Fingerprint, Stage, now
from shared.messages.validation import first_fault

log = structlog.get_logger()

Tensors = Mapping[str, npt.NDArray[np.generic]]

WEIGHTS = "weights.safetensors"
TRAINING = "training.safetensors"
_MANIFEST_LINE = re.compile(rb"([0-9a-f]{64})  manifest\.json\n")
_LIBRARIES = ("torch", "numpy", "safetensors")

#: A URL with a slash too few, which would be a folder's name.
_ALMOST_URL = re.compile(rf"(?i)({'|'.join(SCHEMES)}|file|https?):|[a-z][a-z0-9+.-]+:/")

#: Versions that a pointer remembers to have stood for.
_HISTORY = 100


class Pointer(StrEnum):
    """Names that stand for a version."""

    LATEST = "latest"
    BEST = "best"
    PROMOTED = "promoted"


#: What makes a damaged pointer whole.
_MENDING = {
    Pointer.LATEST: "the next version sets it again",
    Pointer.BEST: "the next version judged sets it again",
    Pointer.PROMOTED: "promoting a version sets it again",
}


class FileEntry(BaseModel):
    """Size and hash of one file of a version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int = Field(ge=0)
    sha256: Fingerprint


#: In a manifest's settings, since an older release refuses a field that it does not know.
TRAINED_UNTIL = "trained_until"

_MOMENT = TypeAdapter(AwareDatetime)


class Manifest(BaseModel):
    """What a version is: where in training it was made, of what, and what its files must hash to."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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

    @property
    def trained_until(self) -> datetime | None:
        """Opening time of the last bar that the version may have learned from.

        Returns:
            None where an older release made the version.
        Raises:
            CheckpointError: the settings hold something else.
        """
        told = self.settings.get(TRAINED_UNTIL)
        try:
            return None if told is None else _MOMENT.validate_python(told)
        except ValidationError as other:
            raise CheckpointError(
                f"version {self.version}: {TRAINED_UNTIL} is {told!r}, expected a time"
            ) from other


class Stood(NamedTuple):
    """Where a pointer stood before, and for which stage: None where it was not remembered."""

    version: int
    stage: str | None


class _PointerFile(BaseModel):
    """A pointer on disk, with where it stood before, the newest last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int | None = Field(ge=0)  # None: for no version any more
    stage: str | None = None
    history: tuple[Stood | int, ...] = ()  # without stages in files of before they were remembered
    sha256: Fingerprint | None = None  # of all else, as JSON

    @classmethod
    def of(cls, pointed: "Pointed | None") -> "_PointerFile":
        """The file of a pointer."""
        if pointed is None:
            return cls(version=None)
        return cls(version=pointed.version, stage=pointed.stage, history=pointed.history)

    def signed(self) -> bytes:
        """The file's contents."""
        return self.model_copy(update={"sha256": self._digest()}).model_dump_json().encode()

    def pointed(self) -> "Pointed | None":
        """Where the pointer stands."""
        if self.version is None:
            return None
        history = (stood if isinstance(stood, Stood) else Stood(stood, None) for stood in self.history)
        return Pointed(self.version, self.stage, tuple(history))

    @model_validator(mode="after")
    def _require_digest(self) -> "_PointerFile":
        if self.sha256 not in (None, self._digest()):
            raise ValueError("its SHA-256 is not that of the rest")
        return self

    def _digest(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"sha256"}).encode()).hexdigest()


@dataclass(frozen=True)
class Pointed:
    """Where a pointer stands, for which stage, and where it stood before, the newest last."""

    version: int
    stage: str | None
    history: tuple[Stood, ...]


@dataclass(frozen=True)
class Collected:
    """The versions that garbage collection removed, and why others had to stay, if they had to."""

    removed: tuple[int, ...]
    obstacle: str = ""


class CheckpointStore:
    """All versions in one place."""

    def __init__(self, root: Path | str | CheckpointFiles) -> None:
        """Name the place; nothing is asked of it yet.

        Args:
            root: a folder, a URL of one (`file:///...`) or of a prefix in an object store
                (`s3://bucket/prefix`), or the files themselves.
        Raises:
            SettingsError: it is a URL and none of these, or holds a secret.
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
            CheckpointError: the version exists already, or its manifest could not be read again.
            OSError: the disk refuses; nothing visible is left behind.
        """
        contents = {WEIGHTS: save_tensors(dict(weights)), TRAINING: save_tensors(dict(training))}
        entries = {
            name: FileEntry(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in contents.items()
        }
        complete = manifest.model_copy(update={"files": entries})
        contents[MANIFEST] = complete.model_dump_json(indent=2).encode()
        if problem := _problem(contents[MANIFEST]):
            raise CheckpointError(f"version {manifest.version} cannot be saved: manifest: {problem}")
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

    def newest_valid(self, *, before: int | None = None) -> tuple[Manifest | None, list[CheckpointError]]:
        """The newest version whose files are whole, and what was wrong with the newer ones.

        Args:
            before: only older versions than this.
        """
        refused: list[CheckpointError] = []
        for version in reversed(self.versions()):
            if before is not None and version >= before:
                continue
            try:
                return self.verify(version), refused
            except CheckpointError as damaged:
                refused.append(damaged)
        return None, refused

    def pointer(self, name: Pointer) -> Pointed | None:
        """Where a pointer stands, or None when it stands for no version.

        Raises:
            CheckpointError: the pointer's file is damaged or cannot be read.
        """
        try:
            held = self._files.pointer(_pointer_file(name))
        except OSError as unreadable:
            raise self._damaged(name, unreadable.strerror or str(unreadable)) from unreadable
        return self._pointed(name, held)

    def pointers(self) -> dict[Pointer, Pointed | CheckpointError | None]:
        """Where every pointer stands, as `pointer` tells it, or what is wrong with it."""
        found: dict[Pointer, Pointed | CheckpointError | None] = {}
        for name in Pointer:
            try:
                found[name] = self.pointer(name)
            except CheckpointError as damaged:
                found[name] = damaged
        return found

    def move(
        self, name: Pointer, where: Callable[[Pointed | None], Pointed | None], *, mend: bool = False
    ) -> tuple[Pointed | None, Pointed | None]:
        """Make a pointer stand elsewhere, as if nobody else moved it meanwhile.

        Args:
            name: the pointer.
            where: from where it stands, None where it stands for no version, to where it shall, None to leave
                it; may be called more than once, and what it raises leaves the pointer.
            mend: take a damaged pointer for one that stands for no version.
        Returns:
            Where it stood, and where it stands.
        Raises:
            CheckpointError: the pointer's file is damaged.
        """
        before = after = None

        def change(held: bytes | None) -> bytes | None:
            nonlocal before, after
            try:
                before = self._pointed(name, held)
            except CheckpointError as damaged:
                if not mend:
                    raise
                log.warning("damaged_pointer_replaced", error=str(damaged))
                before = None
            to = where(before)
            after = to or before
            return _PointerFile.of(to).signed() if to else None

        self._files.change_pointer(_pointer_file(name), change)
        return before, after

    def move_back(self, name: Pointer, before: Pointed | None, after: Pointed | None) -> None:
        """Undo a move from one place to another, unless the pointer was moved again meanwhile."""

        def change(held: bytes | None) -> bytes | None:
            return _PointerFile.of(before).signed() if self._pointed(name, held) == after else None

        self._files.change_pointer(_pointer_file(name), change)

    def point(self, name: Pointer, version: int, *, stage: str | None = None) -> None:
        """Make a pointer stand for a version, whatever its file holds.

        Raises:
            CheckpointError: there is no such version.
        """
        self.manifest(version)
        self.move(name, lambda standing: moved(standing, version, stage), mend=True)

    def collect_garbage(self, *, keep: int) -> Collected:
        """Remove all but the newest `keep` versions, the newest whole one, the pointers' and a roll-back's.

        While a pointer is damaged, nobody knows which version it holds, and while no version is whole, which
        of them can be mended: then none is removed.
        """
        removed: list[int] = []
        try:
            # One after the other, so that an obstacle leaves told what was removed before it.
            removed.extend(v for v in self._garbage(keep) if self._files.remove(v, partial(self._is_held, v)))
        except CheckpointError as obstacle:
            log.warning("garbage_stays", reason=str(obstacle), removed=removed)
            return Collected(tuple(removed), str(obstacle))
        return Collected(tuple(removed))

    def _garbage(self, keep: int) -> list[int]:
        """The versions to remove, after what was left half removed.

        Raises:
            CheckpointError: that cannot be told.
        """
        self._files.tidy()
        versions = self.versions()
        held = self._held()
        old = [v for v in versions[: max(len(versions) - keep, 0)] if v not in held]
        if not old:
            return []
        whole, _ = self.newest_valid()
        if whole is None:
            raise CheckpointError(f"{self.name}: no version is whole")
        return [version for version in old if version != whole.version]

    def _is_held(self, version: int) -> bool:
        return version in self._held()

    def _held(self) -> set[int]:
        """The versions that pointers name, and the one that a roll-back of `promoted` goes to.

        Raises:
            CheckpointError: a pointer's file is damaged.
        """
        standing = {name: self.pointer(name) for name in Pointer}
        held = {pointed.version for pointed in standing.values() if pointed}
        if promoted := standing[Pointer.PROMOTED]:
            earlier = [stood.version for stood in promoted.history if stood.version != promoted.version]
            held.update(earlier[-1:])
        return held

    def _manifest(self, version: int) -> tuple[Manifest, str]:
        """The manifest of a version, and its SHA-256."""
        place = self._files.place(version, MANIFEST)
        line = self._manifest_line(version)
        match = _MANIFEST_LINE.fullmatch(line)
        if match is None:
            where = self._files.place(version, MANIFEST_SHA256)
            raise CheckpointError(f"{where}: damaged; expected what `sha256sum {MANIFEST}` prints")
        digest = match[1].decode()
        data = self._read(version, MANIFEST, digest, MAX_SMALL_BYTES)
        if hashlib.sha256(data).hexdigest() != digest:
            raise CheckpointError(f"{place}: damaged manifest: its SHA-256 is not that of {MANIFEST_SHA256}")
        try:
            manifest = Manifest.model_validate_json(data)
        except ValidationError as invalid:
            raise CheckpointError(f"{place}: damaged manifest: {first_fault(invalid)}") from invalid
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
        except OSError as unreadable:
            where = self._files.place(version, MANIFEST_SHA256)
            raise CheckpointError(f"{where}: {unreadable.strerror}") from unreadable

    def _read(self, version: int, name: str, digest: str, limit: int) -> bytes:
        try:
            return self._files.read(version, name, digest, limit=limit)
        except OSError as unreadable:
            raise CheckpointError(
                f"{self._files.place(version, name)}: {unreadable.strerror}"
            ) from unreadable

    def _verified(self, manifest: Manifest, digest: str, name: str) -> bytes:
        entry = manifest.files.get(name)
        if entry is None:
            raise CheckpointError(f"version {manifest.version} lists no file {name}")
        data = self._read(manifest.version, name, digest, entry.bytes)
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
            return _PointerFile.model_validate_json(held).pointed()
        except ValidationError as invalid:
            raise self._damaged(name, str(first_fault(invalid))) from invalid

    def _damaged(self, name: Pointer, why: str) -> CheckpointError:
        return CheckpointError(f"{self.name}/{_pointer_file(name)}: damaged pointer: {why}; {_MENDING[name]}")


def moved(standing: Pointed | None, version: int, stage: str | None) -> Pointed:
    """A pointer after it was made to stand for a version."""
    before = (*standing.history, Stood(standing.version, standing.stage)) if standing else ()
    return Pointed(version, stage, before[-_HISTORY:])


def stage_of(promoted: Pointed) -> Stage:
    """The stage that a promoted version decides in; a pointer from before stages were kept means paper."""
    match promoted.stage:
        case "live":
            return "live"
        case "unproven":
            return "unproven"
        case _:
            return "paper"


def _files_at(root: Path | str) -> CheckpointFiles:
    if isinstance(root, str) and root.startswith("file://"):
        return DirectoryFiles(Path(url2pathname(urlsplit(root).path)))
    if isinstance(root, str) and "://" in root:
        return ObjectFiles.at(root)
    if isinstance(root, str) and _ALMOST_URL.match(root):
        raise SettingsError(
            f"checkpoint store {root}: expected a folder, or a URL such as s3://bucket/prefix, with two "
            f"slashes; a folder of that name is ./{root}"
        )
    return DirectoryFiles(Path(root))


def _problem(manifest: bytes) -> str:
    """Why a manifest could not be read again; empty where it could."""
    if len(manifest) > MAX_SMALL_BYTES:
        return f"{len(manifest)} bytes are more than the {MAX_SMALL_BYTES} that are read"
    try:
        Manifest.model_validate_json(manifest)
    except ValidationError as invalid:
        return str(first_fault(invalid))
    return ""


def _pointer_file(name: Pointer) -> str:
    return f"{name}.json"
