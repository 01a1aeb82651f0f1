"""Services as tasks of this process: they do what they do as processes, and none has to be started.

For tests in which no service is killed or stopped by a signal. What they tell Prometheus is kept apart.
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
    """One of them, to be handled as a `subprocess.Popen` is."""

    lifecycle: Lifecycle
    task: asyncio.Task[None]
    loop: asyncio.AbstractEventLoop
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def pid(self) -> int:
        """This process's."""
        return os.getpid()

    def poll(self) -> int | None:
        """0 when it ended in good order, 1 when not; None while it runs."""
        if not self.task.done():
            return None
        return int(self.task.cancelled() or self.task.exception() is not None)

    def kill(self) -> None:
        """End it."""
        self.task.cancel()

    def send_signal(self, _sig: int, /) -> None:
        """Ask it to stop; from any thread."""
        self.loop.call_soon_threadsafe(self.lifecycle.stop)

    def wait(self, timeout: float | None = None) -> int:
        """How it ended; at once in the thread that it runs in, where waiting would keep it from ending."""
        with contextlib.suppress(RuntimeError):
            if asyncio.get_running_loop() is self.loop:
                return self.poll() or 0
        if not self.ended.wait(timeout):
            raise TimeoutError(f"{self.lifecycle.service} did not end within {timeout} s")
        status = self.poll()
        assert status is not None
        return status


@dataclass
class InProcessSystem(System):
    """A system whose services are tasks."""

    def begin(self, service: str, launcher: Sequence[str], environment: Mapping[str, str]) -> Task:
        """Start a service's task."""
        assert not launcher, "a launcher starts processes of its own"
        settings, compose = _parts(service, environment)
        lifecycle = Lifecycle(service, settings)
        loop = asyncio.get_running_loop()
        task = Task(lifecycle, loop.create_task(_live(lifecycle, settings, compose(settings))), loop)
        log = self.home / f"{service}.log"
        log.touch()

        def end(ended: asyncio.Task[None]) -> None:
            if not ended.cancelled() and (failure := ended.exception()):
                log.write_text("".join(traceback.format_exception(failure)))
            task.ended.set()

        task.task.add_done_callback(end)
        return task


def _parts(
    service: str, environment: Mapping[str, str]
) -> tuple[ServiceSettings, Callable[[ServiceSettings], Main]]:
    """A service's settings, and what makes a coroutine of them, as its `main` hands them over."""
    module = importlib.import_module(f"services.{service}.__main__")
    found: list[Any] = []

    def handed(*parts: object) -> int:
        found.extend(parts)
        return 0

    with pytest.MonkeyPatch.context() as patched:
        for name in os.environ:
            if name.startswith("MM_"):
                patched.delenv(name)
        for name, value in environment.items():
            patched.setenv(name, value)
        patched.setattr(module, "service_main", handed)
        module.main([])
        _, settings_class, compose, _ = found
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


def registry_of_their_own(patched: pytest.MonkeyPatch) -> None:
    """Have inference, which is told of no other, use a registry that is new."""
    patched.setattr("services.inference.__main__.REGISTRY", CollectorRegistry())
