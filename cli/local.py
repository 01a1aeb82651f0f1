"""`up`, `down` and `status`: the complete system as local processes, with its own Redis."""

import asyncio
import contextlib
import math
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cli.data import OptionalInstrumentName, Repair, Timezone
from cli.disk import REDIS_ROOM_MB, DiskWatch, warn_of_low_disk
from cli.leftovers import HOME_VARIABLE, NAME_VARIABLE, end_leftovers, leftovers
from cli.local_data import (
    FileOptions,
    check_data,
    configured_instruments,
    prepare_dataset,
    require_one_instrument,
)
from cli.monitor import Snapshot, build_view, fetch_snapshot, summary_lines
from cli.output import out, print_json, say
from cli.runs import NotUpError, Run, exclusive, lock_holder, require_running
from cli.settings import UpSettings
from cli.supervisor import STOP_PHASES, ProcessSpec, Supervisor
from cli.terminal import Terminal
from shared.errors import ServiceError
from shared.numeric import COMPILED_MARK
from shared.runtime.child import child_command
from shared.runtime.disk import free_megabytes
from shared.runtime.ports import free_port, is_free
from shared.runtime.redis_server import RedisServer
from shared.runtime.settings import load

#: Learning and trading have priority on a machine with fewer cores than processes.
_NICENESS = {"selfplay": 10, "validator": 5}

#: How long `down` waits. By then `up` has killed every process that exceeded the limit of its stop phase. The
#: additional 20 s allow for the last write of Redis and for a busy machine.
DOWN_SECONDS = sum(seconds for _, seconds in STOP_PHASES) + 20.0

POLL_SECONDS = 1.0
PLAIN_LINE_SECONDS = 10.0

#: If Redis never answers, `up` gives up after this many restarts.
REDIS_TRIES = 3

#: Default profile of `up`.
TUNED = Path(__file__).resolve().parents[1] / "config" / "tuned.toml"

Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]


def up(
    replicas: Annotated[int | None, typer.Option(min=1, max=64, help="number of self-play workers")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="data set, or a file that `data import` can read; default: synthetic market"),
    ] = None,
    instrument: OptionalInstrumentName = None,
    timezone: Timezone = None,
    repair: Repair = False,
    profile: Annotated[
        Path | None,
        typer.Option(help="TOML file of settings; default: MM_PROFILE, else config/tuned.toml"),
    ] = None,
    duration: Annotated[float | None, typer.Option(min=1, help="stop after this many seconds")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the final summary as JSON")] = False,
) -> None:
    """Run the complete system on this machine until Ctrl-C.

    The next `up` continues where this one stopped.
    """
    settings = load(UpSettings, profile=profile or load(UpSettings).profile or TUNED)
    home = settings.home.resolve()
    file_options = FileOptions(instrument, timezone, repair)
    check_data(data, file_options)  # before the kernels are compiled
    with exclusive(home):
        end_leftovers(home, say)
        warn_of_low_disk(home, settings)
        _compile_kernels_once()
        dataset = prepare_dataset(home, data, settings, file_options)
        traded = require_one_instrument(dataset, **configured_instruments(settings.profile))
        last = asyncio.run(
            _System(settings, home, dataset, traded, replicas or settings.replicas).run(duration)
        )
    if last is None:
        return
    if as_json:
        print_json(last.document)
    else:
        for line in summary_lines(last):
            out.print(line, highlight=False, soft_wrap=True)


def down() -> None:
    """Stop the system that `up` started on this machine.

    Also stops processes that a killed `up` left behind.
    """
    home = load(UpSettings).home.resolve()
    holder = lock_holder(home)
    if holder is not None:
        _stop(home, holder)
    if leftovers(home):
        try:
            with exclusive(home):  # fails if a new `up` has just started: the processes are its own
                end_leftovers(home, say)
        except NotUpError:
            return
    elif holder is None:
        out.print("no system is running")


