"""Child processes that exit with their parent, and that hold a lock while they run.

`child_command` prefixes a command line with this file. Run as a script, it prepares its own process
and then replaces itself with the program, which keeps the process id:

    child.py PARENT NICENESS LOCK PROGRAM [ARGUMENT ...]

Linux sends SIGTERM to the program when its parent exits for any reason. Other systems have no such signal;
there the program survives a parent that is killed.

The program and its forks inherit the locked file, so the lock lasts as long as they run. Python closes its
own files in every child, so no other process holds the lock.
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


def child_command(command: Sequence[str], *, niceness: int = 0, lock: Path | None = None) -> list[str]:
    """Command line that runs `command` as a child that exits with this process.

    Linux sends the signal when the *thread* that started the child exits. A child that another
    thread starts would exit too early, so it requests no signal.

    Args:
        command: program and arguments.
        niceness: increment of the child's niceness.
        lock: file that the child holds an exclusive lock on; it exits with `EXIT_HELD` if another process
            holds the lock.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    parent = os.getpid() if in_main_thread else 0
    return [sys.executable, "-I", "-S", __file__, str(parent), str(niceness), str(lock or ""), *command]


def main(arguments: Sequence[str]) -> int:
    """Replace this process with the program; returns only if that fails."""
    parent, niceness, lock, *command = arguments
    if int(parent) and not _exit_with(int(parent)):
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


def _exit_with(parent: int) -> bool:
    """Ask the system for SIGTERM when the parent exits; False if it has already exited."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    return os.getppid() == parent


def _be_nice(niceness: int) -> None:
    """Lower the priority of the process, and of its session: Linux autogroups divide CPU time by session."""
    os.nice(niceness)
    try:
        if niceness and os.getsid(0) == os.getpid():
            Path("/proc/self/autogroup").write_text(str(niceness), encoding="ascii")
    except OSError:
        return  # the system has no autogroups, or allows no change now; os.nice still applies


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
