"""A disk without room: one call that needs some, or every call from one on, is refused by its number.

Counted are the calls of this process that make, write to, sync or rename a file or a folder. What frees room,
or only looks, always succeeds. A write that is refused leaves half of it behind, as a kernel's does.
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
    """Below a folder; there is room until `refuse` is told otherwise."""

    folder: Path
    look: Callable[[], None] = lambda: None  # at what lies there when a call is about to be refused
    refused: list[str] = field(default_factory=list)  # since `refuse` was told last, in order
    _calls: int = 0  # since then
    _first: int | None = None  # number of the first that is refused
    _once: bool = False
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def refuse(self, first: int, *, once: bool) -> None:
        """Refuse the call of a number, counted from 0 and from now, and unless `once` all that follow it."""
        with self._counting:
            self.refused, self._calls, self._first, self._once = [], 0, first, once

    def free(self) -> None:
        """Have room again."""
        self._first = None

    def has(self, path: object) -> TypeGuard[str | Path]:
        """True for a path below the folder, or of the folder itself."""
        return isinstance(path, str | Path) and Path(path).is_relative_to(self.folder)

    def need(self, what: str, path: object) -> None:
        """Count a call.

        Raises:
            OSError: there is no room for it.
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
    """A file on such a disk."""

    disk: FullDisk

    def write(self, data: Any) -> int:
        """Write all, or half and an error."""
        try:
            self.disk.need("write", self.name)
        except OSError:
            super().write(bytes(data)[: len(data) // 2])
            raise
        return super().write(data)


def full_disk(folder: Path, patched: pytest.MonkeyPatch) -> FullDisk:
    """Have this process' calls below a folder, which is made where it is not there, counted from now on."""
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
