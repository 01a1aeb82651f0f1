"""A Redis of a test's own, since faults change or kill it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.adapters import bus as bus_module
from shared.runtime.redis_server import RedisServer, free_port


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that no other test sees."""
    server = RedisServer(tmp_path / "redis", free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of this process looks around often."""
    monkeypatch.setattr(bus_module, "BLOCK_MS", 20)
