"""The supervisor when a process exits, cannot be started, or is stopped."""

import asyncio
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import supervisor as supervising
from cli.supervisor import ProcessSpec, Supervisor, last_error
from shared.errors import ServiceError
from tests.waiting import PATIENCE_SECONDS

WAITS = "import time; time.sleep(600)"
FAILS = "import sys; print('error: no room'); sys.exit(3)"
INVALID_SETTING = "import sys; print('error: setting MM_X is wrong'); sys.exit(2)"


@pytest.fixture(autouse=True)
def quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "RESTART_FIRST_SECONDS", 0.05)


def spec(folder: Path, program: str, obstacle: Callable[[], str] = str) -> ProcessSpec:
    return ProcessSpec(
        "one", (sys.executable, "-S", "-c", program), {}, folder / "one.log", obstacle=obstacle
    )


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110  a state of other processes
            await asyncio.sleep(0.01)


async def test_a_process_that_exits_is_reported_and_restarted(tmp_path: Path) -> None:
    (tmp_path / "one.log").write_text("error: of an earlier run\n")
    events: list[str] = []
    supervisor = Supervisor(events.append)
    await supervisor.start(spec(tmp_path, FAILS))
    await until(lambda: supervisor.restarts("one") >= 1)
    assert events[0] == "one exited with status 3: no room; restarting it in 0 s"
    await supervisor.stop()
    assert supervisor.pids == {}


async def test_an_obstacle_delays_the_restart_and_is_reported_once(tmp_path: Path) -> None:
    obstacles = ["waits for disk space"] * 3
    events: list[str] = []
    supervisor = Supervisor(events.append)
    await supervisor.start(spec(tmp_path, FAILS, lambda: obstacles.pop() if obstacles else ""))
    await until(lambda: supervisor.restarts("one") >= 1)
    await supervisor.stop()
    assert events.count("one waits for disk space") == 1
    assert obstacles == []


async def test_a_failed_restart_is_retried_until_it_succeeds(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "one.log"
    events: list[str] = []
    supervisor = Supervisor(events.append)

    def obstruct() -> str:
        if log.is_file():  # now the log cannot be opened
            log.unlink()
            log.mkdir()
        elif any("cannot be started" in event for event in events):
            log.rmdir()
        return ""

    await supervisor.start(
        ProcessSpec("one", (sys.executable, "-S", "-c", FAILS), {}, log, obstacle=obstruct)
    )
    await until(lambda: supervisor.restarts("one") >= 1)
    await supervisor.stop()
    assert "one cannot be started: [Errno 21] Is a directory" in events[1]


async def test_a_disk_error_delays_a_restart(tmp_path: Path) -> None:
    events: list[str] = []

    def fail_once() -> str:
        if any("Read-only" in event for event in events):
            return ""
        raise OSError(errno.EROFS, "Read-only file system")

    supervisor = Supervisor(events.append)
    await supervisor.start(spec(tmp_path, FAILS, fail_once))
    await until(lambda: supervisor.restarts("one") >= 1)
    await supervisor.stop()
    assert events[1] == "one cannot be started: [Errno 30] Read-only file system"


async def test_a_process_is_restarted_after_a_signal_without_a_name(tmp_path: Path) -> None:
    events: list[str] = []
    supervisor = Supervisor(events.append)
    await supervisor.start(spec(tmp_path, WAITS))
    os.kill(supervisor.pids["one"], signal.SIGRTMIN + 6)
    await until(lambda: supervisor.restarts("one") >= 1)
    await supervisor.stop()
    assert f"one was killed by signal {signal.SIGRTMIN + 6};" in events[0]


async def test_invalid_user_input_fails_the_run_with_the_error_text(tmp_path: Path) -> None:
    supervisor = Supervisor(lambda _: None)
    await supervisor.start(spec(tmp_path, INVALID_SETTING))
    assert str(await supervisor.failure) == "one exited with status 2: setting MM_X is wrong"
    await supervisor.stop()


async def test_a_process_that_cannot_be_started_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "one.log").mkdir()
    with pytest.raises(ServiceError, match=r"one cannot be started: .* Is a directory"):
        await Supervisor(lambda _: None).start(spec(tmp_path, WAITS))


async def test_nothing_is_restarted_while_the_supervisor_stops(tmp_path: Path) -> None:
    """A process that has just exited would otherwise be restarted."""
    supervisor = Supervisor(lambda _: None)
    await supervisor.start(spec(tmp_path, FAILS))
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True)\n"
    command = (sys.executable, "-S", "-c", stubborn + WAITS)
    await supervisor.start(ProcessSpec("two", command, {}, tmp_path / "two.log"))
    await until(lambda: "ready" in (tmp_path / "two.log").read_text())
    stopping = asyncio.create_task(supervisor.stop(((("two",), 0.5),)))
    await until(lambda: "one" not in supervisor.pids)
    restarts = supervisor.restarts("one")
    assert await stopping == ["two"]
    assert supervisor.restarts("one") == restarts
    assert supervisor.pids == {}


def test_the_last_error_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert last_error(log) == "its log is empty"
    log.write_text("start\nerror: first\nend\n")
    assert last_error(log) == "first"
    assert last_error(log, since=19) == "end"
    log.write_text(
        '{"event": "service_failed", "level": "error", "error": "no such data set"}\n{"event": "x"}\n'
    )
    assert last_error(log) == "no such data set"
