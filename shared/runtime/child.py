"""Child processes that end with the process that started them, and that hold a lock while they run.

`ending_with_parent` puts this file in front of a command line. Run as a script, it prepares its own process
and then becomes the program, which keeps the process id:

    child.py PARENT NICENESS LOCK PROGRAM [ARGUMENT ...]

On Linux the system sends SIGTERM to the program when its parent ends, however the parent ends. Other systems
have no such signal: there the program outlives a parent that is killed.

The lock lasts exactly as long as the program and its forks, since they inherit the open file. Python closes
its own files in every child, so the program is the only holder.
"""

import ctypes
import fcntl
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

#: Exit status when another process holds the lock; starting the program again later may succeed.
EXIT_HELD = 75

_EXIT_NOT_FOUND = 127
_PR_SET_PDEATHSIG = 1


def ending_with_parent(command: Sequence[str], *, niceness: int = 0, lock: Path | None = None) -> list[str]:
    """Command line that runs `command` as a child that ends with this process.

    Linux ties the signal to the *thread* that starts the child. A child that is started by any thread but the
    main one would end with that thread, so it is not tied at all.

    Args:
        command: program and arguments.
        niceness: added to the child's niceness.
        lock: file to hold an exclusive lock on while the child runs; the child exits with `EXIT_HELD` where
            another process holds it.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    parent = os.getpid() if in_main_thread else 0
    return [sys.executable, "-I", "-S", __file__, str(parent), str(niceness), str(lock or ""), *command]


def main(arguments: Sequence[str]) -> int:
    """Become the program; returns only where that fails."""
    parent, niceness, lock, *command = arguments
    if int(parent) and not _end_with(int(parent)):
        return 0
    _be_nice(int(niceness))
    if lock and not _hold(lock):
        sys.stderr.write(f"error: another process holds {lock}\n")
        return EXIT_HELD
    try:
        os.execvp(command[0], command)  # noqa: S606  no shell is wanted
    except OSError as missing:
        sys.stderr.write(f"error: {command[0]}: {missing.strerror}\n")
    return _EXIT_NOT_FOUND


def _end_with(parent: int) -> bool:
    """Ask the system for SIGTERM when the parent ends; False when it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    return os.getppid() == parent


def _be_nice(niceness: int) -> None:
    """Lower the priority, also of the session where Linux shares time by session first (autogroup)."""
    os.nice(niceness)
    try:
        if niceness and os.getsid(0) == os.getpid():
            Path("/proc/self/autogroup").write_text(str(niceness), encoding="ascii")
    except OSError:
        return  # no such system, or it takes no more changes now: the process itself is nice


def _hold(path: str) -> bool:
    held = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    os.set_inheritable(held, True)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
