"""Supervises local processes: starts them, restarts those that exit, and stops them in order.

Every child exits when this process exits, even if this one is killed (shared/runtime/child.py).
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import ServiceError
from shared.runtime.child import child_command
from shared.runtime.redis_server import log_tail

#: Name prefixes of processes that are stopped together, and the seconds until they are killed. A healthy
#: service stops within a second or two. The trader's limit is the same as in docker-compose.yml.
STOP_PHASES = (
    (("trader", "selfplay", "validator"), 15.0),
    (("trainer", "inference", "broker", "api"), 30.0),
    (("redis",), 10.0),
)

RESTART_FIRST_SECONDS = 1.0
RESTART_MOST_SECONDS = 30.0

#: After a process has run this long, its backoff is reset.
STEADY_SECONDS = 60.0

#: Exit status of a service whose settings or data are invalid; restarting it cannot help.
EXIT_USER_FAULT = 2

_MAX_ERROR = 1000


def _nothing() -> str:
    return ""


@dataclass(frozen=True)
class ProcessSpec:
    """One process to keep running."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    log_path: Path
    niceness: int = 0  # added to the process's niceness
    input_path: Path = Path(os.devnull)  # standard input
    lock: Path | None = None  # the process holds this file lock; it starts once the lock is free
    obstacle: Callable[[], str] = _nothing  # called before each restart; returns why it must wait, or ""


@dataclass
class _Child:
    spec: ProcessSpec
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    log_start: int = 0  # bytes in the log when the process was last started


class Supervisor:
    """Keeps processes running until `stop`; calls `on_event` when a process exits or cannot be restarted."""

    def __init__(self, on_event: Callable[[str], None]) -> None:
        self._on_event = on_event
        self._children: dict[str, _Child] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self.failure: asyncio.Future[ServiceError] = asyncio.get_running_loop().create_future()

    @property
    def pids(self) -> dict[str, int]:
        """Ids of the running processes, by name."""
        running = {name: child.process for name, child in self._children.items() if _alive(child)}
        return {name: process.pid for name, process in running.items() if process is not None}

    def restarts(self, name: str) -> int:
        """Number of times that a process was restarted."""
        return self._children[name].restarts

    async def start(self, spec: ProcessSpec) -> None:
        """Start one process and keep it running.

        Raises:
            ServiceError: it cannot be started.
        """
        child = _Child(spec)
        self._children[spec.name] = child
        try:
            await self._launch(child)
        except OSError as failure:
            raise ServiceError(f"{spec.name} cannot be started: {failure}") from failure
        self._watchers.append(asyncio.create_task(self._watch(child)))

    async def stop(self, phases: Sequence[tuple[Sequence[str], float]] = STOP_PHASES) -> list[str]:
        """Stop in phases: send a phase's processes SIGTERM, wait, and send SIGKILL to those still running.

        Processes that match no phase are stopped last and killed after 1 s.

        Args:
            phases: name prefixes, and how many seconds to wait for the matching processes.
        Returns:
            Names of the processes that had to be killed.
        """
        for watcher in self._watchers:
            watcher.cancel()  # first, so that nothing is restarted
        await asyncio.gather(*self._watchers, return_exceptions=True)
        killed: list[str] = []
        for prefixes, seconds in phases:
            phase = [
                c for name, c in self._children.items() if name.startswith(tuple(prefixes)) and _alive(c)
            ]
            killed += await _stop_all(phase, seconds)
        return killed + await _stop_all([child for child in self._children.values() if _alive(child)], 1.0)

    async def _launch(self, child: _Child) -> None:
        spec = child.spec
        spec.log_path.parent.mkdir(parents=True, exist_ok=True)
        with spec.input_path.open("rb") as given, spec.log_path.open("ab") as log:
            child.log_start = log.tell()
            child.process = await asyncio.create_subprocess_exec(
                *child_command(spec.command, niceness=spec.niceness, lock=spec.lock),
                stdin=given,
                stdout=log,
                stderr=log,
                env={**os.environ, **spec.environment},
                start_new_session=True,  # Ctrl-C reaches only `up`, which stops the others in order
            )

    async def _watch(self, child: _Child) -> None:
        backoff = RESTART_FIRST_SECONDS
        while True:
            started = time.monotonic()
            assert child.process is not None
            status = await child.process.wait()
            reason = _described(status)
            if status > 0:
                reason = f"{reason}: {last_error(child.spec.log_path, since=child.log_start)}"
            if status == EXIT_USER_FAULT:
                if not self.failure.done():
                    self.failure.set_result(ServiceError(f"{child.spec.name} {reason}"))
                return
            if time.monotonic() - started > STEADY_SECONDS:
                backoff = RESTART_FIRST_SECONDS
            await self._restart(child, reason, backoff)
            backoff = min(backoff * 2, RESTART_MOST_SECONDS)

    async def _restart(self, child: _Child, reason: str, backoff: float) -> None:
        """Retry until the process starts; report an obstacle only when it changes."""
        self._on_event(f"{child.spec.name} {reason}; restarting it in {backoff:.0f} s")
        reported = ""
        while True:
            await asyncio.sleep(backoff)
            try:
                obstacle = child.spec.obstacle()
                if not obstacle:
                    await self._launch(child)
                    child.restarts += 1
                    return
            except OSError as failure:  # for example a disk that became read-only
                obstacle = f"cannot be started: {failure}"
            if obstacle != reported:
                self._on_event(f"{child.spec.name} {obstacle}")
            reported = obstacle


def last_error(log_path: Path, *, since: int = 0) -> str:
    """The last line of a log that mentions an error, or else the last line; of JSON, its `error` field.

    Args:
        log_path: log of text or JSON lines.
        since: byte offset at which to start reading.
    """
    lines = log_tail(log_path, since=since).splitlines()
    errors = [line for line in lines if "error" in line.lower()]
    line = (errors or lines or ["its log is empty"])[-1].removeprefix("error: ")
    try:
        document = json.loads(line)
    except ValueError:
        return line[:_MAX_ERROR]
    text = document.get("error", line) if isinstance(document, dict) else line
    return str(text)[:_MAX_ERROR]


def _alive(child: _Child) -> bool:
    return child.process is not None and child.process.returncode is None


def _described(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    names = {signum.value: signum.name for signum in signal.Signals}  # real-time signals have no name
    return f"was killed by {names.get(-status, f'signal {-status}')}"


async def _stop_all(children: Sequence[_Child], seconds: float) -> list[str]:
    processes = [(child.spec.name, child.process) for child in children if child.process is not None]
    for _, process in processes:
        process.terminate()
    if processes:
        await asyncio.wait([asyncio.create_task(p.wait()) for _, p in processes], timeout=seconds)
    late = [(name, process) for name, process in processes if process.returncode is None]
    for _, process in late:
        process.kill()
    await asyncio.gather(*(process.wait() for _, process in late))
    return [name for name, _ in late]
