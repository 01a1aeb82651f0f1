"""Durable and atomic writes of files, and bounded reads."""

import errno
import os
import stat
from pathlib import Path


def sync(path: Path) -> None:
    """fsync a file, or the entries of a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Write and fsync a file. The caller must sync its folder."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """Write a temporary file, rename it and sync. Even after a crash, readers see the old or the new file."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write_synced(aside, data)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)


def read_beneath(root: Path, name: str, *, limit: int) -> bytes:
    """Contents of a file below a folder, without following links below the folder.

    Args:
        root: the folder; it may itself be a link.
        name: path below it, with slashes.
        limit: most bytes that the file may have.
    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is a link, not a regular file, too large, or cannot be read.
    """
    path, folder = root / name, os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    *folders, last = name.split("/")
    try:
        for part in folders:
            outer = folder
            folder = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=outer)
            os.close(outer)
        # O_NONBLOCK: opening a pipe would wait for its writer.
        descriptor = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as refused:
        reason = "a link, which is not followed" if refused.errno == errno.ELOOP else refused.strerror
        raise OSError(refused.errno, reason, str(path)) from None
    finally:
        os.close(folder)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if found.st_size > limit:
            raise too_large(str(path), found.st_size, limit)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(found.st_size)
    finally:
        os.close(descriptor)


def too_large(location: str, size: int, limit: int) -> OSError:
    """The error for a file that is larger than a limit."""
    return OSError(errno.EFBIG, f"{size} bytes, at most {limit} are expected", location)
