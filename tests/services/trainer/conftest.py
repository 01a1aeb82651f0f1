"""Fixtures: a data set, and a system of processes that are killed at the end."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from shared.adapters.streams.bus import Bus
from shared.adapters.tables.dataset import Dataset, write_dataset
from shared.market.session import SplitConfig
from shared.market.synthetic import Market, synthesize
from shared.runtime.redis_server import RedisServer
from tests.services.trainer.processes import System


@pytest.fixture(scope="module")
def saved_dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    folder = tmp_path_factory.mktemp("bars")
    bars = synthesize(Market.OU, 6_000, seed=1)
    return folder / "bars.duckdb", write_dataset(
        folder / "bars.duckdb", bars, "synthetic ou", split_config=SplitConfig(train=0.5, validation=0.25)
    )


@pytest_asyncio.fixture
async def system(
    tmp_path: Path, saved_dataset: tuple[Path, Dataset], redis_server: RedisServer, bus: Bus
) -> AsyncIterator[System]:
    (tmp_path / "bars.duckdb").symlink_to(saved_dataset[0])
    system = System(tmp_path, saved_dataset[1], redis_server, bus)
    yield system
    for process in system.processes.values():
        process.kill()
        process.wait()
