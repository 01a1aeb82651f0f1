"""Services as processes that start quickly, forked from a process that has imported everything.

A service spends most of its start on imports. Apart from that, a forked service is like any process: it has
its own memory, environment, log and `main`, and reacts to signals.
"""

import importlib
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from services.api.config import EXPECTED_SERVICES
from tests.conftest import ROOT
from tests.services.trainer.processes import System

#: Modules that the services import, some of them only at run time.
MODULES = (
    *(f"services.{name}.__main__" for name in EXPECTED_SERVICES),
    *(f"services.{name}.service" for name in ("trainer", "selfplay", "validator")),
    "services.trainer.learning.distributed",
    "services.validator.validation",
    "torch._dynamo",  # imported when an optimiser is created
)

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(list(MODULES))


@dataclass
class Forked:
    """A forked process with the interface of `subprocess.Popen`."""

    process: ForkServerProcess

    @property
    def pid(self) -> int:
        """Process id."""
        assert self.process.pid is not None
        return self.process.pid

    def poll(self) -> int | None:
        """Exit status, or minus the signal that killed it; None while it runs."""
        return self.process.exitcode

    def kill(self) -> None:
        """Kill the process."""
        self.process.kill()

    def send_signal(self, sig: int, /) -> None:
        """Send a signal."""
        os.kill(self.pid, sig)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit; returns the exit status."""
        self.process.join(timeout)
        status = self.poll()
        if status is None:
            raise TimeoutError(f"process {self.pid} did not exit within {timeout} s")
        return status


class ForkedSystem(System):
    """A system whose services are forked."""

    def begin(self, service: str, launcher: Sequence[str], environment: Mapping[str, str]) -> Forked:
        """Start the process of a service."""
        assert not launcher, "a launcher would start its own processes"
        process = _FORKS.Process(
            target=_run, args=(service, dict(environment), self.home / f"{service}.log"), daemon=True
        )
        with pytest.MonkeyPatch.context() as patched:  # libraries read it at import
            patched.setenv("OMP_NUM_THREADS", environment["OMP_NUM_THREADS"])
            process.start()
        return Forked(process)


def _run(service: str, environment: dict[str, str], log: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    raise SystemExit(importlib.import_module(f"services.{service}.__main__").main([]))