def _stop(home: Path, holder: int) -> None:
    """Ask an `up` to stop, and wait until it has stopped."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(holder, signal.SIGTERM)
        os.kill(holder, signal.SIGCONT)  # Ctrl-Z may have suspended it
    deadline = time.monotonic() + DOWN_SECONDS
    while lock_holder(home) == holder:
        if time.monotonic() > deadline:
            raise ServiceError(
                f"process {holder} did not stop within {DOWN_SECONDS:.0f} s; run `kill -9 {holder}`, "
                "then run `micro-muzero down` again to stop its remaining processes"
            )
        time.sleep(0.1)
    out.print("stopped")


def status(as_json: Json = False) -> None:
    """Show the state of the running system once."""
    run = require_running(load(UpSettings).home.resolve())
    snapshot = asyncio.run(fetch_snapshot(run.gateway_url))
    if snapshot is None:
        raise ServiceError(
            f"the gateway at {run.gateway_url} does not answer; see its log in {run.folder}/logs"
        )
    if as_json:
        print_json(snapshot.document)
    else:
        out.print(build_view(snapshot))


class _System:
    """All processes of one run."""

    def __init__(
        self, settings: UpSettings, home: Path, dataset: Path, instrument: str, replicas: int
    ) -> None:
        self._home, self._dataset, self._replicas = home, dataset, replicas
        self._instrument = instrument
        self._folder = home / "runs" / dataset.stem
        self._logs = self._folder / "logs"
        self._redis = RedisServer(self._folder / "redis", free_port())
        self._gateway_port = settings.port if is_free(settings.port) else free_port()
        self._profile = settings.profile
        self._disk = DiskWatch(home, low_mb=settings.alerts.low_free_mb)
        self._api_key = _persistent_secret(home / "api_key")
        self._events: deque[str] = deque(maxlen=8)
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._stop = asyncio.Event()
        self._last: Snapshot | None = None
        self._saved: Run | None = None
        self._save_failure = ""

    @property
    def gateway_url(self) -> str:
        """Address of the gateway and its dashboard."""
        return f"http://127.0.0.1:{self._gateway_port}"

    async def run(self, duration: float | None) -> Snapshot | None:
        """Start all processes, show their state, and stop them.

        Returns:
            The last snapshot; None if the user stopped the system before the gateway answered.
        Raises:
            ServiceError: a process cannot run, or the gateway never answered.
        """
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # nohup ignores SIGHUP
                loop.add_signal_handler(signum, self._stop.set)

        def stop_on_closed_terminal() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so everything has stopped
                loop.call_soon_threadsafe(self._stop.set)

        self._terminal = Terminal(interactive=sys.stdout.isatty(), on_closed=stop_on_closed_terminal)
        supervisor = Supervisor(self._report)
        killed: list[str] = []
        try:
            await self._start(supervisor)
            await self._supervise(supervisor, duration)
        finally:
            self._terminal.say("stopping ...")
            killed = await supervisor.stop()
            if killed:
                self._terminal.say(f"had to kill: {', '.join(killed)}")
            self._terminal.close()
        if supervisor.failure.done():
            raise supervisor.failure.result()
        if self._last is None and not self._stop.is_set():
            raise ServiceError(f"the system never answered; see the logs in {self._logs}")
        return self._last

    async def _start(self, supervisor: Supervisor) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        self._redis.prepare()
        await supervisor.start(self._redis_spec())
        while not await asyncio.to_thread(self._redis.answers):
            if self._stop.is_set():
                return
            if supervisor.restarts("redis") >= REDIS_TRIES:
                raise ServiceError(self._redis.start_failure())
            await _wait(self._stop.wait, 0.05)
        for spec in self._specs():
            await supervisor.start(spec)
        self._save(supervisor)
        self._terminal.say(
            f"dashboard {self.gateway_url}\nlogs      {self._logs}\nAPI key   {self._home / 'api_key'}"
        )

    async def _supervise(self, supervisor: Supervisor, duration: float | None) -> None:
        """Supervise the processes until it is time to stop. A failure of the live view does not stop them."""
        deadline = math.inf if duration is None else time.monotonic() + duration
        view = asyncio.create_task(self._show())
        view.add_done_callback(self._on_view_done)
        while not self._stop.is_set() and not supervisor.failure.done() and time.monotonic() < deadline:
            self._save(supervisor)
            for event in self._disk.check(time.monotonic()):
                self._report(event)
            await _wait(self._stop.wait, min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))
        view.cancel()
        await asyncio.gather(view, return_exceptions=True)

    async def _show(self) -> None:
        started, next_line, reported = time.monotonic(), 0.0, ""
        while True:
            try:
                snapshot = await fetch_snapshot(self.gateway_url, events=tuple(self._events))
            except ServiceError as failure:
                snapshot = None
                if str(failure) != reported:
                    self._report(str(failure))
                reported = str(failure)
            if snapshot is not None:
                self._last = snapshot
                elapsed = time.monotonic() - started
                self._terminal.show(partial(build_view, snapshot))
                if not self._terminal.interactive and elapsed >= next_line:
                    next_line = elapsed + PLAIN_LINE_SECONDS
                    self._terminal.say(f"{elapsed:5.0f} s  {snapshot.line}")
            await asyncio.sleep(POLL_SECONDS)

    def _on_view_done(self, view: asyncio.Task[None]) -> None:
        if not view.cancelled():
            self._terminal.interactive = False  # from now on events are printed as lines
            self._report(f"the live view failed, the system continues: {view.exception()!r}")

    def _redis_spec(self) -> ProcessSpec:
        return ProcessSpec(
            "redis",
            self._redis.command,
            {HOME_VARIABLE: str(self._home), NAME_VARIABLE: "redis"},
            self._redis.log_path,
            input_path=self._redis.config_path,
            lock=self._redis.lock,
            obstacle=self._redis_obstacle,
        )

    def _redis_obstacle(self) -> str:
        """Return the reason why Redis cannot be started now, or "". Repair its file after a power failure."""
        free_mb = free_megabytes(self._folder)
        if free_mb < REDIS_ROOM_MB:
            return f"waits for disk space: needs {REDIS_ROOM_MB} MB, has {free_mb:,} MB in {self._folder}"
        removed = self._redis.remove_zero_tail()
        if removed:
            self._report(f"removed {removed:,} zero bytes from the end of the append-only file of Redis")
        return ""

    def _specs(self) -> list[ProcessSpec]:
        names = ["trainer", *(f"selfplay-{n + 1}" for n in range(self._replicas))]
        names += ["validator", "inference", "broker", "trader", "api"]
        common = self._common_environment()
        return [
            ProcessSpec(
                name,
                (sys.executable, "-m", f"services.{name.split('-')[0]}"),
                {**common, NAME_VARIABLE: name},
                self._logs / f"{name}.log",
                _NICENESS.get(name.split("-")[0], 0),
            )
            for name in names
        ]

    def _common_environment(self) -> dict[str, str]:
        inference, broker = free_port(), free_port()
        environment = {
            HOME_VARIABLE: str(self._home),
            "MM_HOME": str(self._folder),
            "MM_DATASET": str(self._dataset),
            "MM_REDIS_URL": self._redis.url,
            "MM_REDIS_PASSWORD": self._redis.password,  # overrides a password set for another Redis
            "MM_GATEWAY__PORT": str(self._gateway_port),
            "MM_GATEWAY__API_KEY": self._api_key,
            "MM_INFERENCE__PORT": str(inference),
            "MM_BROKER__PORT": str(broker),
            "MM_TRADER__INFERENCE_URL": f"http://127.0.0.1:{inference}",
            "MM_TRADER__INSTRUMENT": self._instrument,
            "MM_INFERENCE__INSTRUMENT": self._instrument,
            "MM_TRADER__BROKER_URL": f"http://127.0.0.1:{broker}",
            "OANDA_TOKEN": _persistent_secret(self._home / "paper_token"),
            "OMP_NUM_THREADS": "1",
        }
        return {**environment, "MM_PROFILE": str(self._profile.resolve())} if self._profile else environment

    def _save(self, supervisor: Supervisor) -> None:
        """Write up.json if the run has changed; report each kind of write failure only once."""
        run = Run(
            folder=str(self._folder),
            dataset=str(self._dataset),
            gateway_url=self.gateway_url,
            redis_url=self._redis.url,
            pid=os.getpid(),
            started_at=self._started_at,
            pids=supervisor.pids,
            profile=str(self._profile.resolve()) if self._profile else "",
        )
        if run == self._saved:
            return
        try:
            run.save(self._home)
        except OSError as failure:
            if str(failure) != self._save_failure:
                self._report(f"cannot write up.json, will retry: {failure}")
            self._save_failure = str(failure)
            return
        self._saved, self._save_failure = run, ""

    def _report(self, event: str) -> None:
        """Show an event and add it to up.log."""
        self._events.append(f"{datetime.now():%H:%M:%S} {event}")
        if not self._terminal.interactive or self._last is None:  # otherwise the live view shows it
            self._terminal.say(event)
        with contextlib.suppress(OSError), (self._logs / "up.log").open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {event}\n")


def _compile_kernels_once() -> None:
    """Compile the kernels into the cache, if they are missing, before many processes need them."""
    if COMPILED_MARK.is_file():
        return
    say("compiling kernels (once) ...")
    compiling = subprocess.run(child_command([sys.executable, "-m", "cli.main", "compile"]))
    if compiling.returncode:
        raise ServiceError(f"compiling the kernels failed with status {compiling.returncode}")


def _persistent_secret(path: Path) -> str:
    """A random secret, created once and readable only by its owner."""
    path.touch()
    path.chmod(0o600)
    kept = path.read_text(encoding="ascii").strip()
    if not kept:  # the file is new, or a power failure lost its content
        kept = secrets.token_urlsafe(32)
        path.write_text(kept, encoding="ascii")
    return kept


async def _wait(awaitable: Callable[[], Awaitable[object]], seconds: float) -> None:
    try:
        await asyncio.wait_for(awaitable(), seconds)
    except TimeoutError:
        return
