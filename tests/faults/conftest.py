"""Fixtures of fault tests: each test has its own Redis and its own service processes."""

import contextlib
import gc
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from shared.adapters.streams import consumer_group
from shared.adapters.streams.bus import Bus
from shared.adapters.tables.dataset import Dataset, write_dataset
from shared.market.session import SessionConfig, SplitConfig
from shared.market.synthetic import Market, synthesize
from shared.runtime.redis_server import RedisServer
from tests.faults.forked import ForkedSystem
from tests.faults.in_process import InProcessSystem, use_new_registry
from tests.services.trainer.processes import System


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make blocking reads of this process short."""
    monkeypatch.setattr(consumer_group, "BLOCK_MS", 20)


def pytest_sessionfinish() -> None:
    """Collect connections that the last test broke, before pytest reports them as leaks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def bars(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """The data set of all processes."""
    path = tmp_path_factory.mktemp("bars") / "bars.duckdb"
    return path, write_dataset(
        path,
        synthesize(Market.OU, 9_000, seed=3),
        "synthetic ou",
        SessionConfig(min_mean_range_pips=0.0),
        SplitConfig(train=0.4, validation=0.5, embargo_days=0),
    )


@pytest_asyncio.fixture
async def system(tmp_path: Path, bars: tuple[Path, Dataset], own_redis: RedisServer) -> AsyncIterator[System]:
    """A system of service processes; those still running are killed at the end."""
    async with _running(System(tmp_path, bars[1], own_redis, Bus(own_redis.url)), bars[0]) as system:
        yield system


@pytest_asyncio.fixture
async def forked_system(
    tmp_path: Path, bars: tuple[Path, Dataset], own_redis: RedisServer
) -> AsyncIterator[System]:
    """Like `system`, for tests that start services often and do not measure the start time."""
    async with _running(ForkedSystem(tmp_path, bars[1], own_redis, Bus(own_redis.url)), bars[0]) as system:
        yield system


@pytest_asyncio.fixture
async def tasks_or_processes(
    tmp_path: Path,
    bars: tuple[Path, Dataset],
    own_redis: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> AsyncIterator[System]:
    """Like `system`, with tasks in the default suite and forked processes in soak tests."""
    kind = ForkedSystem if request.node.get_closest_marker("soak") else InProcessSystem
    use_new_registry(monkeypatch)
    async with _running(kind(tmp_path, bars[1], own_redis, Bus(own_redis.url)), bars[0]) as system:
        yield system


@contextlib.asynccontextmanager
async def _running(system: System, bars: Path) -> AsyncIterator[System]:
    (system.home / "bars.duckdb").symlink_to(bars)
    yield system
    for process in system.processes.values():
        process.kill()
        process.wait()
    await system.bus.close()
