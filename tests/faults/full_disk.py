"""A simulated full disk, which refuses one chosen call that needs space, or that call and all later ones.

It counts calls of this process that create, write, sync or rename a file or folder. Calls that free space or
only read always succeed. A refused write still writes half of its data, as a kernel may do.
"""

import errno
import io
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import pytest


@dataclass
class FullDisk:
    """The disk below a folder; it has space until `refuse` is called."""

    folder: Path
    look: Callable[[], None] = lambda: None  # called before a call is refused
    refused: list[str] = field(default_factory=list)  # calls refused since the last `refuse`, in order
    _calls: int = 0  # calls since the last `refuse`
    _first: int | None = None  # number of the first call to refuse
    _once: bool = False
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def refuse(self, first: int, *, once: bool) -> None:
        """Refuse call number `first`, where 0 is the next call, and unless `once` also all later calls."""
        with self._counting:
            self.refused, self._calls, self._first, self._once = [], 0, first, once

    def free(self) -> None:
        """Free the disk."""
        self._first = None

    def has(self, path: object) -> TypeGuard[str | Path]:
        """Whether a path is the folder or below it."""
        return isinstance(path, str | Path) and Path(path).is_relative_to(self.folder)

    def need(self, what: str, path: object) -> None:
        """Count a call that needs space.

        Raises:
            OSError: the disk refuses it.
        """
        with self._counting:
            if self._first is None or not self.has(path):
                return
            number, self._calls = self._calls, self._calls + 1
            if number < self._first or (self._once and number > self._first):
                return
            self.refused.append(f"{what} {Path(path).name}")
        self.look()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


class _Raw(io.FileIO):
    """A file on the simulated disk."""

    disk: FullDisk

    def write(self, data: Any) -> int:
        """Write everything, or half of it before an error."""
        try:
            self.disk.need("write", self.name)
        except OSError:
            super().write(bytes(data)[: len(data) // 2])
            raise
        return super().write(data)


def full_disk(folder: Path, patched: pytest.MonkeyPatch) -> FullDisk:
    """Simulate a disk below a folder, which is created if needed, for all calls of this process."""
    folder.mkdir(parents=True, exist_ok=True)
    disk, opened, made = FullDisk(folder), io.open, os.open

    def open_file(file: Any, mode: str = "r", *others: Any, **named: Any) -> Any:
        if not set(mode) & set("wax") or not disk.has(file):
            return opened(file, mode, *others, **named)
        if not os.path.exists(file):  # noqa: PTH110
            disk.need("make", file)
        raw = _Raw(os.fspath(file), mode.replace("b", ""))
        raw.disk = disk
        return io.BufferedWriter(raw)

    def open_descriptor(path: Any, flags: int, *others: Any, **named: Any) -> int:
        if flags & os.O_CREAT and not os.path.exists(path):  # noqa: PTH110
            disk.need("make", path)
        return made(path, flags, *others, **named)

    def sync(descriptor: int) -> None:
        disk.need("sync", os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
        synced(descriptor)

    def make_folder(path: Any, *others: Any, **named: Any) -> None:
        if Path(path).parent.is_dir() and not Path(path).exists():
            disk.need("make", path)
        folder_made(path, *others, **named)

    def renaming(call: Callable[..., None]) -> Callable[..., None]:
        def rename(path: Any, *others: Any, **named: Any) -> None:
            disk.need("rename", path)
            call(path, *others, **named)

        return rename

    synced, folder_made = os.fsync, os.mkdir
    patched.setattr(io, "open", open_file)
    patched.setattr(os, "open", open_descriptor)
    patched.setattr(os, "fsync", sync)
    patched.setattr(os, "mkdir", make_folder)
    patched.setattr(os, "rename", renaming(os.rename))
    patched.setattr(os, "replace", renaming(os.replace))
    return disk
