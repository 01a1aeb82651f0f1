"""Find and stop processes that a killed `up` left behind.

Every child of `up` has the home's path in its environment, which `/proc` shows for the user's own processes.
So a leftover process is recognised even if files were deleted or process ids reused. On systems without
`/proc` no process is found.
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

#: Variable that names a child; the services read it as their instance name.
NAME_VARIABLE = "MM_INSTANCE"

_KILL_SECONDS = 10.0


@dataclass(frozen=True)
class Leftover:
    """One process that is still running."""

    name: str
    pid: int


def leftovers(home: Path) -> list[Leftover]:
    """Running child processes of the home's `up`. If that `up` is not running, they were left behind."""
    found = (_of_home(home, int(entry.name)) for entry in Path("/proc").glob("[0-9]*"))
    return sorted((left for left in found if left), key=lambda left: left.pid)


def described(left: Sequence[Leftover]) -> str:
    """Names and process ids, for messages."""
    return ", ".join(f"{process.name} ({process.pid})" for process in left)


def end_leftovers(home: Path, say: Callable[[str], None]) -> None:
    """Stop leftover processes in the order in which `up` stops them.

    Only the holder of the home's lock may do this, because the children of a running `up` look the same.

    Args:
        home: home of the `up` that was killed.
        say: prints a line; called with the processes to stop, and with those that had to be killed.
    """
    found = leftovers(home)
    if not found:
        return
    say(f"stopping processes that a killed `up` left behind: {described(found)}")
    for prefixes, seconds in (*STOP_PHASES, (("",), _KILL_SECONDS)):
        phase = [left for left in leftovers(home) if left.name.startswith(tuple(prefixes))]
        killed = _end(home, phase, seconds)
        if killed:
            say(f"had to kill: {described(killed)}")


def _end(home: Path, phase: Sequence[Leftover], seconds: float) -> list[Leftover]:
    """Send SIGTERM to all, wait, and send SIGKILL to the rest; returns those that were killed."""
    with ExitStack() as stack:
        handles = dict(_opened(home, phase, stack))
        _send(handles, signal.SIGTERM)
        late = _still_running(handles, seconds)
        _send(late, signal.SIGKILL)
        _still_running(late, _KILL_SECONDS)
        return list(late.values())


def _opened(home: Path, phase: Sequence[Leftover], stack: ExitStack) -> Iterator[tuple[int, Leftover]]:
    """A pidfd per process; a signal sent through it cannot reach another process with a reused id."""
    for left in phase:
        try:
            handle = os.pidfd_open(left.pid)
        except ProcessLookupError:
            continue
        stack.callback(os.close, handle)
        if _of_home(home, left.pid) == left:  # otherwise the id was reused before the pidfd was opened
            yield handle, left


def _send(handles: dict[int, Leftover], signum: signal.Signals) -> None:
    for handle in handles:
        with suppress(ProcessLookupError):  # it has exited meanwhile
            signal.pidfd_send_signal(handle, signum)


def _still_running(handles: dict[int, Leftover], seconds: float) -> dict[int, Leftover]:
    """Wait until all have exited or the time is over; returns those still running."""
    deadline = time.monotonic() + seconds
    running = dict(handles)
    while running and (remaining := deadline - time.monotonic()) > 0:
        exited, _, _ = select.select(list(running), [], [], remaining)
        for handle in exited:
            del running[handle]
    return running


def _of_home(home: Path, pid: int) -> Leftover | None:
    """The process, if it is a child of the home's `up`."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has exited, or belongs to another user
        return None
    variables = dict(entry.partition(b"=")[::2] for entry in environment.split(b"\0"))
    if variables.get(HOME_VARIABLE.encode()) != os.fsencode(home):
        return None
    return Leftover(variables.get(NAME_VARIABLE.encode(), b"?").decode(errors="replace"), pid)
