"""REDIS_PASSWORD in compose may contain any character and appears in no URL and no command line."""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from redis import Redis
from redis import exceptions as redis_errors

from shared.runtime.ports import free_port
from shared.runtime.redis_server import find_redis_server

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = """aB/cD+e= #1 what? a@b x:y 50% "'`$HOME\\ päss"""


def test_redis_in_compose_accepts_any_password_and_exposes_none(tmp_path: Path) -> None:
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["redis"]
    assert service["environment"] == {"REDISCLI_AUTH": "${REDIS_PASSWORD:-only-inside-this-network}"}
    shell, option, script = service["command"]
    port = free_port()
    entrypoint = tmp_path / "docker-entrypoint.sh"
    entrypoint.write_text(
        f'#!/bin/sh\nshift\nexec "{find_redis_server()}" "$@" --port {port} --dir "$TMPDIR"\n'
    )
    entrypoint.chmod(0o755)
    environment = {
        **os.environ,
        "REDISCLI_AUTH": PASSWORD,
        "TMPDIR": str(tmp_path),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    command = [shell, option, script.replace("$$", "$")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            with Redis(port=port, password=PASSWORD) as client:
                deadline = time.monotonic() + 30
                while True:
                    try:
                        assert client.ping()
                        break
                    except redis_errors.ConnectionError:
                        assert time.monotonic() < deadline
                        time.sleep(0.05)
                assert client.config_get("appendfsync") == {"appendfsync": "always"}
            for wrong in (None, "other"):
                with (
                    Redis(port=port, password=wrong) as stranger,
                    pytest.raises(redis_errors.AuthenticationError),
                ):
                    stranger.ping()
            assert PASSWORD[:8].encode() not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
        finally:
            server.terminate()


def test_compose_puts_no_setting_into_a_url_or_a_shell_command() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name, service in services.items():
        for value in dict(service.get("environment", {})).values():
            assert "://" not in str(value) or "${" not in str(value), name
        assert not any(re.search(r"(?<!\$)\$\{", part) for part in service.get("command", [])), name
