"""The complete system as a user runs it, from bar to order: real processes, real Redis, real HTTP."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from cli.runs import Run, last_run, running
from shared.adapters.tables.dataset import write_dataset
from shared.market.bar import Instrument
from shared.market.synthetic import Market, synthesize
from shared.runtime.ports import free_port
from tests.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parents[2]

#: Services that are killed; the system must recover without loss.
KILLED = ("trainer", "selfplay-1", "trader", "validator")


class System:
    """A home folder, and the `up` that runs in it."""

    def __init__(self, home: Path, *, market_bars: int = 20_000) -> None:
        self.home = home
        self.port = free_port()
        self.environment = {
            **os.environ,
            "MM_HOME": str(home),
            "MM_PROFILE": str(ROOT / "tests" / "loop" / "tiny.toml"),
            "MM_PORT": str(self.port),
            "MM_MARKET_BARS": str(market_bars),
        }
        self.process: subprocess.Popen[str] | None = None

    def start(self, *arguments: str) -> None:
        """Start `up` in the background."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "up", "--json", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command in the same home."""
        return subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def status(self) -> dict[str, object] | None:
        """Status from the gateway, or None while it does not answer."""
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}/status", timeout=5.0)
        except httpx.TransportError:
            return None
        return dict(answer.json()) if answer.status_code == 200 else None

    def wait_until(
        self, description: str, condition: Callable[[dict[str, object]], bool]
    ) -> dict[str, object]:
        """Wait until a condition on the status holds; the failure shows the last status and logs."""
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE_SECONDS
        status = None
        while time.monotonic() < deadline:
            status = self.status()
            if status is not None and condition(status):
                return status
            if self.process.poll() is not None:
                break
            time.sleep(0.2)
        raise AssertionError(
            f"did not happen: {description}\nlast status: {json.dumps(status)}\n{self.logs()}"
        )

    def stop(self) -> tuple[dict[str, object], str]:
        """Stop `up` as Ctrl-C does; returns its summary and its stderr."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        output, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, f"{errors}\n{self.logs()}"
        return json.loads(output), errors

    def logs(self) -> str:
        """The last lines of all logs."""
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-12:])
            for path in sorted(self.home.glob("runs/*/logs/*.log"))
        )


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    system = System(tmp_path / "home")
    yield system
    if system.process and system.process.poll() is None:
        system.process.send_signal(signal.SIGTERM)
    if system.process:
        system.process.communicate(timeout=60)  # also closes the pipes


def _stream(status: dict[str, object], key: str) -> int:
    streams = status["streams"]
    assert isinstance(streams, dict)
    return int(streams.get(key) or 0)


def _learns_and_trades(status: dict[str, object]) -> bool:
    pointers = status["pointers"]
    assert isinstance(pointers, dict)
    return (
        bool(pointers.get("promoted"))
        and (pointers.get("newest") or 0) >= 1
        and _stream(status, "mm:validations") >= 1
        and _stream(status, "mm:decisions") >= 5
    )


def _run(system: System) -> Run:
    run = last_run(system.home)
    assert run is not None
    return run


def test_up_trades_resumes_and_recovers_from_kills(system: System, tmp_path: Path) -> None:
    # Not the default instrument, since every service must take it from the data set.
    data = tmp_path / "euro.duckdb"
    bars = synthesize(Market.OU, 20_000, seed=1, instrument=Instrument.named("EUR_USD"))
    write_dataset(data, bars, "synthetic")
    system.start("--data", str(data), "--replicas", "1")
    first = system.wait_until("a version is promoted and decisions are made", _learns_and_trades)
    versions = first["pointers"]["newest"]  # type: ignore[index]
    shown = system.command("status", "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["pointers"]["promoted"]
    listed = system.command("checkpoints", "list", "--json")
    assert [row["version"] for row in json.loads(listed.stdout)][-1] >= versions
    second_up = system.command("up")
    assert second_up.returncode == 2
    assert "is already running" in second_up.stderr

    summary, errors = system.stop()
    assert "had to kill" not in errors
    assert running(system.home) is None
    episodes = summary["training"]["episode"]  # type: ignore[index]
    assert episodes > 0

    system.start("--data", str(data), "--replicas", "1")
    again = system.wait_until("the second run learns and trades", _learns_and_trades)
    assert again["pointers"]["newest"] >= summary["pointers"]["newest"]  # type: ignore[index]
    assert again["training"]["episode"] >= episodes  # type: ignore[index]
    assert again["trader"]["last_decision"]["version"] is not None  # type: ignore[index]
    assert _stream(again, "mm:decisions") >= _stream(summary, "mm:decisions")

    before = _run(system).pids
    for name in KILLED:
        os.kill(before[name], signal.SIGKILL)

    def all_restarted(_: dict[str, object]) -> bool:
        pids = _run(system).pids
        return all(pids.get(name) not in (None, before[name]) for name in KILLED)

    restarted = system.wait_until("the killed services run again", all_restarted)
    grown = {stream: _stream(restarted, stream) + 1 for stream in ("mm:checkpoints", "mm:decisions")}
    after = system.wait_until(
        "there are new versions and decisions",
        lambda s: all(_stream(s, stream) >= grown[stream] for stream in grown),
    )
    assert after["dead_letters"] == 0
    stopped = system.command("down")
    assert stopped.returncode == 0, stopped.stderr
    assert system.process is not None
    output, errors = system.process.communicate(timeout=30)
    assert "had to kill" not in errors
    assert json.loads(output)["dead_letters"] == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["up", "--data", "nowhere.csv"], "no such file"),
        (["up", "--replicas", "0"], "replicas"),
        (["status"], "no system is running"),
        (["monitor"], "no system is running"),
        (["kill"], "no trader has run in"),
    ],
)
def test_invalid_commands_print_one_line(tmp_path: Path, arguments: list[str], text: str) -> None:
    result = System(tmp_path / "home").command(*arguments)
    assert result.returncode == 2
    assert text in result.stderr
    assert len(result.stderr.splitlines()) == 1 or result.stderr.startswith("Usage:")
    assert "Traceback" not in result.stderr


def test_up_refuses_an_unknown_setting(tmp_path: Path) -> None:
    system = System(tmp_path / "home")
    system.environment["MM_SEARCH__SIMULATION"] = "7"
    result = system.command("up")
    assert result.returncode == 2
    assert "MM_SEARCH__SIMULATION" in result.stderr
    assert "MM_SEARCH__SIMULATIONS" in result.stderr
    assert not (tmp_path / "home").exists()
