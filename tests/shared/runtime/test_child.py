"""Child processes that exit with their parent and hold a lock."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shared.runtime.child import EXIT_HELD, child_command
from shared.runtime.child import __file__ as script

PARENT = """
import subprocess, sys
from shared.runtime.child import child_command
child = subprocess.Popen(child_command(["sleep", "600"]))
print(child.pid, flush=True)
child.wait()
"""

#: Niceness of the session; missing if Linux has no autogroups.
AUTOGROUP = Path("/proc/self/autogroup")


def name_of(pid: int) -> str:
    """Program of a process; empty once it has exited."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if "State:\tZ" in status else status.split()[1]


def wait_for(pid: int, name: str) -> None:
    deadline = time.monotonic() + 20
    while name_of(pid) != name:
        assert time.monotonic() < deadline, f"process {pid} is still {name_of(pid)!r}, expected {name!r}"
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the exit of the parent")
def test_a_child_exits_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            wait_for(child, "sleep")
            parent.kill()
            wait_for(child, "")
        finally:
            if name_of(child):
                os.kill(child, signal.SIGKILL)


def test_a_program_whose_parent_has_already_exited_is_not_started(tmp_path: Path) -> None:
    """The parent exited before the child could ask for the signal."""
    started = tmp_path / "started"
    for parent, starts in ((os.getppid(), False), (os.getpid(), True)):
        command = [sys.executable, "-I", "-S", script, str(parent), "0", "", "touch", str(started)]
        assert subprocess.run(command).returncode == 0
        assert started.exists() is starts


def test_a_child_that_finds_its_lock_held_exits_with_an_error(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with subprocess.Popen(child_command(["sleep", "600"], lock=lock)) as holder:
        wait_for(holder.pid, "sleep")
        second = subprocess.run(child_command(["true"], lock=lock), capture_output=True, text=True)
        holder.kill()
    assert (second.returncode, second.stderr) == (EXIT_HELD, f"error: another process holds {lock}\n")
    assert subprocess.run(child_command(["true"], lock=lock)).returncode == 0


def test_a_child_gets_its_niceness_and_an_error_names_a_missing_program() -> None:
    nice = subprocess.run(child_command(["nice"], niceness=3), capture_output=True, text=True)
    assert int(nice.stdout) == min(os.nice(0) + 3, 19)
    if AUTOGROUP.exists():
        command = child_command(["cat", str(AUTOGROUP)], niceness=3)
        group = subprocess.run(command, capture_output=True, text=True, start_new_session=True)
        assert group.stdout.endswith("nice 3\n")
    missing = subprocess.run(child_command(["/no/such"]), capture_output=True, text=True)
    assert (missing.returncode, missing.stderr) == (127, "error: /no/such: No such file or directory\n")


def test_a_child_started_outside_the_main_thread_gets_no_signal() -> None:
    """Linux would send the signal when that thread exits, even if the parent process still runs."""
    commands: list[list[str]] = []
    thread = threading.Thread(target=lambda: commands.append(child_command(["true"])))
    thread.start()
    thread.join()
    assert commands[0][4] == "0"
    assert child_command(["true"])[4] == str(os.getpid())
