"""Services as tasks of this process, which saves the time to start processes.

For tests that do not kill services or stop them by signals. Each service has its own metrics registry.
"""

import asyncio
import contextlib
import importlib
import inspect
import os
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis.exceptions import RedisError

from shared.runtime.lifecycle import Lifecycle, Main
from shared.runtime.settings import ServiceSettings, load
from tests.services.trainer.processes import System


@dataclass
class Task:
    """A service task with the interface of `subprocess.Popen`."""

    lifecycle: Lifecycle
    task: asyncio.Task[None]
    loop: asyncio.AbstractEventLoop
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def pid(self) -> int:
        """Id of this process."""
        return os.getpid()

    def poll(self) -> int | None:
        """0 after success, 1 after an error or cancellation; None while it runs."""
        if not self.task.done():
            return None
        return int(self.task.cancelled() or self.task.exception() is not None)

    def kill(self) -> None:
        """Cancel the task."""
        self.task.cancel()

    def send_signal(self, _sig: int, /) -> None:
        """Ask the service to stop; can be called from any thread."""
        self.loop.call_soon_threadsafe(self.lifecycle.stop)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit. In the task's own thread, return at once, since waiting would block the task."""
        with contextlib.suppress(RuntimeError):
            if asyncio.get_running_loop() is self.loop:
                return self.poll() or 0
        if not self.done.wait(timeout):
            raise TimeoutError(f"{self.lifecycle.service} did not stop within {timeout} s")
        status = self.poll()
        assert status is not None
        return status


@dataclass
class InProcessSystem(System):
    """A system whose services are tasks."""

    def begin(self, service: str, launcher: Sequence[str], environment: Mapping[str, str]) -> Task:
        """Start the task of a service."""
        assert not launcher, "a launcher would start its own processes"
        settings, compose = _parts(service, environment)
        lifecycle = Lifecycle(service, settings)
        loop = asyncio.get_running_loop()
        task = Task(lifecycle, loop.create_task(_live(lifecycle, settings, compose(settings))), loop)
        log = self.home / f"{service}.log"
        log.touch()

        def finish(finished: asyncio.Task[None]) -> None:
            if not finished.cancelled() and (failure := finished.exception()):
                log.write_text("".join(traceback.format_exception(failure)))
            task.done.set()

        task.task.add_done_callback(finish)
        return task


def _parts(
    service: str, environment: Mapping[str, str]
) -> tuple[ServiceSettings, Callable[[ServiceSettings], Main]]:
    """The settings and the compose function that the `main` of a service passes to `service_main`."""
    module = importlib.import_module(f"services.{service}.__main__")
    passed: list[Any] = []

    def record(*parts: object) -> int:
        passed.extend(parts)
        return 0

    with pytest.MonkeyPatch.context() as patched:
        for name in os.environ:
            if name.startswith("MM_"):
                patched.delenv(name)
        for name, value in environment.items():
            patched.setenv(name, value)
        patched.setattr(module, "service_main", record)
        module.main([])
        _, settings_class, compose, _ = passed
        settings = load(settings_class)
    if "registry" in inspect.signature(compose).parameters:
        compose = partial(compose, registry=CollectorRegistry())
    return settings, compose


async def _live(lifecycle: Lifecycle, settings: ServiceSettings, main: Main) -> None:
    beats = asyncio.create_task(_beat(lifecycle, settings.heartbeat_seconds))
    try:
        await main(lifecycle)
    finally:
        beats.cancel()
        await asyncio.gather(beats, return_exceptions=True)
        await lifecycle.bus.clear_heartbeat(lifecycle.service, lifecycle.instance)
        await lifecycle.bus.close()


async def _beat(lifecycle: Lifecycle, seconds: float) -> None:
    while True:
        with contextlib.suppress(RedisError, OSError):
            await lifecycle.bus.beat(lifecycle.heartbeat)
        await asyncio.sleep(seconds)


def use_new_registry(patched: pytest.MonkeyPatch) -> None:
    """Give inference a new metrics registry, since its compose function takes no argument for one."""
    patched.setattr("services.inference.__main__.REGISTRY", CollectorRegistry())
