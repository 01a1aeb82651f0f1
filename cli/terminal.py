"""What `up` writes to its terminal, from a thread of its own.

A terminal can be closed, a pipe's reader can exit, and either can stop taking output for as long as it likes.
None of that may keep the supervisor from watching and stopping its processes.
"""

import contextlib
import errno
import queue
import threading
from collections.abc import Callable, Iterator

from rich.console import RenderableType

from cli.monitor import live_display
from cli.output import print_line

#: Writing fails with one of these when nobody reads any more. Other failures, a full disk under a log file
#: for one, lose output and nothing else.
_GONE = (errno.EPIPE, errno.EIO)

_MAX_WAITING = 256
_CLOSE_SECONDS = 2.0


class Terminal:
    """Lines on stderr, and a picture that is replaced again and again; no method blocks or raises."""

    def __init__(self, *, interactive: bool, on_gone: Callable[[], None]) -> None:
        self.interactive = interactive  # pictures are shown; False once one has failed
        self._on_gone = on_gone  # called by the writing thread when nobody reads any more
        self._jobs: queue.Queue[str | Callable[[], RenderableType] | None] = queue.Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._write, name="terminal", daemon=True)
        self._thread.start()

    def say(self, text: str) -> None:
        """Leave the picture and write a line; any character may be in it."""
        self._put(text)

    def show(self, picture: Callable[[], RenderableType]) -> None:
        """Replace the picture; without a terminal nothing is shown."""
        if self.interactive:
            self._put(picture)

    def close(self) -> None:
        """Leave the picture and write what is left, if the terminal takes it soon."""
        self._put(None)
        self._thread.join(_CLOSE_SECONDS)

    def _put(self, job: str | Callable[[], RenderableType] | None) -> None:
        with contextlib.suppress(queue.Full):  # the terminal takes nothing: what would follow is lost
            self._jobs.put_nowait(job)

    def _write(self) -> None:
        display = contextlib.ExitStack()
        draw: Callable[[RenderableType], None] | None = None
        while (job := self._jobs.get()) is not None:
            with self._noticing_that_it_is_gone():
                line = job if isinstance(job, str) else ""
                if not isinstance(job, str) and self.interactive:
                    try:
                        draw = draw or display.enter_context(live_display(interactive=True))
                        draw(job())
                    except OSError:
                        raise
                    except Exception as failure:  # noqa: BLE001  only the picture is lost
                        self.interactive = False
                        line = f"the live view failed, the system goes on: {failure!r}"
                if line:
                    draw = None
                    display.close()
                    print_line(line)
        with self._noticing_that_it_is_gone():
            display.close()

    @contextlib.contextmanager
    def _noticing_that_it_is_gone(self) -> Iterator[None]:
        try:
            yield
        except OSError as failure:
            if failure.errno in _GONE:
                self._on_gone()
