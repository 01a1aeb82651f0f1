"""Terminal output of `up`, written by a separate thread.

A terminal can be closed, the reader of a pipe can exit, and either can block output indefinitely. None of
this may keep the supervisor from watching and stopping its processes.
"""

import contextlib
import errno
import queue
import threading
from collections.abc import Callable, Iterator

from rich.console import RenderableType

from cli.monitor import live_display
from cli.output import print_line

#: Errors of a write to a closed terminal or pipe. Other errors, such as a full disk, only lose output.
_CLOSED = (errno.EPIPE, errno.EIO)

_MAX_WAITING = 256
_CLOSE_SECONDS = 2.0


class Terminal:
    """Prints lines on stderr and a live view; no method blocks or raises."""

    def __init__(self, *, interactive: bool, on_closed: Callable[[], None]) -> None:
        self.interactive = interactive  # show the live view; False once drawing it has failed
        self._on_closed = on_closed  # called by the writing thread when the terminal is gone
        self._jobs: queue.Queue[str | Callable[[], RenderableType] | None] = queue.Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._write, name="terminal", daemon=True)
        self._thread.start()

    def say(self, text: str) -> None:
        """Leave the live view and print a line."""
        self._put(text)

    def show(self, picture: Callable[[], RenderableType]) -> None:
        """Redraw the live view; without a terminal nothing is shown."""
        if self.interactive:
            self._put(picture)

    def close(self) -> None:
        """Leave the live view and write all remaining output, unless the terminal blocks for too long."""
        self._put(None)
        self._thread.join(_CLOSE_SECONDS)

    def _put(self, job: str | Callable[[], RenderableType] | None) -> None:
        with contextlib.suppress(queue.Full):  # the terminal blocks; this output is lost
            self._jobs.put_nowait(job)

    def _write(self) -> None:
        display = contextlib.ExitStack()
        draw: Callable[[RenderableType], None] | None = None
        while (job := self._jobs.get()) is not None:
            with self._detecting_closed_terminal():
                line = job if isinstance(job, str) else ""
                if not isinstance(job, str) and self.interactive:
                    try:
                        draw = draw or display.enter_context(live_display(interactive=True))
                        draw(job())
                    except OSError:
                        raise
                    except Exception as failure:  # noqa: BLE001  only the live view is lost
                        self.interactive = False
                        line = f"the live view failed, the system continues: {failure!r}"
                if line:
                    draw = None
                    display.close()
                    print_line(line)
        with self._detecting_closed_terminal():
            display.close()

    @contextlib.contextmanager
    def _detecting_closed_terminal(self) -> Iterator[None]:
        try:
            yield
        except OSError as failure:
            if failure.errno in _CLOSED:
                self._on_closed()
