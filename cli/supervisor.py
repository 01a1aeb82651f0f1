"""Local processes, supervised: started, watched, restarted when they die, stopped in order.

Every child exits with this process, however this process exits (shared/runtime/child.py).
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
from shared.runtime.child import ending_with_parent
from shared.runtime.redis_server import log_tail

#: Prefixes of names that are stopped together, and the seconds until those still running are killed. A
#: healthy service stops within a second or two. The trader has what it has in docker-compose.yml.
STOP_PHASES = (
    (("trader", "selfplay", "validator"), 15.0),
    (("trainer", "inference", "broker", "api"), 30.0),
    (("redis",), 10.0),
)

RESTART_FIRST_SECONDS = 1.0
RESTART_MOST_SECONDS = 30.0

#: A process that ran this long starts over with the shortest wait.
STEADY_SECONDS = 60.0

#: Exit status of a service whose settings or data are at fault: starting it again cannot help.
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
    input_path: Path = Path(os.devnull)  # its standard input
    lock: Path | None = None  # held while the process runs; while another holds it, starting is retried
    obstacle: Callable[[], str] = _nothing  # asked before each restart: what prevents it, in words


@dataclass
class _Child:
    spec: ProcessSpec
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    log_start: int = 0  # length of the log when the process was last started


class Supervisor:
    """Keeps processes running until `stop`; reports what happens to them to `on_event`."""

    def __init__(self, on_event: Callable[[str], None]) -> None:
        self._on_event = on_event
        self._children: dict[str, _Child] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self.failure: asyncio.Future[ServiceError] = asyncio.get_running_loop().create_future()

    @property
    def pids(self) -> dict[str, int]:
        """Process id of everything that runs, by name."""
        running = {name: child.process for name, child in self._children.items() if _alive(child)}
        return {name: process.pid for name, process in running.items() if process is not None}

    def restarts(self, name: str) -> int:
        """How often a process was started again."""
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
        """Stop in phases: SIGTERM to all of a phase, then at most so many seconds, then SIGKILL.

        Args:
            phases: prefixes of names, and how long to wait for the processes that they match.
        Returns:
            Names that had to be killed.
        """
        for watcher in self._watchers:
            watcher.cancel()  # first: nothing may be started any more
        await asyncio.gather(*self._watchers, return_exceptions=True)
        killed: list[str] = []
        for prefixes, seconds in phases:
            phase = [
                c for name, c in self._children.items() if name.startswith(tuple(prefixes)) and _alive(c)
            ]
            killed += await _end(phase, seconds)
        return killed + await _end([child for child in self._children.values() if _alive(child)], 1.0)

    async def _launch(self, child: _Child) -> None:
        spec = child.spec
        spec.log_path.parent.mkdir(parents=True, exist_ok=True)
        with spec.input_path.open("rb") as given, spec.log_path.open("ab") as log:
            child.log_start = log.tell()
            child.process = await asyncio.create_subprocess_exec(
                *ending_with_parent(spec.command, niceness=spec.niceness, lock=spec.lock),
                stdin=given,
                stdout=log,
                stderr=log,
                env={**os.environ, **spec.environment},
                start_new_session=True,  # Ctrl-C reaches `up` alone, which stops the others in order
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
        """Start a process again, as often as it takes; each new reason why not is one event."""
        self._on_event(f"{child.spec.name} {reason}; starting it again in {backoff:.0f} s")
        told = ""
        while True:
            await asyncio.sleep(backoff)
            try:
                obstacle = child.spec.obstacle()
                if not obstacle:
                    await self._launch(child)
                    child.restarts += 1
                    return
            except OSError as failure:  # a disk that became read-only, for example
                obstacle = f"cannot be started: {failure}"
            if obstacle != told:
                self._on_event(f"{child.spec.name} {obstacle}")
            told = obstacle


def last_error(log_path: Path, *, since: int = 0) -> str:
    """The last line of a log that names an error, else its last line.

    Args:
        log_path: of lines of text or of JSON.
        since: offset of the first byte that counts.
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
        return f"ended with status {status}"
    names = {signum.value: signum.name for signum in signal.Signals}  # real-time signals have no name
    return f"was killed by {names.get(-status, f'signal {-status}')}"


async def _end(children: Sequence[_Child], seconds: float) -> list[str]:
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
