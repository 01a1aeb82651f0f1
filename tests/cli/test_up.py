"""`up` stops or restarts its processes when its terminal, its Redis or `up` itself fails."""

import contextlib
import fcntl
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from cli import leftovers as leftover_processes
from cli.leftovers import HOME_VARIABLE, NAME_VARIABLE, leftovers
from cli.local import _persistent_secret, down, status, up
from cli.runs import NotUpError, exclusive, last_run, lock_holder, running
from shared.errors import DataError
from tests.cli.small_up import SmallUp

NAMES = {"redis", "trainer", "selfplay-1", "validator", "inference", "broker", "trader", "api"}
FIRST = {"trader", "selfplay-1", "validator"}

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallUp]:
    home = tmp_path / "home"
    monkeypatch.setenv("MM_HOME", str(home))
    small = SmallUp(home)
    yield small
    small.clean_up()


def stopped_in_order(small: SmallUp) -> None:
    small.until_nothing_runs()
    stopped = small.stopped()
    assert set(stopped[: len(FIRST)]) == FIRST
    assert sorted(stopped) == sorted(NAMES - {"redis"}), "each gets SIGTERM once"
    assert lock_holder(small.home) is None


def test_a_closed_terminal_stops_everything_in_order(small: SmallUp) -> None:
    terminal = small.start_on_terminal()
    small.until_ready()
    assert small.names() == NAMES
    os.close(terminal)
    small.wait()
    stopped_in_order(small)


def test_a_closed_pipe_stops_everything_in_order(small: SmallUp) -> None:
    reading, writing = os.pipe()
    small.start(writing)
    os.close(writing)
    small.until_ready()
    os.close(reading)
    os.kill(small.named("broker").pid, signal.SIGKILL)  # `up` reports this in a line
    small.wait()
    small.until_nothing_runs()
    assert set(small.stopped()) >= FIRST


def test_a_full_pipe_does_not_block_the_supervisor(small: SmallUp) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writing, b"-" * 4096)
    small.start(writing)
    before = small.until_ready().pids["trader"]
    os.kill(before, signal.SIGKILL)
    small.until_ready(without=before)
    os.kill(small.pid, signal.SIGTERM)
    small.wait()
    stopped_in_order(small)
    os.close(reading)
    os.close(writing)


def test_sighup_stays_ignored_under_nohup(small: SmallUp) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Path(os.devnull).open("w") as nowhere:
            small.start(nowhere.fileno())
    finally:
        signal.signal(signal.SIGHUP, before)
    small.until_ready()
    os.kill(small.pid, signal.SIGHUP)
    os.kill(small.named("api").pid, signal.SIGKILL)
    small.until(lambda: any("api was killed" in event for event in small.events()))
    assert running(small.home)
    os.kill(small.pid, signal.SIGTERM)
    small.wait()
    small.until_nothing_runs()


