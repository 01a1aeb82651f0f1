"""Runs a service: logging, heartbeats, graceful shutdown on a signal, and the exit status.

A service is a coroutine that takes its `Lifecycle`. It returns when `stopping` is set and its work is saved.
A start after a crash is the same as any other start.
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
from prometheus_client import REGISTRY
from redis.exceptions import RedisError

from shared.adapters.streams.bus import Bus
from shared.errors import MuZeroError
from shared.messages.schemas import Heartbeat, now
from shared.runtime.logs import configure_logs
from shared.runtime.settings import ServiceSettings

log = structlog.get_logger()

#: Longest wait for each Redis call at shutdown. A heartbeat that is not deleted expires by itself.
SHUTDOWN_REDIS_SECONDS = 1.0

#: Exit status of a service that a second Ctrl-C stopped at once.
EXIT_INTERRUPTED = 130

#: Seconds that a service may take to stop after its parent has exited; then SIGALRM kills it.
ORPHAN_SECONDS = 30

T = TypeVar("T")


class Lifecycle:
    """One instance of a service: its name, bus, stop request and heartbeat."""

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
        """Update the details that heartbeats carry. The first report changes the state to running.

        A heartbeat cannot hold NaN or infinity, so they become None.
        """
        if self._state == "starting":
            self._state = "running"
        for name, value in detail.items():
            finite = not isinstance(value, float) or math.isfinite(value)
            self._detail[name] = value if finite else None

    def stop(self) -> None:
        """Ask the service to finish its current work and return."""
        self._state = "stopping"
        self.stopping.set()

    @property
    def heartbeat(self) -> Heartbeat:
        """The instance's current heartbeat."""
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
        """Return an awaitable's result, or None if the service is asked to stop first.

        A stop request cancels the awaitable. Use this for waiting, never for work that must be finished.
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
        """Sleep for some seconds, or until the service is asked to stop."""
        await self.until_stopping(asyncio.sleep(seconds))


Main = Callable[[Lifecycle], Awaitable[None]]


def run_service(service: str, settings: ServiceSettings, main: Main) -> int:
    """Run a service until it returns. SIGTERM and SIGINT ask it to stop.

    Returns:
        Exit status of the process: 0 after a graceful shutdown, 1 after a failure, 2 if the user's input
        caused the failure.
    """
    status = asyncio.run(_run(service, settings, main))
    gc.freeze()  # skips the garbage collection at exit, which takes seconds with torch and numba loaded
    return status


async def _run(service: str, settings: ServiceSettings, main: Main) -> int:
    lifecycle = Lifecycle(service, settings)
    configure_logs(service, lifecycle.instance, level=settings.log_level, form=settings.log_format)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, _on_signal, lifecycle, signum)
    log.info("service_started", pid=os.getpid())
    beats = asyncio.create_task(_beat(lifecycle, settings))
    graceful = False
    try:
        async with _metrics(lifecycle, settings):
            await main(lifecycle)
        graceful = True
    except MuZeroError as failure:
        log.error("service_failed", error=str(failure), kind=type(failure).__name__)  # noqa: TRY400  the text is enough
        return 2 if failure.user_fault else 1
    except Exception:
        log.exception("service_crashed")
        return 1
    finally:
        await _shut_down(lifecycle, beats, graceful=graceful)
    return 0


def _metrics(lifecycle: Lifecycle, settings: ServiceSettings) -> contextlib.AbstractAsyncContextManager[None]:
    """Serve the process's metrics if a port is set."""
    if not settings.metrics_port:
        return contextlib.nullcontext()
    from shared.runtime.server import metrics_served  # imported late: slow, and needed only with a port

    return metrics_served(REGISTRY, lifecycle, host=settings.metrics_host, port=settings.metrics_port)


def _on_signal(lifecycle: Lifecycle, signum: int) -> None:
    """Shut down gracefully. A second Ctrl-C exits at once; a repeated SIGTERM changes nothing.

    SIGTERM can arrive twice: the operating system sends it when the parent exits, and `down` sends it too. If
    the parent has exited, no other process would kill a service that does not stop, so an alarm does.
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
        except (RedisError, OSError) as unavailable:
            log.debug("heartbeat_missed", error=str(unavailable))
        except Exception:
            log.exception("heartbeat_failed")
        await asyncio.sleep(settings.heartbeat_seconds)


async def _shut_down(lifecycle: Lifecycle, beats: asyncio.Task[None], *, graceful: bool) -> None:
    beats.cancel()
    await asyncio.wait({beats}, timeout=SHUTDOWN_REDIS_SECONDS)
    await _with_time_limit(_sign_off(lifecycle, graceful=graceful))
    await _with_time_limit(lifecycle.bus.close())
    log.info("service_stopped")


async def _sign_off(lifecycle: Lifecycle, *, graceful: bool) -> None:
    """Delete the heartbeat. After a graceful shutdown, also reset the delivery counts of pending entries."""
    await lifecycle.bus.clear_heartbeat(lifecycle.service, lifecycle.instance)
    if graceful:
        await lifecycle.bus.release_pending()


async def _with_time_limit(call: Awaitable[None]) -> None:
    """Wait at most `SHUTDOWN_REDIS_SECONDS` for a Redis call."""
    try:
        async with asyncio.timeout(SHUTDOWN_REDIS_SECONDS):
            await call
    except (RedisError, OSError) as unavailable:  # TimeoutError is an OSError
        log.debug("shutdown_redis_call_failed", error=str(unavailable))
