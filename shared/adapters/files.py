"""Durable and atomic file writes, and reads limited in size."""

import errno
import os
import stat
from pathlib import Path


def sync(path: Path) -> None:
    """fsync a file, or a folder, which makes the names of its files durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Write and fsync a file. The caller must then sync the folder, or a crash may lose the file's name."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file atomically and durably: write a temporary file, rename it and sync the folder.

    Readers see either the old or the new contents, even after a crash.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write_synced(temporary, data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def read_beneath(root: Path, name: str, *, limit: int) -> bytes:
    """Read a file below a folder, without following symbolic links below the folder.

    Args:
        root: the folder, which may itself be a symbolic link.
        name: path relative to the folder, separated by slashes.
        limit: largest size of the file in bytes.
    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file is a symbolic link, not a regular file, too large, or cannot be read.
    """
    path, folder = root / name, os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    *folders, last = name.split("/")
    try:
        for part in folders:
            outer = folder
            folder = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=outer)
            os.close(outer)
        # Without O_NONBLOCK, opening a named pipe would block until a writer opens it.
        descriptor = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as refused:
        reason = (
            "a symbolic link, which is not followed" if refused.errno == errno.ELOOP else refused.strerror
        )
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
    return OSError(errno.EFBIG, f"{size} bytes, expected at most {limit}", location)
