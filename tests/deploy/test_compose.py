"""`docker compose up` with a real engine: build, health, scaling, and a restart with the same data."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from shared.runtime.ports import free_port
from tests.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.docker


def _engine_fault() -> str:
    """The reason why no Docker engine with Compose 2 is available, or ""."""
    if not shutil.which("docker"):
        return "docker is not installed"
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            return f"{' '.join(command)}: {result.stderr.strip().splitlines()[-1]}"
    return ""


class Project:
    """A compose project with its own name, port and volumes."""

    def __init__(self) -> None:
        self.port = free_port()
        self.environment = {
            **os.environ,
            "PORT": str(self.port),
            "API_KEY": "compose-test-key-1",
            "MARKET_BARS": "20000",
        }

    def compose(self, *arguments: str, timeout: float = 1500) -> str:
        """Run `docker compose`; a failure shows the last log lines of the services."""
        result = subprocess.run(
            ["docker", "compose", "--project-name", f"mm-test-{os.getpid()}", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if result.returncode != 0 and "logs" not in arguments:
            logs = self.compose("logs", "--tail", "15", "--no-color")
            raise AssertionError(f"docker compose {' '.join(arguments)}:\n{result.stderr[-3000:]}\n{logs}")
        return result.stdout

    def status(self) -> dict[str, object]:
        """Status from the gateway on the published port."""
        answer = httpx.get(f"http://127.0.0.1:{self.port}/status", timeout=10.0)
        return dict(answer.raise_for_status().json())

    def wait_until(
        self, description: str, condition: Callable[[dict[str, object]], bool]
    ) -> dict[str, object]:
        """Wait until a condition on the status holds."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition(status := self.status()):
            if time.monotonic() > deadline:
                logs = self.compose("logs", "--tail", "15", "--no-color")
                raise AssertionError(f"did not happen: {description}\n{json.dumps(status)}\n{logs}")
            time.sleep(1.0)
        return status


@pytest.fixture
def project() -> Iterator[Project]:
    fault = _engine_fault()
    if fault:
        pytest.skip(f"no Docker engine: {fault}")
    project = Project()
    project.compose("build", "--quiet")
    yield project
    project.compose("down", "--volumes", "--timeout", "20")


def _instances(status: dict[str, object]) -> dict[str, int]:
    services = status["services"]
    assert isinstance(services, list)
    return {service["service"]: len(service["instances"]) for service in services}


def _entries(status: dict[str, object], stream: str) -> int:
    streams = status["streams"]
    assert isinstance(streams, dict)
    return int(streams[stream])


def _works(status: dict[str, object]) -> bool:
    pointers = status["pointers"]
    assert isinstance(pointers, dict)
    return bool(pointers["promoted"]) and _entries(status, "mm:decisions") >= 3


def test_compose_becomes_healthy_scales_and_resumes_after_down(project: Project) -> None:
    project.compose("up", "--detach", "--wait", "--scale", "selfplay=2")
    rows = [json.loads(line) for line in project.compose("ps", "--format", "json").splitlines()]
    assert {row["Service"]: row["Health"] for row in rows} == dict.fromkeys(
        ("redis", "trainer", "selfplay", "validator", "inference", "broker", "trader", "api"), "healthy"
    )
    first = project.wait_until("every service sends heartbeats", lambda s: _instances(s).get("selfplay") == 2)
    assert all(count >= 1 for count in _instances(first).values()), first["services"]
    before = project.wait_until("a version is promoted and decisions are made", _works)

    for service in ("trainer", "api"):
        inside = project.compose("exec", "-T", service, "sh", "-c", "id -u; touch /etc/x 2>&1 || true")
        assert inside.split()[0] != "0"
        assert "Read-only" in inside

    project.compose("down", "--timeout", "20")
    project.compose("up", "--detach", "--wait")
    after = project.wait_until(
        "it resumes with one worker", lambda s: _works(s) and _instances(s).get("selfplay") == 1
    )
    for stream in ("mm:checkpoints", "mm:decisions", "mm:validations"):
        assert _entries(after, stream) >= _entries(before, stream)
    assert after["dead_letters"] == 0
