"""`up`, `down` and `status`: the whole system as local processes, with a Redis of its own."""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cli.local_data import prepare_dataset
from cli.monitor import Snapshot, build_view, fetch_snapshot, live_display, summary_lines
from cli.output import err, out, print_json
from cli.runs import Run, exclusive, last_run, require_running, running
from cli.settings import UpSettings
from cli.supervisor import ProcessSpec, Supervisor
from shared.errors import ServiceError
from shared.numeric import COMPILED_MARK
from shared.runtime.redis_server import RedisServer, free_port, is_free
from shared.runtime.settings import load

#: Stopped first to last, with the seconds that each phase may take; 10 s in all with Redis.
STOP_PHASES = (
    (("trader", "selfplay", "validator"), 4.5),
    (("trainer", "inference", "broker", "api"), 2.5),
)

#: Learning and trading come first on a machine with fewer cores than processes.
_NICENESS = {"selfplay": 10, "validator": 5}

DOWN_SECONDS = 15.0
SNAPSHOT_SECONDS = 1.0
PLAIN_LINE_SECONDS = 10.0

#: What `up` runs with unless it is told another profile.
TUNED = Path(__file__).resolve().parents[1] / "config" / "tuned.toml"

Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]


def up(
    replicas: Annotated[int | None, typer.Option(min=1, max=64, help="self-play workers")] = None,
    data: Annotated[
        Path | None, typer.Option(help="bars in any format that `data import` reads, or a data set")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="TOML file of settings; config/tuned.toml unless MM_PROFILE names one"),
    ] = None,
    duration: Annotated[
        float | None, typer.Option(min=1, help="stop by itself after so many seconds")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the closing summary as JSON")] = False,
) -> None:
    """Run the whole system here until Ctrl-C; a second `up` goes on from where it was."""
    settings = load(UpSettings, profile=profile or load(UpSettings).profile or TUNED)
    home = settings.home.resolve()
    with exclusive(home):
        _compile_kernels_once()
        dataset = prepare_dataset(home, data, settings)
        last = asyncio.run(_System(settings, home, dataset, replicas or settings.replicas).run(duration))
    if last is None:
        raise ServiceError(
            f"the system never answered; see the logs in {home / 'runs' / dataset.stem / 'logs'}"
        )
    if as_json:
        print_json(last.document)
    else:
        for line in summary_lines(last):
            out.print(line, highlight=False, soft_wrap=True)


