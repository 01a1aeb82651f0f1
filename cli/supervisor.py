"""Local processes, supervised: started, watched, started again when they die, stopped in order."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import ServiceError

RESTART_FIRST_SECONDS = 1.0
RESTART_MOST_SECONDS = 30.0

#: A process that ran this long starts over with the shortest wait.
STEADY_SECONDS = 60.0

#: Exit status of a service whose settings or data are at fault: starting it again cannot help.
EXIT_USER_FAULT = 2


@dataclass(frozen=True)
class ProcessSpec:
    """One process to keep running: `module` is run with `python -m`."""

    name: str
    module: str
    environment: Mapping[str, str] = field(repr=False)
    log_path: Path
    niceness: int = 0  # how far it stands back when cores are scarce


@dataclass
class _Child:
    spec: ProcessSpec
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0


class Supervisor:
    """Keeps processes running until `stop`; tells `on_event` what happens to them."""

    def __init__(self, on_event: Callable[[str], None]) -> None:
        self._on_event = on_event
        self._children: dict[str, _Child] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self._stopping = False
        self.failure: asyncio.Future[ServiceError] = asyncio.get_running_loop().create_future()

    @property
    def pids(self) -> dict[str, int]:
        """Process id of everything that runs, by name."""
        running = {name: child.process for name, child in self._children.items() if _alive(child)}
        return {name: process.pid for name, process in running.items() if process is not None}

    @property
    def restarts(self) -> int:
        """How often anything was started again."""
        return sum(child.restarts for child in self._children.values())

    async def start(self, spec: ProcessSpec) -> None:
        """Start one process and keep it running."""
        child = _Child(spec)
        self._children[spec.name] = child
        await self._launch(child)
        self._watchers.append(asyncio.create_task(self._watch(child)))

    async def stop(self, phases: Sequence[tuple[Sequence[str], float]]) -> list[str]:
        """Stop in phases: SIGTERM to all of a phase, then at most so many seconds, then SIGKILL.

        Args:
            phases: prefixes of names, and how long to wait for the processes that they match.
        Returns:
            Names that had to be killed.
        """
        self._stopping = True
        killed: list[str] = []
        for prefixes, seconds in phases:
            phase = [
                c for name, c in self._children.items() if name.startswith(tuple(prefixes)) and _alive(c)
            ]
            killed += await _end(phase, seconds)
        killed += await _end([child for child in self._children.values() if _alive(child)], 1.0)
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        return killed

    async def _launch(self, child: _Child) -> None:
        spec = child.spec
        spec.log_path.parent.mkdir(parents=True, exist_ok=True)
        with spec.log_path.open("ab") as log:
            child.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                spec.module,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **spec.environment},
                start_new_session=True,  # Ctrl-C reaches `up` alone, which stops the others in order
            )

        if spec.niceness:
            os.setpriority(os.PRIO_PROCESS, child.process.pid, spec.niceness)

    async def _watch(self, child: _Child) -> None:
        wait = RESTART_FIRST_SECONDS
        while True:
            started = time.monotonic()
            assert child.process is not None
            status = await child.process.wait()
            if self._stopping:
                return
            why = _described(status)
            if status == EXIT_USER_FAULT:
                if not self.failure.done():
                    self.failure.set_result(
                        ServiceError(f"{child.spec.name} {why}: {last_error(child.spec.log_path)}")
                    )
                return
            if time.monotonic() - started > STEADY_SECONDS:
                wait = RESTART_FIRST_SECONDS
            self._on_event(f"{child.spec.name} {why}; starting it again in {wait:.0f} s")
            await asyncio.sleep(wait)
            wait = min(wait * 2, RESTART_MOST_SECONDS)
            child.restarts += 1
            await self._launch(child)


def last_error(log_path: Path) -> str:
    """The last line of a log that tells of an error, or the last line of all."""
    lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["its log is empty"])[-1].removeprefix("error: ")[:1000]


def _alive(child: _Child) -> bool:
    return child.process is not None and child.process.returncode is None


def _described(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


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
