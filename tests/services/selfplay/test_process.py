"""A worker process that receives SIGTERM during its work loses no finished trajectory."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from services.selfplay.settings import SelfPlaySettings
from services.selfplay.spool import Spool
from shared.adapters.streams.bus import Bus
from shared.adapters.tables.dataset import write_dataset
from shared.market.synthetic import Market, synthesize
from shared.messages.streams import TRAJECTORIES
from shared.runtime.ports import free_port
from shared.runtime.redis_server import RedisServer
from tests.conftest import ROOT
from tests.services.selfplay.test_service import publish
from tests.waiting import PATIENCE_SECONDS

LANES = 4
STOP_SECONDS = 5.0


class Worker:
    """A process of `services.selfplay` with its own home, data set and Prometheus port."""

    def __init__(self, home: Path, redis: RedisServer) -> None:
        self.home = home
        self.settings = SelfPlaySettings(home=home, redis_url=SecretStr(redis.url))
        write_dataset(home / "bars.duckdb", synthesize(Market.OU, 3_000, seed=1), "synthetic ou")
        self.port = free_port()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MM_")},
            "MM_HOME": str(home),
            "MM_DATASET": str(home / "bars.duckdb"),
            "MM_REDIS_URL": redis.url,
            "MM_INSTANCE": "worker-1",
            "MM_METRICS_PORT": str(self.port),
            "MM_SELFPLAY__LANES": str(LANES),
            "MM_SELFPLAY__HIGH_WATER": "100000",
            "MM_ENVIRONMENT__SESSION_BARS": "10",
            "OMP_NUM_THREADS": "1",
        }
        with (home / "worker.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.selfplay"], env=environment, cwd=ROOT, stderr=log
            )

    def played(self) -> int:
        """Finished episodes according to the process's metrics; 0 before it serves them."""
        try:
            metrics = httpx.get(f"http://127.0.0.1:{self.port}/metrics", timeout=5.0).text
        except httpx.TransportError:
            return 0
        found = re.search(r"^mm_selfplay_episodes_total (\S+)$", metrics, re.MULTILINE)
        return int(float(found[1])) if found else 0

    async def until_played(self, episodes: int) -> int:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (played := await asyncio.to_thread(self.played)) < episodes:
                assert self.process.poll() is None, (self.home / "worker.log").read_text()[-3000:]
                await asyncio.sleep(0.02)
        return played

    async def until_play_pauses(self) -> int:
        """Number of finished episodes once it has not grown for a second, in which many could finish."""
        played, unchanged = await self.until_played(0), 0
        while unchanged < 10:
            await asyncio.sleep(0.1)
            before, played = played, await self.until_played(0)
            unchanged = unchanged + 1 if played == before else 0
        return played

    async def stop(self) -> float:
        """Send SIGTERM; the seconds until the process exits."""
        begin = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(self.process.wait, PATIENCE_SECONDS)
        assert status == 0, (self.home / "worker.log").read_text()[-3000:]
        return time.monotonic() - begin


@pytest.fixture
def worker(tmp_path: Path, redis_server: RedisServer) -> Iterator[Worker]:
    worker = Worker(tmp_path, redis_server)
    yield worker
    worker.process.kill()
    worker.process.wait()


async def test_trajectories_finished_before_sigterm_are_in_the_stream(worker: Worker, bus: Bus) -> None:
    await publish(bus, worker.settings, 0)
    played = await worker.until_played(3 * LANES)
    assert await worker.stop() < STOP_SECONDS
    length = await bus.length(TRAJECTORIES)
    assert length >= played
    assert length % LANES == 0  # no batch was sent in part
    assert Spool(worker.settings.unsent_root).files() == []


async def test_trajectories_that_redis_could_not_take_before_sigterm_are_on_disk(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    redis = RedisServer(tmp_path / "redis", free_port())
    redis.start()
    request.addfinalizer(redis.stop)
    worker = Worker(tmp_path, redis)
    request.addfinalizer(worker.process.kill)
    bus = Bus(redis.url)
    await publish(bus, worker.settings, 0)
    await worker.until_played(LANES)
    await asyncio.to_thread(redis.stop, kill=True)
    played = await worker.until_play_pauses()  # the queue of finished batches is full
    await worker.stop()
    await asyncio.to_thread(redis.start)
    kept = Spool(worker.settings.unsent_root).files()
    assert len(kept) >= 2 * LANES
    assert await bus.length(TRAJECTORIES) + len(kept) >= played
    await bus.close()
