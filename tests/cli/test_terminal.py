"""Output of `up` on a real terminal when drawing the live view fails."""

import asyncio
import os
import pty
import sys
from pathlib import Path
from unittest.mock import sentinel

import pytest

from cli.local import _System
from cli.settings import UpSettings
from cli.terminal import Terminal


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_failed_live_view_is_reported_and_lines_are_still_printed() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        _show_and_fail()
    written = b""
    try:
        while received := os.read(terminal, 1 << 16):
            written += received
    except OSError:  # the terminal is closed
        pass
    os.close(terminal)
    os.waitpid(pid, 0)
    _, _, after = written.rpartition(b"\x1b[?1049l")  # the sequence that leaves the alternate screen
    assert b"the live view failed, the system continues: ZeroDivisionError" in after
    assert b"stopping ..." in after
    assert b"later" not in written


async def test_after_the_live_view_fails_events_are_printed_as_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system = _System(UpSettings(), tmp_path, tmp_path / "bars.duckdb", "GBP_JPY", replicas=1)
    system._terminal = Terminal(interactive=True, on_closed=lambda: None)
    system._last = sentinel.snapshot  # the live view was shown

    async def fail() -> None:
        raise ValueError("no such column")

    view = asyncio.create_task(fail())
    view.add_done_callback(system._on_view_done)
    await asyncio.wait({view})
    await asyncio.sleep(0)
    system._report("api exited with status 1")
    system._terminal.close()
    shown = capsys.readouterr().err
    assert "the live view failed, the system continues: ValueError('no such column')" in shown
    assert "api exited with status 1" in shown


def _show_and_fail() -> None:
    """Runs in the forked process; never returns."""
    try:
        os.environ["TERM"] = "xterm"
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # instead of the files of pytest
        terminal = Terminal(interactive=True, on_closed=lambda: None)
        terminal.show(lambda: "first")
        terminal.show(lambda: str(1 // 0))
        terminal.show(lambda: "later")
        terminal.say("stopping ...")
        terminal.close()
    finally:
        os._exit(0)
