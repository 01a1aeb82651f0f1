"""Processes that an `up` left behind when it was killed: found, and ended in order.

Every child of `up` carries the home's path in its environment. The kernel shows the environment of the
user's own processes in `/proc`, so a process is recognised by what it is, whatever happened to files and
process ids since. On systems without `/proc` no process is found.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from cli.supervisor import STOP_PHASES

#: Variable in the environment of every child of `up`; its value is the home's absolute path.
HOME_VARIABLE = "MICRO_MUZERO_UP_HOME"

#: Variable that names a child, as in the services' settings.
NAME_VARIABLE = "MM_INSTANCE"

_KILL_SECONDS = 10.0


@dataclass(frozen=True)
class Leftover:
    """One process that still runs."""

    name: str
    pid: int


def leftovers(home: Path) -> list[Leftover]:
    """The processes of a home's `up` that run now; with no `up` running, those that were left behind."""
    found = (_of_home(home, int(entry.name)) for entry in Path("/proc").glob("[0-9]*"))
    return sorted((left for left in found if left), key=lambda left: left.pid)


def described(left: Sequence[Leftover]) -> str:
    """Names and process ids, for a message."""
    return ", ".join(f"{process.name} ({process.pid})" for process in left)


def end_leftovers(home: Path, say: Callable[[str], None]) -> None:
    """End what was left behind, in the order in which `up` stops its processes.

    Only the holder of the home's lock may do this: the processes of an `up` that runs look the same.

    Args:
        home: of the `up` that was killed.
        say: prints a line: which processes are ended, and which had to be killed.
    """
    found = leftovers(home)
    if not found:
        return
    say(f"ending what an `up` that was killed left behind: {described(found)}")
    for prefixes, seconds in (*STOP_PHASES, (("",), _KILL_SECONDS)):
        phase = [left for left in leftovers(home) if left.name.startswith(tuple(prefixes))]
        killed = _end(home, phase, seconds)
        if killed:
            say(f"had to kill: {described(killed)}")


def _end(home: Path, phase: Sequence[Leftover], seconds: float) -> list[Leftover]:
    """SIGTERM to all, then at most so many seconds, then SIGKILL; those that were killed."""
    with ExitStack() as stack:
        handles = dict(_opened(home, phase, stack))
        _send(handles, signal.SIGTERM)
        late = _still_running(handles, seconds)
        _send(late, signal.SIGKILL)
        _still_running(late, _KILL_SECONDS)
        return list(late.values())


def _opened(home: Path, phase: Sequence[Leftover], stack: ExitStack) -> Iterator[tuple[int, Leftover]]:
    """A handle of each process: a signal through it reaches that process or none."""
    for left in phase:
        try:
            handle = os.pidfd_open(left.pid)
        except ProcessLookupError:
            continue
        stack.callback(os.close, handle)
        if _of_home(home, left.pid) == left:  # or the id is another process's since
            yield handle, left


def _send(handles: dict[int, Leftover], signum: signal.Signals) -> None:
    for handle in handles:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            signal.pidfd_send_signal(handle, signum)


def _still_running(handles: dict[int, Leftover], seconds: float) -> dict[int, Leftover]:
    """Wait until all have ended, at most so long; those that have not."""
    deadline = time.monotonic() + seconds
    running = dict(handles)
    while running and (remaining := deadline - time.monotonic()) > 0:
        ended, _, _ = select.select(list(running), [], [], remaining)
        for handle in ended:
            del running[handle]
    return running


def _of_home(home: Path, pid: int) -> Leftover | None:
    """The process if it belongs to an `up` of the home."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended, or is another user's
        return None
    variables = dict(entry.partition(b"=")[::2] for entry in environment.split(b"\0"))
    if variables.get(HOME_VARIABLE.encode()) != os.fsencode(home):
        return None
    return Leftover(variables.get(NAME_VARIABLE.encode(), b"?").decode(errors="replace"), pid)
