"""Services as processes that begin at once: forked from one that has imported everything.

Most of a service's start is importing. What follows is the same: its own memory, environment, log and
`main`, and a signal ends it as it ends any process.
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

#: What the services import, some of it only when they run.
MODULES = (
    *(f"services.{name}.__main__" for name in EXPECTED_SERVICES),
    *(f"services.{name}.service" for name in ("trainer", "selfplay", "validator")),
    "services.trainer.learning.distributed",
    "services.validator.validation",
    "torch._dynamo",  # when an optimiser is made
)

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(list(MODULES))


@dataclass
class Forked:
    """One of them, to be handled as a `subprocess.Popen`."""

    process: ForkServerProcess

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process.pid is not None
        return self.process.pid

    def poll(self) -> int | None:
        """The exit status, or minus the signal that ended it; None while it runs."""
        return self.process.exitcode

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()

    def send_signal(self, sig: int, /) -> None:
        """Send it a signal."""
        os.kill(self.pid, sig)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once it has ended."""
        self.process.join(timeout)
        status = self.poll()
        if status is None:
            raise TimeoutError(f"process {self.pid} did not end within {timeout} s")
        return status


class ForkedSystem(System):
    """A system whose services are forked."""

    def begin(self, service: str, launcher: Sequence[str], environment: Mapping[str, str]) -> Forked:
        """Start a service's process."""
        assert not launcher, "a launcher starts processes of its own"
        process = _FORKS.Process(
            target=_run, args=(service, dict(environment), self.home / f"{service}.log"), daemon=True
        )
        with pytest.MonkeyPatch.context() as patched:  # libraries read it when they are imported
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