def test_all_processes_exit_when_up_is_killed(small: SmallUp) -> None:
    with Path(os.devnull).open("w") as nowhere:
        small.start(nowhere.fileno())
    small.until_ready()
    os.kill(small.pid, signal.SIGKILL)
    small.wait()
    small.until_nothing_runs()
    assert sorted(small.stopped()) == sorted(NAMES - {"redis"}), (
        "each got SIGTERM, so that it could shut down"
    )
    assert last_run(small.home) is not None  # other commands find the files of the trader through it


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child process of an `up` with another home."""
    environment = {**os.environ, HOME_VARIABLE: str(tmp_path / "other"), NAME_VARIABLE: "trader"}
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, env=environment
    ) as p:
        yield p
        p.kill()


@pytest.mark.parametrize("command", ["down", "up"])
def test_processes_that_hang_after_a_kill_are_named_and_killed(
    small: SmallUp,
    stranger: subprocess.Popen[bytes],
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("IGNORE_SIGTERM", "trader")
    with Path(os.devnull).open("w") as nowhere:
        small.start(nowhere.fileno())
        before = small.until_ready()
        os.kill(small.pid, signal.SIGKILL)
        small.wait()
        small.until(lambda: small.names() == {"trader"})
        assert lock_holder(small.home) is None, "a child must not inherit the lock of `up`"
        with pytest.raises(NotUpError, match=rf"left processes: trader \({before.pids['trader']}\)"):
            status()
        monkeypatch.delenv("IGNORE_SIGTERM")
        monkeypatch.setattr(leftover_processes, "STOP_PHASES", ((("trader",), 0.5),))
        sigterms = small.stopped().count("trader")
        if command == "down":
            down()
            assert "had to kill: trader" in capsys.readouterr().err
            assert small.stopped().count("trader") > sigterms, "SIGTERM comes first"
        else:
            small.start(nowhere.fileno())
            assert small.until_ready().pids["trader"] != before.pids["trader"]
            assert [left.name for left in leftovers(small.home)].count("trader") == 1
            down()
            small.wait()
    assert leftovers(small.home) == []
    assert stranger.poll() is None


def test_a_killed_redis_is_restarted_with_its_data(small: SmallUp) -> None:
    with Path(os.devnull).open("w") as nowhere:
        small.start(nowhere.fileno())
    run = small.until_ready()
    with Redis.from_url(run.redis_url) as client:
        client.xadd("numbers", {"n": 1})
        os.kill(run.pids["redis"], signal.SIGKILL)

        def restarted() -> bool:
            with contextlib.suppress(RedisError):
                return int(client.xlen("numbers")) == 1 and client.info()["process_id"] != run.pids["redis"]
            return False

        small.until(restarted)
    small.until(lambda: running(small.home).pids.get("redis") not in (None, run.pids["redis"]))  # type: ignore[union-attr]
    assert any("redis was killed by SIGKILL; restarting it" in event for event in small.events())
    down()
    small.wait()
    stopped_in_order(small)


def test_a_full_disk_stops_nothing_and_is_reported_once(small: SmallUp) -> None:
    reading, writing = os.pipe()
    small.start(writing)
    os.close(writing)
    before = small.until_ready()
    _, most = resource.prlimit(small.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(small.pid, resource.RLIMIT_FSIZE, (0, most))  # no file may grow: EFBIG
    os.kill(before.pids["validator"], signal.SIGKILL)
    small.until(
        lambda: any(
            left.name == "validator" and left.pid != before.pids["validator"]
            for left in leftovers(small.home)
        )
    )
    time.sleep(0.5)  # several checks
    assert running(small.home) == before, "the previous file is intact"
    resource.prlimit(small.pid, resource.RLIMIT_FSIZE, (most, most))
    small.until(lambda: running(small.home) != before)
    assert running(small.home).started_at == before.started_at  # type: ignore[union-attr]
    assert not list(small.home.glob("*.tmp"))
    down()
    small.wait()
    with os.fdopen(reading, errors="replace") as output:
        assert output.read().count("cannot write up.json") == 1
    small.until_nothing_runs()


def test_a_second_up_is_refused_and_down_stops_the_first(
    small: SmallUp, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path(os.devnull).open("w") as nowhere:
        small.start(nowhere.fileno())
        run = small.until_ready()
        second = SmallUp(small.home)
        second.start(nowhere.fileno())
        assert second.wait() == 1
    assert f"already running (process {run.pid}" in (small.home / "failure").read_text()
    assert running(small.home) == run
    down()
    assert "stopped" in capsys.readouterr().out
    assert small.wait() == 0, "a requested stop is no failure, so systemd does not restart it"
    stopped_in_order(small)
    down()
    assert "no system is running" in capsys.readouterr().out


def test_a_suspended_up_can_be_stopped(small: SmallUp) -> None:
    """Ctrl-Z suspends `up`, but not its processes."""
    with Path(os.devnull).open("w") as nowhere:
        small.start(nowhere.fileno())
    small.until_ready()
    os.kill(small.pid, signal.SIGSTOP)
    down()
    small.wait()
    stopped_in_order(small)


@pytest.mark.parametrize("command", [up, down, status])
def test_an_unusable_home_is_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[[], None]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MM_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(DataError, match=r"file/home: cannot be .*: Not a directory"):
        command()


def test_on_a_full_disk_up_fails_and_releases_its_lock(tmp_path: Path) -> None:
    soft, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))  # no file may grow: EFBIG
    try:
        with pytest.raises(DataError, match="cannot be used as home"), exclusive(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, most))
    assert lock_holder(tmp_path) is None


def test_a_secret_is_kept_unless_a_power_failure_lost_it(tmp_path: Path) -> None:
    path = tmp_path / "api_key"
    kept = _persistent_secret(path)
    path.chmod(0o644)
    assert _persistent_secret(path) == kept
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("")
    assert len(_persistent_secret(path)) == len(kept)


def test_an_up_that_is_starting_is_not_mistaken_for_the_last_run(tmp_path: Path) -> None:
    """While `up` imports bars, up.json still describes the last run, with another process id."""
    assert lock_holder(tmp_path / "none") is None
    with exclusive(tmp_path):
        (tmp_path / "up.json").write_text(
            '{"folder": "f", "dataset": "d", "gateway_url": "u", "redis_url": "r", "pid": 1,'
            ' "started_at": "2026", "pids": {}}'
        )
        assert lock_holder(tmp_path) == os.getpid()
        assert running(tmp_path) is None
        with pytest.raises(NotUpError, match=f"process {os.getpid()} is starting"), exclusive(tmp_path):
            pass
    assert lock_holder(tmp_path) is None


def test_a_brief_check_of_the_lock_does_not_refuse_an_up(tmp_path: Path) -> None:
    (tmp_path / "up.lock").touch()
    with (tmp_path / "up.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        releasing = subprocess.Popen(
            [sys.executable, "-S", "-c", "import time; time.sleep(0.2)"], pass_fds=[lock.fileno()]
        )
    with exclusive(tmp_path):
        assert lock_holder(tmp_path) == os.getpid()
    assert releasing.wait() == 0
