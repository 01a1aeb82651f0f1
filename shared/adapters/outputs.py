"""Output files of commands: written atomically, and never over a file of another kind.

Commands call `check_output` before they compute anything, so that a long command does not fail at its end.
"""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from shared.adapters.files import sync
from shared.errors import DataError


def check_output(
    path: Path, kind: str, is_own: Callable[[Path], bool], *inputs: Path, may_lack_folder: bool = False
) -> Path:
    """Check that a path can be written without replacing a file of another kind.

    Args:
        path: path that the user gave. A symbolic link is followed: its target is replaced, the link stays.
        kind: noun phrase for the error, such as "data set".
        is_own: whether an existing file is of this kind; may raise OSError.
        inputs: files that the command reads.
        may_lack_folder: accept a missing folder; `atomic_output` creates it.
    Returns:
        The file to write, with every link resolved.
    Raises:
        DataError: the path is a folder, a device, an input or a file of another kind, or cannot be written.
    """
    with naming(path, "written"):
        target = path.resolve()
        if target.is_dir():
            raise DataError(f"{path} is a folder: expected the name of a file to write")
        for one in inputs:
            if target.exists() and one.exists() and target.samefile(one):
                raise DataError(f"{path} is an input file: choose another name, nothing was changed")
        if target.exists() and not (target.is_file() and is_own(target)):
            raise DataError(f"{path} exists and is no {kind}: choose another name, nothing was changed")
        folder = target.parent
        while may_lack_folder and not folder.exists():
            folder = folder.parent
        probe = _temporary_path(folder / target.name)
        probe.touch()
        probe.unlink(missing_ok=True)  # a concurrent writer may have removed it as a leftover
    return target


@contextlib.contextmanager
def atomic_output(target: Path) -> Iterator[Path]:
    """A temporary path; its file replaces `target` if the block succeeds, and is removed otherwise.

    Writers hold a shared lock on the folder. A writer that gets an exclusive lock is alone, so it can remove
    the leftovers of killed writers of the same target.

    Args:
        target: path that `check_output` returned.
    """
    temporary = _temporary_path(target)
    with naming(target, "written"):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _lock_and_clean_up(folder, target)
            yield temporary
            sync(temporary)
            temporary.replace(target)
            os.fsync(folder)
        finally:
            temporary.unlink(missing_ok=True)
            temporary.with_name(f"{temporary.name}.wal").unlink(missing_ok=True)
            os.close(folder)


@contextlib.contextmanager
def naming(path: Path, what: str) -> Iterator[None]:
    """Translate errors of the file system into a DataError that names the file and the operation."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be {what}: {error.strerror or error}") from error
    except RuntimeError as error:
        if "loop" not in str(error).lower():
            raise
        raise DataError(f"{path}: cannot be {what}: it is a loop of symbolic links") from error


def _temporary_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")


def _lock_and_clean_up(folder: int, target: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # another writer is active
        fcntl.flock(folder, fcntl.LOCK_SH)
        return
    prefix = f".{target.name}."
    for left in target.parent.iterdir():
        if left.name.startswith(prefix) and left.name.endswith((".partial", ".partial.wal")):
            left.unlink(missing_ok=True)
    fcntl.flock(folder, fcntl.LOCK_SH)
