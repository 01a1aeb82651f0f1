"""The files of checkpoint versions in a local folder, and the interface that every backend implements.

`shared.adapters.versions.object_store` is the other backend. Backends only store bytes: manifests, integrity
and the meaning of pointers live in `shared.adapters.versions.store`, on top of either backend.
"""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from shared.adapters.files import read_beneath, sync, write_atomically, write_synced
from shared.adapters.versions.manifest import MANIFEST_SHA256
from shared.errors import StoreUnavailableError

#: Largest size in bytes of a manifest or pointer; they have a few kilobytes.
MAX_SMALL_BYTES = 1_000_000

_FOLDER = re.compile(r"v(\d{6,})")
_LOCK = ".pointers.lock"


class CheckpointFiles(Protocol):
    """A storage backend: files of versions, and the small files of the pointers."""

    @property
    def name(self) -> str:
        """The folder or URL, as error texts show it and `--store` takes it; never contains a secret."""

    def versions(self) -> list[int]:
        """Every version in the store, ascending; an empty or missing store has none.

        Raises:
            StoreUnavailableError: the store does not answer, or refuses the request.
        """

    def add(self, version: int, files: Mapping[str, bytes], manifest_sha256: str) -> None:
        """Store all files of a version atomically.

        Args:
            version: number of the version.
            files: name → contents.
            manifest_sha256: hash of the manifest in `files`, in hexadecimal.
        Raises:
            FileExistsError: another version with this number exists.
            OSError: writing failed.
            StoreUnavailableError: the store does not answer, or refuses the request.
        """

    def manifest_line(self, version: int) -> bytes:
        """Contents of a version's `manifest.sha256`.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: the file cannot be read, or is larger than `MAX_SMALL_BYTES`.
            StoreUnavailableError: the store does not answer, or refuses the request.
        """

    def read(self, version: int, name: str, manifest_sha256: str, *, limit: int) -> bytes:
        """Contents of any other file of a version.

        Args:
            version: number of the version.
            name: name of the file.
            manifest_sha256: hash of the manifest, as `manifest.sha256` contains it.
            limit: largest size of the file in bytes.
        Raises:
            OSError: the file is missing, cannot be read, or is larger than the limit.
            StoreUnavailableError: the store does not answer, or refuses the request.
        """

    def location(self, version: int, name: str) -> str:
        """Path or URL of a file of a version, for error texts."""

    def remove(self, version: int, is_protected: Callable[[], bool]) -> bool:
        """Remove a version atomically, unless a pointer protects it; then delete its files.

        Args:
            version: number of the version.
            is_protected: whether a pointer protects the version now. It may be called more than once. If it
                raises, the version stays.
        Returns:
            False if the version is protected, or another process removed it first.
        """

    def tidy(self) -> None:
        """Delete leftovers of interrupted writes and removals that can no longer become a version."""

    def pointer(self, name: str) -> bytes | None:
        """Contents of a pointer's file, or None if there is none.

        Raises:
            OSError: the file cannot be read, or is larger than `MAX_SMALL_BYTES`.
            StoreUnavailableError: the store does not answer, or refuses the request.
        """

    def change_pointer(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Change a pointer's file in one atomic read-modify-write.

        Args:
            name: name of the file.
            change: maps the contents (None: no file; empty: the file cannot be read) to the new contents
                (None: leave the file). It may be called more than once.
        """


class DirectoryFiles:
    """Versions in a folder, each written to a temporary folder, synced and renamed.

    Only one process, the trainer, adds versions.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.root)

    def versions(self) -> list[int]:
        """Versions by their folders, ascending; symbolic links are ignored."""
        try:
            with os.scandir(self.root) as entries:
                folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as refused:
            raise StoreUnavailableError(f"{self.root}: {refused.strerror}") from refused
        return sorted(int(match[1]) for name in folders if (match := _FOLDER.fullmatch(name)))

    def add(self, version: int, files: Mapping[str, bytes], manifest_sha256: str) -> None:
        """Write a temporary folder and rename it. Temporary folders of killed writers are removed."""
        final = self.folder(version)
        if final.is_symlink() or final.is_file():  # not a version: move it out of the way
            final.rename(final.with_name(f"{final.name}.no-version"))
        if final.exists():
            raise FileExistsError(str(final))
        for left_over in self.root.glob(".writing-*"):
            _remove_tree(left_over)
        temporary = self.root / f".writing-{final.name}"
        try:
            temporary.mkdir(parents=True)
            for name, data in files.items():
                write_synced(temporary / name, data)
            sync(temporary)
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        try:
            sync(self.root)
        except OSError:
            with contextlib.suppress(OSError):
                final.rename(temporary)
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def manifest_line(self, version: int) -> bytes:
        """Contents of a version's `manifest.sha256`."""
        return self._read(f"{self.folder(version).name}/{MANIFEST_SHA256}", MAX_SMALL_BYTES)

    def read(self, version: int, name: str, manifest_sha256: str, *, limit: int) -> bytes:
        """Contents of another file of a version."""
        return self._read(f"{self.folder(version).name}/{name}", limit)

    def location(self, version: int, name: str) -> str:
        """Path of a file of a version."""
        return str(self.folder(version) / name)

    def remove(self, version: int, is_protected: Callable[[], bool]) -> bool:
        """Rename the folder while the pointers are locked, then remove it."""
        folder = self.folder(version)
        temporary = self.root / f".removing-{folder.name}"
        with self._pointers_locked():
            if is_protected():
                return False
            try:
                folder.rename(temporary)
            except FileNotFoundError:
                return False
        _remove_tree(temporary)
        return True

    def tidy(self) -> None:
        """Finish interrupted removals. Interrupted writes are removed when the next version is added."""
        for left_over in self.root.glob(".removing-*"):
            _remove_tree(left_over)

    def pointer(self, name: str) -> bytes | None:
        """Contents of a file at the root, or None."""
        try:
            return self._read(name, MAX_SMALL_BYTES)
        except FileNotFoundError:
            return None

    def change_pointer(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Read, change and replace a file at the root under a lock."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self._pointers_locked():
            try:
                contents = self.pointer(name)
            except OSError:
                contents = b""
            changed = change(contents)
            if changed is not None:
                write_atomically(self.root / name, changed)

    def folder(self, version: int) -> Path:
        """Folder of a version, whether or not it exists."""
        return self.root / f"v{version:06d}"

    def _read(self, name: str, limit: int) -> bytes:
        return read_beneath(self.root, name, limit=limit)

    @contextlib.contextmanager
    def _pointers_locked(self) -> Iterator[None]:
        descriptor = os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _remove_tree(folder: Path) -> None:
    """Remove a folder with its contents; another process may be removing it at the same time."""
    while folder.exists():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
