"""The real `up` with a real Redis, and with placeholder processes instead of the services.

It is forked from the test process, which has already imported everything.
"""

import os
import pty
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cli import local, supervisor
from cli.leftovers import Leftover, leftovers
from cli.runs import Run, running
from shared.errors import MuZeroError
from tests.waiting import PATIENCE_SECONDS

NUM_SERVICES = 7

#: Waits for SIGTERM, appends its name to the file `stopped`, and exits unless IGNORE_SIGTERM names it.
PLACEHOLDER = """
import os, pathlib, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
home, name = pathlib.Path(os.environ["MICRO_MUZERO_UP_HOME"]), os.environ["MM_INSTANCE"]
(home / f"{name}.{os.getpid()}").touch()
while True:
    signal.sigwait({signal.SIGTERM})
    with (home / "stopped").open("a") as file:
        file.write(name + "\\n")
    if name not in os.environ.get("IGNORE_SIGTERM", "").split():
        break
"""


class SmallUp:
    """One `up` in its own process."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        self._environment = {"MM_HOME": str(home), **environment}
        self.pid = 0

    def start_on_terminal(self) -> int:
        """Start it on its own terminal; returns the other end of that terminal."""
        self.pid, terminal = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup
            self._run()
        return terminal

    def start(self, output: int) -> None:
        """Start it with stdout and stderr redirected to a file descriptor."""
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.dup2(output, 1)
            os.dup2(output, 2)
            self._run()

    def wait(self) -> int:
        """Wait for the exit; returns the exit status, or minus the signal that killed it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        raise AssertionError(f"`up` did not exit within {PATIENCE_SECONDS} s")

    def until_ready(self, *, without: int = 0) -> Run:
        """Wait until every process runs and handles signals; returns the run.

        Args:
            without: id of a process that must have been replaced.
        """

        def ready() -> bool:
            run = running(self.home)
            if run is None or run.pid != self.pid or without in run.pids.values():
                return False
            names = {name: pid for name, pid in run.pids.items() if name != "redis"}
            return len(names) == NUM_SERVICES and all(
                (self.home / f"{name}.{pid}").exists() for name, pid in names.items()
            )

        self.until(ready)
        run = running(self.home)
        assert run is not None
        return run

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            failure = self.home / "failure"
            why = failure.read_text() if failure.exists() else ""
            assert time.monotonic() < deadline, f"{why}; {leftovers(self.home)}; {self.events()}"
            time.sleep(0.02)

    def until_nothing_runs(self) -> None:
        """Wait until no process of this home is left."""
        self.until(lambda: not leftovers(self.home))

    def events(self) -> list[str]:
        """The lines of up.log."""
        log = self.home / "runs" / "bars" / "logs" / "up.log"
        return log.read_text().splitlines() if log.exists() else []

    def stopped(self) -> list[str]:
        """Names of the processes that received SIGTERM, in order."""
        return (self.home / "stopped").read_text().split()

    def clean_up(self) -> None:
        """Kill the processes that a failed test has left."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        for left in leftovers(self.home):
            os.kill(left.pid, signal.SIGKILL)

    def names(self) -> set[str]:
        """Names of the running processes."""
        return {left.name for left in leftovers(self.home)}

    def named(self, name: str) -> Leftover:
        """One of the running processes."""
        return next(left for left in leftovers(self.home) if left.name == name)

    def _run(self) -> None:
        """Run `up` in the forked process; never returns."""
        status = 70
        try:
            os.closerange(3, 1024)  # including the other end of a pipe
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            os.environ.update(self._environment)
            _replace_services()
            local.up(replicas=1, data=None, profile=None, duration=None)
            status = 0
        except MuZeroError as failure:
            (self.home / "failure").write_text(str(failure))
            status = 1
        finally:
            os._exit(status)


def _replace_services() -> None:
    """Make `up` start placeholders instead of the services."""
    original = local._System._specs

    def placeholders(system: local._System) -> list[supervisor.ProcessSpec]:
        command = (sys.executable, "-S", "-c", PLACEHOLDER)
        return [replace(spec, command=command) for spec in original(system)]

    vars(supervisor)["RESTART_FIRST_SECONDS"] = vars(local)["POLL_SECONDS"] = 0.1
    vars(local)["prepare_dataset"] = lambda home, *_: home / "data" / "bars.duckdb"
    vars(local)["require_one_instrument"] = lambda *_, **__: "GBP_JPY"
    vars(local)["COMPILED_MARK"] = Path(__file__)
    local._System._specs = placeholders  # type: ignore[method-assign,assignment]
