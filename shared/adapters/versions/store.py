"""Checkpoint versions in a folder or an object store: written atomically, verified whenever they are read.

A version `v000042` consists of `weights.safetensors`, `training.safetensors` (optimizer and random state),
`manifest.json` with the SHA-256 of both, and `manifest.sha256` with the manifest's own hash, in the format of
`sha256sum -c`. Pickles are never read. Pointers (`latest`, `best`, `promoted`) are small JSON files that
contain their own hash and are replaced atomically.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import numpy.typing as npt
import structlog
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from shared.adapters.versions.directory import MAX_SMALL_BYTES, CheckpointFiles, DirectoryFiles
from shared.adapters.versions.manifest import (
    MANIFEST,
    MANIFEST_SHA256,
    TRAINING,
    WEIGHTS,
    FileEntry,
    Manifest,
    Pointed,
    Pointer,
    PointerFile,
    moved,
)
from shared.adapters.versions.object_store import SCHEMES, ObjectFiles
from shared.errors import CheckpointError, SettingsError
from shared.messages.schemas import Stage
from shared.messages.validation import first_fault

log = structlog.get_logger()

Tensors = Mapping[str, npt.NDArray[np.generic]]

_MANIFEST_LINE = re.compile(rb"([0-9a-f]{64})  manifest\.json\n")

#: A URL that lacks a slash. It would be taken for the name of a folder.
_INCOMPLETE_URL = re.compile(rf"(?i)({'|'.join(SCHEMES)}|file|https?):|[a-z][a-z0-9+.-]+:/")

#: How a damaged pointer is repaired.
_REPAIR = {
    Pointer.LATEST: "the next version sets it again",
    Pointer.BEST: "the next version that passes the paper gate sets it again",
    Pointer.PROMOTED: "promoting a version sets it again",
}


@dataclass(frozen=True)
class Collected:
    """The versions that garbage collection removed, and why it stopped early; empty if it did not."""

    removed: tuple[int, ...]
    obstacle: str = ""


class CheckpointStore:
    """All versions in one folder or object store."""

    def __init__(self, root: Path | str | CheckpointFiles) -> None:
        """Keep the location; the store is not accessed yet.

        Args:
            root: a folder, the URL of a folder (`file:///...`) or of a prefix in an object store
                (`s3://bucket/prefix`), or a storage backend.
        Raises:
            SettingsError: the URL is of another kind, or contains a secret.
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
            StoreUnavailableError: the store does not answer. All methods below raise it too.
        """
        return self._files.versions()

    def save(self, manifest: Manifest, weights: Tensors, training: Tensors) -> Manifest:
        """Write one version. It becomes visible only after all its files are stored.

        Returns:
            The manifest with the files' sizes and hashes.
        Raises:
            CheckpointError: the version exists already, or its manifest would not be readable.
            OSError: writing failed; no part of the version is visible.
        """
        contents = {WEIGHTS: save_tensors(dict(weights)), TRAINING: save_tensors(dict(training))}
        entries = {
            name: FileEntry(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in contents.items()
        }
        complete = manifest.model_copy(update={"files": entries})
        contents[MANIFEST] = complete.model_dump_json(indent=2).encode()
        if problem := _manifest_problem(contents[MANIFEST]):
            raise CheckpointError(f"version {manifest.version} cannot be saved: manifest: {problem}")
        digest = hashlib.sha256(contents[MANIFEST]).hexdigest()
        contents[MANIFEST_SHA256] = f"{digest}  {MANIFEST}\n".encode()
        try:
            self._files.add(manifest.version, contents, digest)
        except FileExistsError as exists:
            raise CheckpointError(f"version {manifest.version} exists already in {self.name}") from exists
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
            CheckpointError: the version is missing or damaged.
        """
        return self._tensors(*self._manifest(version), WEIGHTS)

    def training(self, version: int) -> dict[str, npt.NDArray[np.generic]]:
        """Optimizer and random state, verified.

        Raises:
            CheckpointError: the version is missing or damaged.
        """
        return self._tensors(*self._manifest(version), TRAINING)

    def file_bytes(self, version: int, name: str) -> bytes:
        """One file of a version, verified against its manifest.

        Raises:
            CheckpointError: the file is missing, or its size or SHA-256 differs from the manifest's.
        """
        return self._verified(*self._manifest(version), name)

    def verify(self, version: int) -> Manifest:
        """Check every file of a version.

        Raises:
            CheckpointError: the first fault found.
        """
        manifest, digest = self._manifest(version)
        for name in (WEIGHTS, TRAINING):
            self._tensors(manifest, digest, name)
        return manifest

    def newest_valid(self, *, before: int | None = None) -> tuple[Manifest | None, list[CheckpointError]]:
        """The newest version whose files are intact, and the faults of the newer ones.

        Args:
            before: consider only versions older than this one.
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
        """The version that a pointer names, or None if it names none.

        Raises:
            CheckpointError: the pointer's file is damaged or cannot be read.
        """
        try:
            contents = self._files.pointer(name.file)
        except OSError as unreadable:
            raise self._damaged(name, unreadable.strerror or str(unreadable)) from unreadable
        return self._pointed(name, contents)

    def pointers(self) -> dict[Pointer, Pointed | CheckpointError | None]:
        """The result of `pointer` for every pointer, or the error that it raises."""
        found: dict[Pointer, Pointed | CheckpointError | None] = {}
        for name in Pointer:
            try:
                found[name] = self.pointer(name)
            except CheckpointError as damaged:
                found[name] = damaged
        return found

    def move(
        self, name: Pointer, where: Callable[[Pointed | None], Pointed | None], *, repair: bool = False
    ) -> tuple[Pointed | None, Pointed | None]:
        """Move a pointer in one atomic read-modify-write.

        Args:
            name: the pointer.
            where: maps the current record (None: the pointer names no version) to the new one (None: leave
                the pointer). It may be called more than once. If it raises, the pointer stays.
            repair: treat a damaged pointer as one that names no version.
        Returns:
            The record before and after the move.
        Raises:
            CheckpointError: the pointer's file is damaged.
        """
        before = after = None

        def change(contents: bytes | None) -> bytes | None:
            nonlocal before, after
            try:
                before = self._pointed(name, contents)
            except CheckpointError as damaged:
                if not repair:
                    raise
                log.warning("damaged_pointer_replaced", error=str(damaged))
                before = None
            to = where(before)
            after = to or before
            return PointerFile.of(to).signed() if to else None

        self._files.change_pointer(name.file, change)
        return before, after

    def move_back(self, name: Pointer, before: Pointed | None, after: Pointed | None) -> None:
        """Undo a move, unless the pointer was moved again in the meantime."""

        def change(contents: bytes | None) -> bytes | None:
            return PointerFile.of(before).signed() if self._pointed(name, contents) == after else None

        self._files.change_pointer(name.file, change)

    def point(self, name: Pointer, version: int, *, stage: Stage | None = None) -> None:
        """Move a pointer to a version; a damaged pointer is replaced.

        Raises:
            CheckpointError: there is no such version.
        """
        self.manifest(version)
        self.move(name, lambda current: moved(current, version, stage), repair=True)

    def collect_garbage(self, *, keep: int) -> Collected:
        """Remove old versions.

        The newest `keep` versions, the newest intact one, those that pointers name, and the one that a
        roll-back would restore are kept. Nothing is removed while a pointer is damaged, because it may name
        any version, or while no version is intact, because an operator may repair any of them.
        """
        removed: list[int] = []
        try:
            # A generator, so that `removed` is correct if a later removal fails.
            garbage = self._garbage(keep)
            removed.extend(v for v in garbage if self._files.remove(v, partial(self._is_protected, v)))
        except CheckpointError as obstacle:
            log.warning("garbage_collection_stopped", reason=str(obstacle), removed=removed)
            return Collected(tuple(removed), str(obstacle))
        return Collected(tuple(removed))

    def _garbage(self, keep: int) -> list[int]:
        """Finish interrupted removals, then list the versions to remove.

        Raises:
            CheckpointError: a pointer is damaged, or no version is intact.
        """
        self._files.tidy()
        versions = self.versions()
        protected = self._protected()
        old = [v for v in versions[: max(len(versions) - keep, 0)] if v not in protected]
        if not old:
            return []
        intact, _ = self.newest_valid()
        if intact is None:
            raise CheckpointError(f"{self.name}: no version is intact")
        return [version for version in old if version != intact.version]

    def _is_protected(self, version: int) -> bool:
        return version in self._protected()

    def _protected(self) -> set[int]:
        """The versions that pointers name, and the one that a roll-back of `promoted` would restore.

        Raises:
            CheckpointError: a pointer's file is damaged.
        """
        pointers = {name: self.pointer(name) for name in Pointer}
        protected = {pointed.version for pointed in pointers.values() if pointed}
        if promoted := pointers[Pointer.PROMOTED]:
            earlier = [entry.version for entry in promoted.history if entry.version != promoted.version]
            protected.update(earlier[-1:])
        return protected

    def _manifest(self, version: int) -> tuple[Manifest, str]:
        """The manifest of a version, and its SHA-256."""
        location = self._files.location(version, MANIFEST)
        line = self._manifest_line(version)
        match = _MANIFEST_LINE.fullmatch(line)
        if match is None:
            location = self._files.location(version, MANIFEST_SHA256)
            raise CheckpointError(f"{location}: damaged; expected the output of `sha256sum {MANIFEST}`")
        digest = match[1].decode()
        data = self._read(version, MANIFEST, digest, MAX_SMALL_BYTES)
        if hashlib.sha256(data).hexdigest() != digest:
            raise CheckpointError(
                f"{location}: damaged manifest: its SHA-256 differs from that in {MANIFEST_SHA256}"
            )
        try:
            manifest = Manifest.model_validate_json(data)
        except ValidationError as invalid:
            raise CheckpointError(f"{location}: damaged manifest: {first_fault(invalid)}") from invalid
        if manifest.version != version:
            raise CheckpointError(f"{location}: says version {manifest.version}, expected {version}")
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
            location = self._files.location(version, MANIFEST_SHA256)
            raise CheckpointError(f"{location}: {unreadable.strerror}") from unreadable

    def _read(self, version: int, name: str, digest: str, limit: int) -> bytes:
        try:
            return self._files.read(version, name, digest, limit=limit)
        except OSError as unreadable:
            raise CheckpointError(
                f"{self._files.location(version, name)}: {unreadable.strerror}"
            ) from unreadable

    def _verified(self, manifest: Manifest, digest: str, name: str) -> bytes:
        entry = manifest.files.get(name)
        if entry is None:
            raise CheckpointError(f"version {manifest.version} lists no file {name}")
        data = self._read(manifest.version, name, digest, entry.bytes)
        location = self._files.location(manifest.version, name)
        if len(data) != entry.bytes:
            raise CheckpointError(f"{location}: {len(data)} bytes, the manifest says {entry.bytes}")
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise CheckpointError(f"{location}: SHA-256 differs from the manifest's; the file is damaged")
        return data

    def _tensors(self, manifest: Manifest, digest: str, name: str) -> dict[str, npt.NDArray[np.generic]]:
        data = self._verified(manifest, digest, name)
        try:
            return dict(load_tensors(data))
        except SafetensorError as broken:
            raise CheckpointError(f"{self._files.location(manifest.version, name)}: {broken}") from broken

    def _pointed(self, name: Pointer, contents: bytes | None) -> Pointed | None:
        if contents is None:
            return None
        try:
            return PointerFile.model_validate_json(contents).pointed()
        except ValidationError as invalid:
            raise self._damaged(name, str(first_fault(invalid))) from invalid

    def _damaged(self, name: Pointer, why: str) -> CheckpointError:
        return CheckpointError(f"{self.name}/{name.file}: damaged pointer: {why}; {_REPAIR[name]}")


def _files_at(root: Path | str) -> CheckpointFiles:
    if isinstance(root, str) and root.startswith("file://"):
        return DirectoryFiles(Path(url2pathname(urlsplit(root).path)))
    if isinstance(root, str) and "://" in root:
        return ObjectFiles.at(root)
    if isinstance(root, str) and _INCOMPLETE_URL.match(root):
        raise SettingsError(
            f"checkpoint store {root}: expected a folder, or a URL such as s3://bucket/prefix, with two "
            f"slashes; for a folder of that name, write ./{root}"
        )
    return DirectoryFiles(Path(root))


def _manifest_problem(manifest: bytes) -> str:
    """Why a manifest could not be read back; empty if it could."""
    if len(manifest) > MAX_SMALL_BYTES:
        return f"{len(manifest)} bytes are more than the limit of {MAX_SMALL_BYTES}"
    try:
        Manifest.model_validate_json(manifest)
    except ValidationError as invalid:
        return str(first_fault(invalid))
    return ""
