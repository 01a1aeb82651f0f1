"""Pausing and resuming on request."""

from collections.abc import Callable

import structlog

from services.trainer.publishing.metrics import CONTROL_UNREADABLE
from shared.errors import MessageError
from shared.messages.schemas import ControlIssued
from shared.messages.streams import CONTROL
from shared.runtime.lifecycle import Lifecycle

log = structlog.get_logger()

#: Target named in control messages for the trainer.
CONTROL_TARGET = "training"

#: Number of recent entries searched for a readable control message when the newest one is unreadable.
CONTROL_HISTORY = 1_000


class PauseControl:
    """Follows the control stream and knows whether training is paused."""

    def __init__(self, lifecycle: Lifecycle, changed: Callable[[], None]) -> None:
        """Begin unpaused.

        Args:
            lifecycle: lifecycle of the service.
            changed: called after every control message for the trainer.
        """
        self._lifecycle, self._bus, self._changed = lifecycle, lifecycle.bus, changed
        self.paused = False

    async def read_newest(self) -> str:
        """Apply the newest control message; return the entry id from which to follow later ones."""
        after = await self._bus.last_id(CONTROL)
        try:
            latest = await self._bus.newest(CONTROL, name=CONTROL_TARGET)
        except MessageError as unreadable:
            CONTROL_UNREADABLE.inc()
            log.error("control_unreadable", error=str(unreadable))  # noqa: TRY400  the error text suffices
            latest = await self._newest_readable()
        if latest is not None:
            self._apply(latest)
        return after

    async def follow(self, after: str) -> None:
        """Apply every later control message until the service stops."""
        messages = self._bus.follow(CONTROL, after)
        while not self._lifecycle.stopping.is_set():
            for entry in await self._lifecycle.until_stopping(anext(messages)) or ():
                self._apply(entry.message)

    async def _newest_readable(self) -> ControlIssued | None:
        """Find the newest readable message, the one that a running trainer would have applied last."""
        entries = await self._bus.recent(CONTROL, count=CONTROL_HISTORY)
        readable = (entry.message for entry in entries)
        return next((control for control in readable if control.target == CONTROL_TARGET), None)

    def _apply(self, control: ControlIssued) -> None:
        if control.target != CONTROL_TARGET:
            return
        paused = control.state != "running"
        if paused != self.paused:
            log.info(
                "training_paused" if paused else "training_resumed", by=control.by, reason=control.reason
            )
        self.paused = paused
        self._changed()
