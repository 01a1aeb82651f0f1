"""A Redis of a test's own, since faults change or kill it, and the services' processes around it."""

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
from tests.faults.in_process import InProcessSystem, registry_of_their_own
from tests.services.trainer.processes import System


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of this process looks around often."""
    monkeypatch.setattr(consumer_group, "BLOCK_MS", 20)


def pytest_sessionfinish() -> None:
    """Connections that the last test broke are forgotten before pytest looks; till now some were held."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def bars(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """A data set for all processes."""
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
    """Services to start as processes; killed at the end."""
    async with _running(System(tmp_path, bars[1], own_redis, Bus(own_redis.url)), bars[0]) as system:
        yield system


@pytest_asyncio.fixture
async def forked_system(
    tmp_path: Path, bars: tuple[Path, Dataset], own_redis: RedisServer
) -> AsyncIterator[System]:
    """As `system`, for tests that start a service often and do not tell how long that takes."""
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
    """As `system`, of tasks in the default suite and of forked processes in a soak."""
    kind = ForkedSystem if request.node.get_closest_marker("soak") else InProcessSystem
    registry_of_their_own(monkeypatch)
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
