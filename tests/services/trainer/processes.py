"""Runs trainer and self-play as real processes over a real Redis."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import duckdb
import pytest

from services.trainer.intake.journal import Journal
from shared.adapters.streams.bus import Bus
from shared.adapters.tables.dataset import Dataset
from shared.messages.codec import encode_trajectory
from shared.messages.schemas import Heartbeat, TrajectoryFinished
from shared.messages.streams import TRAJECTORIES
from shared.runtime.redis_server import RedisServer
from tests.conftest import ROOT
from tests.shared.messages.trajectories import random_trajectory
from tests.waiting import PATIENCE_SECONDS

SESSION_BARS = 40

TINY = {
    "MM_MODEL__TEMPORAL_CHANNELS": "12",
    "MM_MODEL__STATIC_CHANNELS": "4",
    "MM_MODEL__VALUE_BINS": "31",
    "MM_LEARNER__BATCH_SIZE": "16",
    "MM_LEARNER__UNROLL_STEPS": "2",
    "MM_REPLAY__CAPACITY_STEPS": "400",
    "MM_TRAINER__SAMPLES_PER_INSERT": "1.0",
    "MM_TRAINER__MIN_REPLAY_STEPS": "80",
    "MM_TRAINER__PUBLISH_EVERY_EPISODES": "10",
    "MM_TRAINER__KEEP_CHECKPOINTS": "1000",
    "MM_SELFPLAY__LANES": "4",
    "MM_ENVIRONMENT__SESSION_BARS": str(SESSION_BARS),
    "MM_HEARTBEAT_SECONDS": "0.2",
    "OMP_NUM_THREADS": "1",
}


class Process(Protocol):
    """The methods of `subprocess.Popen` that the tests use."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def send_signal(self, sig: int, /) -> None: ...
    def wait(self, timeout: float | None = None) -> int: ...


@dataclass
class System:
    """The processes of one home, and access to their state."""

    home: Path
    dataset: Dataset
    redis: RedisServer
    bus: Bus
    processes: dict[str, Process] = field(default_factory=dict)

    def start(self, service: str, launcher: Sequence[str] = (), **settings: str) -> Process:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MM_")},
            **TINY,
            "MM_HOME": str(self.home),
            "MM_DATASET": str(self.home / "bars.duckdb"),
            "MM_REDIS_URL": self.redis.url,
            "MM_INSTANCE": f"{service}-1",
            **settings,
        }
        self.processes[service] = self.begin(service, launcher, environment)
        return self.processes[service]

    def begin(self, service: str, launcher: Sequence[str], environment: Mapping[str, str]) -> Process:
        """Start a service's process."""
        with (self.home / f"{service}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *launcher, f"services.{service}"],
                env=environment,
                cwd=ROOT,
                stderr=log,
            )

    def stop(self, service: str, signum: signal.Signals = signal.SIGTERM) -> int:
        process = self.processes.pop(service)
        process.send_signal(signum)
        return process.wait(PATIENCE_SECONDS)

    def log(self, service: str) -> str:
        return (self.home / f"{service}.log").read_text()

    async def beat(self, service: str) -> Heartbeat | None:
        return next((beat for beat in await self.bus.heartbeats() if beat.service == service), None)

    async def detail(self, service: str, name: str) -> float:
        """A number from a service's heartbeat; -1 while there is none."""
        beat = await self.beat(service)
        value = beat.detail.get(name) if beat else None
        return float(value) if isinstance(value, int | float) else -1.0

    async def until(self, what: str, holds: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not await holds():
            for service, process in self.processes.items():
                assert process.poll() is None, f"{service} exited:\n{self.log(service)[-3000:]}"
            if time.monotonic() > deadline:
                logs = "\n".join(self.log(service)[-1500:] for service in self.processes)
                pytest.fail(f"timed out waiting until {what}\n{logs}")
            await asyncio.sleep(0.05)

    async def learned_from(self, episodes: int) -> None:
        async def enough() -> bool:
            return await self.detail("trainer", "episode") >= episodes

        await self.until(f"{episodes} episodes learned from", enough)

    def recorded(self, table: str, column: str) -> list[int]:
        """A column of the run's record in ascending order."""
        with contextlib.closing(duckdb.connect()) as connection:
            query = f"select {column} from '{self.home}/record/{table}-*.parquet' order by 1"
            return [value for (value,) in connection.execute(query).fetchall()]

    def journalled_ids(self) -> list[str]:
        journal = Journal(self.home / "journal")
        ids = [str(journal.read(n).trajectory_id) for n in range(journal.first, journal.position)]
        journal.close()
        return ids


def sendable(
    system: System, first: int, last: int, *, version: int = 3
) -> list[tuple[TrajectoryFinished, bytes]]:
    fingerprint = system.dataset.fingerprint
    return [
        encode_trajectory(
            random_trajectory(seed, SESSION_BARS, start_bar=500, dataset=fingerprint, version=version)
        )
        for seed in range(first, last)
    ]


async def drained(system: System) -> bool:
    """True when the stream of trajectories is empty."""
    return await system.bus.length(TRAJECTORIES) == 0
