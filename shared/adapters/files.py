"""Files that are on the disk when a call returns, written completely or not at all; and bounded reads."""

import errno
import os
import stat
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk; its folder's entry is the caller's to sync."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file aside and rename it: readers, and the next start, find the old one or the new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write_synced(aside, data)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)


def read_beneath(root: Path, name: str, *, limit: int) -> bytes:
    """Contents of a file below a folder; no link on the way there is followed.

    Args:
        root: the folder, itself wherever it may be.
        name: path below it, with slashes.
        limit: bytes that it may have; more are never read.
    Raises:
        FileNotFoundError: it is not there.
        OSError: it is a link, no plain file, too large, or cannot be read.
    """
    path, folder = root / name, os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    *folders, last = name.split("/")
    try:
        for part in folders:
            outer = folder
            folder = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=outer)
            os.close(outer)
        # A pipe would let the reader wait for its writer.
        descriptor = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as refused:
        says = "a link, which is not followed" if refused.errno == errno.ELOOP else refused.strerror
        raise OSError(refused.errno, says, str(path)) from None
    finally:
        os.close(folder)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "no plain file", str(path))
        if found.st_size > limit:
            raise too_large(str(path), found.st_size, limit)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(found.st_size)
    finally:
        os.close(descriptor)


def too_large(place: str, size: int, limit: int) -> OSError:
    """The error of a file that is larger than what is read of it."""
    return OSError(errno.EFBIG, f"{size} bytes, at most {limit} are expected", place)
