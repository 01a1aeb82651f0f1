"""How every service lives: settings in, logs on, heartbeat, one signal to stop, everything drained.

A service is a coroutine that takes its `Lifecycle` and returns when `stopping` is set and its work is
safe. Starting, and starting after a crash, are the same path.
"""

import asyncio
import contextlib
import gc
import math
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

import structlog
from prometheus_client import REGISTRY, CollectorRegistry
from redis.exceptions import RedisError

from shared.adapters.streams.bus import Bus
from shared.errors import MuZeroError
from shared.messages.schemas import Heartbeat, now
from shared.runtime.logs import configure_logs
from shared.runtime.settings import ServiceSettings

log = structlog.get_logger()

#: Longest wait for Redis when a service says goodbye; without the goodbye its heartbeat expires by itself.
FAREWELL_SECONDS = 1.0

#: Exit status of a service that a second Ctrl-C stopped at once.
EXIT_INTERRUPTED = 130

#: A service whose parent has exited gets this long to stop; then SIGALRM ends it.
ORPHAN_SECONDS = 30

T = TypeVar("T")


class Lifecycle:
    """One service instance: its name, its bus, its stop request, and what its heartbeat reports."""

    def __init__(self, service: str, settings: ServiceSettings) -> None:
        self.service = service
        self.instance = settings.instance or f"{socket.gethostname()}-{os.getpid()}"
        self.bus = Bus(settings.redis_address)
        self.stopping = asyncio.Event()
        self.started_at: datetime = now()
        self.parent = os.getppid()
        self._state: str = "starting"
        self._detail: dict[str, int | float | str | bool | None] = {}

    def report(self, **detail: int | float | str | bool | None) -> None:
        """Set details of the next heartbeats; the first report changes the state to running.

        A number that is not finite becomes None, since no heartbeat may hold it.
        """
        if self._state == "starting":
            self._state = "running"
        for name, value in detail.items():
            finite = not isinstance(value, float) or math.isfinite(value)
            self._detail[name] = value if finite else None

    def stop(self) -> None:
        """Ask the service to finish what it is at and return."""
        self._state = "stopping"
        self.stopping.set()

    @property
    def heartbeat(self) -> Heartbeat:
        """The instance's heartbeat as of now."""
        state = "degraded" if self.bus.degraded and self._state == "running" else self._state
        return Heartbeat.model_validate(
            {
                "service": self.service,
                "instance": self.instance,
                "state": state,
                "pid": os.getpid(),
                "started_at": self.started_at,
                "detail": dict(self._detail),
            }
        )

    async def until_stopping(self, awaitable: Awaitable[T]) -> T | None:
        """The result of an awaitable, or None when the service is asked to stop first.

        What is given up is cancelled, so only waiting belongs here, never work that must be finished.
        """
        work = asyncio.ensure_future(awaitable)
        stop = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else None
        finally:
            stop.cancel()
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)

    async def sleep(self, seconds: float) -> None:
        """Sleep, but not past the moment when the service is asked to stop."""
        await self.until_stopping(asyncio.sleep(seconds))


Main = Callable[[Lifecycle], Awaitable[None]]


def run_service(
    service: str, settings: ServiceSettings, main: Main, *, registry: CollectorRegistry = REGISTRY
) -> int:
    """Run one service until SIGTERM or SIGINT, or until it returns; the process's exit status.

    0 when it ended in good order, 1 on a failure, 2 when the user's input is at fault.
    """
    status = asyncio.run(_run(service, settings, main, registry))
    gc.freeze()  # all is safe; the interpreter's last collection would walk torch and numba for seconds
    return status


async def _run(service: str, settings: ServiceSettings, main: Main, registry: CollectorRegistry) -> int:
    lifecycle = Lifecycle(service, settings)
    configure_logs(service, lifecycle.instance, level=settings.log_level, form=settings.log_format)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, _on_signal, lifecycle, signum)
    log.info("service_started", pid=os.getpid())
    beats = asyncio.create_task(_beat(lifecycle, settings))
    in_order = False
    try:
        async with _metrics(lifecycle, settings, registry):
            await main(lifecycle)
        in_order = True
    except MuZeroError as failure:
        log.error("service_failed", error=str(failure), kind=type(failure).__name__)  # noqa: TRY400  the text says it all
        return 2 if failure.user_fault else 1
    except Exception:
        log.exception("service_crashed")
        return 1
    finally:
        await _farewell(lifecycle, beats, in_order=in_order)
    return 0


def _metrics(
    lifecycle: Lifecycle, settings: ServiceSettings, registry: CollectorRegistry
) -> contextlib.AbstractAsyncContextManager[None]:
    """Serve the process's metrics where a port is set."""
    if not settings.metrics_port:
        return contextlib.nullcontext()
    from shared.runtime.server import metrics_served  # most services listen nowhere and do without

    return metrics_served(registry, lifecycle, host=settings.metrics_host, port=settings.metrics_port)


def _on_signal(lifecycle: Lifecycle, signum: int) -> None:
    """Stop in order; a second Ctrl-C stops at once, a repeated SIGTERM changes nothing.

    The system sends SIGTERM when the parent exits, and `down` sends it again. Nobody kills a service without
    a parent that does not finish, so an alarm does.
    """
    if os.getppid() != lifecycle.parent:
        signal.alarm(ORPHAN_SECONDS)
    if lifecycle.stopping.is_set():
        if signum == signal.SIGTERM:
            return
        log.warning("service_stopped_at_once", signal=signal.Signals(signum).name)
        sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)
    log.info("service_stopping", signal=signal.Signals(signum).name)
    lifecycle.stop()


async def _beat(lifecycle: Lifecycle, settings: ServiceSettings) -> None:
    """Send heartbeats; a failed heartbeat stops neither the loop nor the service."""
    while True:
        try:
            await lifecycle.bus.beat(lifecycle.heartbeat)
            if settings.alive_file:
                settings.alive_file.touch()
        except (RedisError, OSError) as away:
            log.debug("heartbeat_missed", error=str(away))
        except Exception:
            log.exception("heartbeat_failed")
        await asyncio.sleep(settings.heartbeat_seconds)


async def _farewell(lifecycle: Lifecycle, beats: asyncio.Task[None], *, in_order: bool) -> None:
    beats.cancel()
    await asyncio.wait({beats}, timeout=FAREWELL_SECONDS)
    await _within_farewell(_last_words(lifecycle, in_order=in_order))
    await _within_farewell(lifecycle.bus.close())
    log.info("service_stopped")


async def _last_words(lifecycle: Lifecycle, *, in_order: bool) -> None:
    await lifecycle.bus.clear_heartbeat(lifecycle.service, lifecycle.instance)
    if in_order:
        await lifecycle.bus.release_pending()


async def _within_farewell(words: Awaitable[None]) -> None:
    """Wait for Redis no longer than a moment."""
    try:
        async with asyncio.timeout(FAREWELL_SECONDS):
            await words
    except (RedisError, OSError) as away:  # TimeoutError is one of them
        log.debug("farewell_missed", error=str(away))
