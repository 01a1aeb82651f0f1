"""How commands exit, `--version`, and `--help`."""

import os
import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

import cli.main
from shared.adapters.outputs import atomic_output

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Ignore SIGINT, as in a shell's background job; afterwards restore signal handlers and logging."""
    logs = structlog.get_config()
    own = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    for signum, handler in own.items():
        signal.signal(signum, handler)
    structlog.configure(**logs)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_a_command_which_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: int, status: int
) -> None:
    def command(prog_name: str) -> None:
        with atomic_output(tmp_path / "out") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signum)
            raise AssertionError("the signal did not stop the command")

    monkeypatch.setattr(cli.main, "app", command)
    with pytest.raises(SystemExit) as exited:
        cli.main.main()
    assert exited.value.code == status
    assert list(tmp_path.iterdir()) == []


def test_version_is_that_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert CliRunner().invoke(cli.main.app, ["--version"]).stdout == f"{project['version']}\n"


@pytest.mark.parametrize("group", [[], ["data"], ["checkpoints"], ["dead"], ["runs"]], ids=" ".join)
def test_help_shows_each_command_in_one_complete_line_of_80_columns(group: list[str]) -> None:
    printed = CliRunner().invoke(cli.main.app, [*group, "--help"], terminal_width=80).stdout
    _, _, commands = printed.partition("Commands:\n")
    for line in commands.splitlines():
        assert not line or line.endswith("."), line
        assert not line.endswith("..."), line
