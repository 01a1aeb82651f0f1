"""The commands in README and docs exist with their options, and the quick ones run as shown."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.main import app
from cli.services import SERVICES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

#: Commands that the script `run` handles itself.
SCRIPT_COMMANDS = {"install", "test"}

#: Commands of the README that a test can run: they are quick and need only the files created here.
QUICK = ("data import", "data describe", "simulate", "metrics")


def _shown(page: Path) -> list[list[str]]:
    """The words of every `./run` and `micro-muzero` command in the code blocks of a page."""
    lines = [
        line
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
        for line in block.splitlines()
    ]
    words = [shlex.split(line, comments=True) for line in lines]
    return [w[1:] for w in words if len(w) > 1 and w[0] in ("./run", "micro-muzero")]


COMMANDS = [(page.name, words) for page in PAGES for words in _shown(page)]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_every_command_shown_exists_with_its_options(page: str, words: list[str]) -> None:
    if words[0] in SCRIPT_COMMANDS:
        assert f"  {words[0]}) " in (ROOT / "run").read_text(), page
        return
    if words[0] in SERVICES or words == ["--help"]:
        return
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands"):
        assert rest, f"{page}: {words} names only a group"
        assert rest[0] in command.commands, f"{page}: command {words} does not exist"
        command = command.commands[rest.pop(0)]
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    for word in rest:
        if word.startswith("--"):
            assert word.partition("=")[0] in {*known, "--help"}, f"{page}: {words} has no option {word}"


def test_the_pages_show_commands() -> None:
    assert len(COMMANDS) > 10


def test_the_quick_commands_of_the_readme_run_as_shown(tmp_path: Path) -> None:
    _write_bars(tmp_path / "bars.csv")
    (tmp_path / "actions.txt").write_text("BUY\nHOLD\nCLOSE\n")
    (tmp_path / "trades.csv").write_text("pips\n5.0\n-3.0\n8.5\n")
    ran = []
    for words in _shown(ROOT / "README.md"):
        name = next((quick for quick in QUICK if " ".join(words).startswith(quick)), None)
        if name is None:
            continue
        result = subprocess.run(
            [sys.executable, "-m", "cli.main", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, f"{words}: {result.stderr}"
        assert result.stdout.strip()
        ran.append(name)
    assert ran == list(QUICK)


def _write_bars(path: Path) -> None:
    """Write two weeks of bars as CSV."""
    import numpy as np

    from shared.market.synthetic import Market, synthesize

    bars = synthesize(Market.OU, 12_000, 3)
    times = bars.time_s.astype("datetime64[s]")
    columns = (bars.open, bars.high, bars.low, bars.close)
    rows = [
        f"{np.datetime_as_string(t)}Z,{','.join(f'{price:.3f}' for price in prices)},{volume}"
        for t, *prices, volume in zip(times, *columns, bars.volume, strict=True)
    ]
    path.write_text("time,open,high,low,close,volume\n" + "\n".join(rows) + "\n")