def down() -> None:
    """Stop the system that `up` started here, in order."""
    home = load(UpSettings).home.resolve()
    run = running(home)
    if run is None:
        _end_leftovers(last_run(home))
        out.print("nothing is up")
        return
    os.kill(run.pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_SECONDS
    while running(home):
        if time.monotonic() > deadline:
            raise ServiceError(
                f"process {run.pid} did not stop within {DOWN_SECONDS:.0f} s; see {run.folder}/logs"
            )
        time.sleep(0.1)
    out.print("stopped")


def status(as_json: Json = False) -> None:
    """Show once what the system that is up here is doing."""
    run = require_running(load(UpSettings).home.resolve())
    snapshot = asyncio.run(fetch_snapshot(run.gateway_url))
    if snapshot is None:
        raise ServiceError(
            f"the gateway at {run.gateway_url} does not answer; its log is in {run.folder}/logs"
        )
    if as_json:
        print_json(snapshot.document)
    else:
        out.print(build_view(snapshot))


class _System:
    """All processes of one run."""

    def __init__(self, settings: UpSettings, home: Path, dataset: Path, replicas: int) -> None:
        self._home, self._dataset, self._replicas = home, dataset, replicas
        self._folder = home / "runs" / dataset.stem
        self._logs = self._folder / "logs"
        self._redis = RedisServer(self._folder / "redis", free_port())
        self._gateway_port = settings.port if is_free(settings.port) else free_port()
        self._profile = settings.profile
        self._api_key = _kept_secret(home / "api_key")
        self._events: deque[str] = deque(maxlen=8)
        self._interactive = sys.stdout.isatty()

    @property
    def gateway_url(self) -> str:
        """Where the dashboard is."""
        return f"http://127.0.0.1:{self._gateway_port}"

    async def run(self, duration: float | None) -> Snapshot | None:
        """Start everything, show what happens, stop everything; the last snapshot taken."""
        _end_leftovers(last_run(self._home))
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(signum, stop.set)
        self._redis.start()
        supervisor = Supervisor(self._tell)
        last: Snapshot | None = None
        try:
            for spec in self._specs():
                await supervisor.start(spec)
            self._save(supervisor)
            err.print(
                f"dashboard {self.gateway_url}\nlogs      {self._logs}\nAPI key   {self._home / 'api_key'}",
                soft_wrap=True,
                highlight=False,
            )
            last = await self._show(supervisor, stop, duration)
        finally:
            err.print("stopping ...")
            killed = await supervisor.stop(STOP_PHASES)
            self._redis.stop(timeout=2.0)
            if killed:
                err.print(f"had to kill: {', '.join(killed)}")
        if supervisor.failure.done():
            raise supervisor.failure.result()
        return last

    async def _show(
        self, supervisor: Supervisor, stop: asyncio.Event, duration: float | None
    ) -> Snapshot | None:
        started = time.monotonic()
        last: Snapshot | None = None
        next_line = 0.0
        with live_display(self._interactive) as show:
            while not stop.is_set() and not supervisor.failure.done():
                elapsed = time.monotonic() - started
                if duration is not None and elapsed >= duration:
                    break
                last = await fetch_snapshot(self.gateway_url, events=tuple(self._events)) or last
                if last is not None:
                    self._save(supervisor)
                    if self._interactive:
                        show(build_view(last))
                    elif elapsed >= next_line:
                        next_line = elapsed + PLAIN_LINE_SECONDS
                        err.print(f"{elapsed:5.0f} s  {last.line}", highlight=False, soft_wrap=True)
                await _wait(stop.wait, SNAPSHOT_SECONDS)
        return last

    def _specs(self) -> list[ProcessSpec]:
        names = ["trainer", *(f"selfplay-{n + 1}" for n in range(self._replicas))]
        names += ["validator", "inference", "broker", "trader", "api"]
        common = self._common_environment()
        return [
            ProcessSpec(
                name,
                f"services.{name.split('-')[0]}",
                {**common, "MM_INSTANCE": name},
                self._logs / f"{name}.log",
                _NICENESS.get(name.split("-")[0], 0),
            )
            for name in names
        ]

    def _common_environment(self) -> dict[str, str]:
        inference, broker = free_port(), free_port()
        environment = {
            "MM_HOME": str(self._folder),
            "MM_DATASET": str(self._dataset),
            "MM_REDIS_URL": self._redis.url,
            "MM_GATEWAY__PORT": str(self._gateway_port),
            "MM_GATEWAY__API_KEY": self._api_key,
            "MM_INFERENCE__PORT": str(inference),
            "MM_BROKER__PORT": str(broker),
            "MM_TRADER__INFERENCE_URL": f"http://127.0.0.1:{inference}",
            "MM_TRADER__BROKER_URL": f"http://127.0.0.1:{broker}",
            "OANDA_TOKEN": _kept_secret(self._home / "paper_token"),
            "OMP_NUM_THREADS": "1",
        }
        return {**environment, "MM_PROFILE": str(self._profile.resolve())} if self._profile else environment

    def _save(self, supervisor: Supervisor) -> None:
        pids = {**supervisor.pids, "redis": self._redis.pid or 0}
        Run(
            folder=str(self._folder),
            dataset=str(self._dataset),
            gateway_url=self.gateway_url,
            redis_url=self._redis.url,
            pid=os.getpid(),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            pids=pids,
        ).save(self._home)

    def _tell(self, event: str) -> None:
        self._events.append(f"{datetime.now():%H:%M:%S} {event}")
        if not self._interactive:
            err.print(event, highlight=False)


def _compile_kernels_once() -> None:
    """Fill the kernel cache before many processes need it; nothing to do from the second time on."""
    if COMPILED_MARK.is_file():
        return
    err.print("compiling kernels (once) ...")
    subprocess.run([sys.executable, "-m", "cli.main", "compile"], check=True)


def _kept_secret(path: Path) -> str:
    """A random secret that is made once and kept for the owner alone."""
    if not path.is_file():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(32), encoding="ascii")
    return path.read_text(encoding="ascii").strip()


def _end_leftovers(run: Run | None) -> None:
    """End what an `up` that was killed has left running."""
    for name, pid in (run.pids if run else {}).items():
        command_line = Path(f"/proc/{pid}/cmdline")
        if not command_line.is_file():
            continue
        words = command_line.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        if f"services.{name.split('-')[0]}" in words or (name == "redis" and "redis.conf" in words):
            os.kill(pid, signal.SIGKILL)
            err.print(f"ended {name} (process {pid}), left over from a run that was killed")


async def _wait(awaitable: Callable[[], Awaitable[object]], seconds: float) -> None:
    try:
        await asyncio.wait_for(awaitable(), seconds)
    except TimeoutError:
        return
