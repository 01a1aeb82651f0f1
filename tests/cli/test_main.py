"""How a command ends."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

import cli.main
from shared.adapters.outputs import written_aside


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The process's own handlers and logs come back; a shell's background job begins deaf to Ctrl-C."""
    logs = structlog.get_config()
    own = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    for signum, handler in own.items():
        signal.signal(signum, handler)
    structlog.configure(**logs)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_told_to_end_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: int, status: int
) -> None:
    def command(prog_name: str) -> None:
        with written_aside(tmp_path / "out") as aside:
            aside.write_text("half")
            os.kill(os.getpid(), signum)
            raise AssertionError("the signal did not end the command")

    monkeypatch.setattr(cli.main, "app", command)
    with pytest.raises(SystemExit) as ended:
        cli.main.main()
    assert ended.value.code == status
    assert list(tmp_path.iterdir()) == []
