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

from shared.adapters.files import read_beneath, sync, write_synced, write_whole
from shared.errors import StoreAwayError

MANIFEST = "manifest.json"
MANIFEST_SHA256 = "manifest.sha256"

#: Manifests and pointers are some kilobytes; anything near this is none.
MAX_SMALL_BYTES = 1_000_000

_FOLDER = re.compile(r"v(\d{6,})")
_LOCK = ".pointers.lock"


class CheckpointFiles(Protocol):
    """A place for versions and for the small files that point at them."""

    @property
    def name(self) -> str:
        """The folder or URL, as errors tell it and `--store` takes it; never a secret."""

    def versions(self) -> list[int]:
        """Every version that is there, ascending; an empty or missing place has none.

        Raises:
            StoreAwayError: the store does not answer, or refuses.
        """

    def add(self, version: int, files: Mapping[str, bytes], manifest_sha256: str) -> None:
        """Put all files of a version there: whole or not at all.

        Args:
            version: its number.
            files: name → contents.
            manifest_sha256: hexadecimal, of the manifest among them.
        Raises:
            FileExistsError: the version is there already, and is another one than this.
            OSError: the disk refuses.
            StoreAwayError: the store does not answer, or refuses.
        """

    def manifest_line(self, version: int) -> bytes:
        """Contents of a version's `manifest.sha256`.

        Raises:
            FileNotFoundError: it is not there.
            OSError: it cannot be read, or is larger than `MAX_SMALL_BYTES`.
            StoreAwayError: the store does not answer, or refuses.
        """

    def read(self, version: int, name: str, manifest_sha256: str, *, limit: int) -> bytes:
        """Contents of another file of a version whose `manifest.sha256` names that manifest.

        Raises:
            OSError: it is not there, cannot be read, or has more bytes than the limit; then none is read.
            StoreAwayError: the store does not answer, or refuses.
        """

    def place(self, version: int, name: str) -> str:
        """Path or URL of a file of a version, as errors tell it."""

    def remove(self, version: int, is_held: Callable[[], bool]) -> bool:
        """Remove a version, gone at once and then taken apart, as if no pointer moved meanwhile.

        Args:
            version: its number.
            is_held: whether a pointer holds it now; may be asked more than once, and what it raises leaves
                the version.
        Returns:
            Whether it was removed here: False where it is held, or was removed by another first.
        """

    def tidy(self) -> None:
        """Remove what was left half removed or half written, and can never be a version."""

    def pointer(self, name: str) -> bytes | None:
        """Contents of a small file, or None where there is none.

        Raises:
            OSError: it cannot be read, or is larger than `MAX_SMALL_BYTES`.
            StoreAwayError: the store does not answer, or refuses.
        """

    def change_pointer(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Replace a small file by what is made of it, as if nobody else replaced it meanwhile.

        Args:
            name: of the file.
            change: from the contents, None where there is no file, empty where there is one that cannot be
                read, to the new ones, None to leave it; may be called more than once.
        """


class DirectoryFiles:
    """A folder: written aside, synced, renamed. One process, the trainer, adds versions."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.root)

    def versions(self) -> list[int]:
        """Versions by their folders, ascending; a link to one is none."""
        try:
            with os.scandir(self.root) as entries:
                folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as refused:
            raise StoreAwayError(f"{self.root}: {refused.strerror}") from refused
        return sorted(int(match[1]) for name in folders if (match := _FOLDER.fullmatch(name)))

    def add(self, version: int, files: Mapping[str, bytes], manifest_sha256: str) -> None:
        """Write a folder aside and rename it; what an earlier writer left half written is removed."""
        final = self.folder(version)
        if final.is_symlink() or final.is_file():  # no version, and in the way of one
            final.rename(final.with_name(f"{final.name}.no-version"))
        if final.exists():
            raise FileExistsError(str(final))
        for left_over in self.root.glob(".writing-*"):
            _remove_tree(left_over)
        aside = self.root / f".writing-{final.name}"
        try:
            aside.mkdir(parents=True)
            for name, data in files.items():
                write_synced(aside / name, data)
            sync(aside)
            aside.rename(final)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        try:
            sync(self.root)
        except OSError:
            with contextlib.suppress(OSError):
                final.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
            raise

    def manifest_line(self, version: int) -> bytes:
        """Contents of a version's `manifest.sha256`."""
        return self._read(f"{self.folder(version).name}/{MANIFEST_SHA256}", MAX_SMALL_BYTES)

    def read(self, version: int, name: str, manifest_sha256: str, *, limit: int) -> bytes:
        """Contents of another file of a version."""
        return self._read(f"{self.folder(version).name}/{name}", limit)

    def place(self, version: int, name: str) -> str:
        """Path of a file of a version."""
        return str(self.folder(version) / name)

    def remove(self, version: int, is_held: Callable[[], bool]) -> bool:
        """Rename the folder while no pointer can move, then remove it."""
        folder = self.folder(version)
        aside = self.root / f".removing-{folder.name}"
        with self._pointers_locked():
            if is_held():
                return False
            try:
                folder.rename(aside)
            except FileNotFoundError:
                return False
        _remove_tree(aside)
        return True

    def tidy(self) -> None:
        """Remove what was left half removed; what was left half written goes before the next version."""
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
                held = self.pointer(name)
            except OSError:
                held = b""
            changed = change(held)
            if changed is not None:
                write_whole(self.root / name, changed)

    def folder(self, version: int) -> Path:
        """Folder of a version, there or not."""
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
    """Remove a folder and all in it, though another process may be removing it at the same time."""
    while folder.exists():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
