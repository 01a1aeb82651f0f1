"""Where the files of checkpoint versions lie, and what both kinds of places promise: here a folder.

`shared.adapters.object_store` is the other. What a manifest says, what is whole and what a pointer means
is none of their business: `shared.adapters.checkpoints` tells that over either.
"""

import fcntl
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from shared.adapters.files import sync, write_synced, write_whole

MANIFEST = "manifest.json"
MANIFEST_SHA256 = "manifest.sha256"

_FOLDER = re.compile(r"v(\d{6,})")
_LOCK = ".pointers.lock"


class CheckpointFiles(Protocol):
    """A place for versions and for the small files that point at them."""

    @property
    def name(self) -> str:
        """The folder or URL, as errors tell it and `--store` takes it; never a secret."""

    def versions(self) -> list[int]:
        """Every version that is there, ascending; an empty or missing place has none."""

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
            StoreAwayError: the store does not answer, or refuses.
        """

    def read(self, version: int, name: str, manifest_sha256: str) -> bytes:
        """Contents of another file of a version whose `manifest.sha256` names that manifest.

        Raises:
            FileNotFoundError: it is not there.
            StoreAwayError: the store does not answer, or refuses.
        """

    def place(self, version: int, name: str) -> str:
        """Path or URL of a file of a version, as errors tell it."""

    def remove(self, version: int) -> None:
        """Remove a version: gone at once, then taken apart."""

    def tidy(self) -> None:
        """Remove what was left half removed or half written, and can never be a version."""

    def pointer(self, name: str) -> bytes | None:
        """Contents of a small file, or None where there is none."""

    def change_pointer(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Replace a small file by what is made of it, as if nobody else replaced it meanwhile.

        Args:
            name: of the file.
            change: from the contents, None where there is no file, to the new ones, None to leave it;
                may be called more than once.
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
        """Versions by their folders, ascending."""
        if not self.root.is_dir():
            return []
        found = (_FOLDER.fullmatch(path.name) for path in self.root.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def add(self, version: int, files: Mapping[str, bytes], manifest_sha256: str) -> None:
        """Write a folder aside and rename it; what an earlier writer left half written is removed."""
        final = self.folder(version)
        if final.exists():
            raise FileExistsError(str(final))
        for left_over in self.root.glob(".writing-*"):
            shutil.rmtree(left_over)
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
        sync(self.root)

    def manifest_line(self, version: int) -> bytes:
        """Contents of a version's `manifest.sha256`."""
        return (self.folder(version) / MANIFEST_SHA256).read_bytes()

    def read(self, version: int, name: str, manifest_sha256: str) -> bytes:
        """Contents of another file of a version."""
        return (self.folder(version) / name).read_bytes()

    def place(self, version: int, name: str) -> str:
        """Path of a file of a version."""
        return str(self.folder(version) / name)

    def remove(self, version: int) -> None:
        """Rename the folder, then remove it."""
        aside = self.root / f".removing-{self.folder(version).name}"
        self.folder(version).rename(aside)
        shutil.rmtree(aside)

    def tidy(self) -> None:
        """Remove what was left half removed; what was left half written goes before the next version."""
        for left_over in self.root.glob(".removing-*"):
            shutil.rmtree(left_over)

    def pointer(self, name: str) -> bytes | None:
        """Contents of a file at the root, or None."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def change_pointer(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Read, change and replace a file at the root under a lock."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            changed = change(self.pointer(name))
            if changed is not None:
                write_whole(self.root / name, changed)

    def folder(self, version: int) -> Path:
        """Folder of a version, there or not."""
        return self.root / f"v{version:06d}"
