"""Fixtures that tests of several packages share."""

import contextlib
import gc
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from hypothesis import settings
from redis.asyncio import Redis

from shared.adapters.streams.bus import Bus
from shared.runtime.ports import free_port
from shared.runtime.redis_server import RedisServer
from tests.faults.counts import failing_hangs
from tests.s3_server import S3Server

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile("project", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("project")

#: The default of the trainer, the only service that uses torch. With more threads, the split of a batch
#: depends on its size, so the last bits of a row depend on the other rows.
torch.set_num_threads(1)


#: Slow files: with parallel test processes they must start first.
SLOW_FIRST = ("tests/deploy/", "tests/loop/", "tests/services/trainer/test_processes", "tests/docs/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slow files first."""
    items.sort(key=lambda item: not item.nodeid.startswith(SLOW_FIRST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Fail a soak test that hangs."""
    with failing_hangs() if item.get_closest_marker("soak") else contextlib.nullcontext():
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real bars, outside the repository; without it the test is skipped."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real market data at {folder}")
    return folder


@pytest.fixture
def broken_connections() -> Iterator[None]:
    """Collect broken connections after a test, so that their warnings do not appear in the next test."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis, shared by all tests; `bus` empties it before each test."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, shared by all tests."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty bucket; the environment holds the credentials to open it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server.new_bucket()


@pytest_asyncio.fixture
async def bus(redis_server: RedisServer) -> AsyncIterator[Bus]:
    """A bus to an empty Redis."""
    from redis.asyncio import Redis

    async with Redis.from_url(redis_server.url) as client:
        await client.flushall()
    bus = Bus(redis_server.url)
    yield bus
    await bus.close()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis for one test only."""
    server = RedisServer(tmp_path / "redis", free_port())
    server.start()
    yield server
    server.stop()


@pytest_asyncio.fixture
async def plain(own_redis: RedisServer) -> AsyncIterator[Redis]:
    """A plain client of `own_redis`, to inject faults with."""
    async with Redis.from_url(own_redis.url, protocol=2) as client:
        yield client


@pytest_asyncio.fixture
async def own_bus(own_redis: RedisServer) -> AsyncIterator[Bus]:
    """A bus to `own_redis`."""
    bus = Bus(own_redis.url)
    yield bus
    await bus.close()
