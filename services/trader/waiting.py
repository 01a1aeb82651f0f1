"""Waiting for the broker or the lease before the first session, and pausing between two sessions.

The ledger is not open before the first session, so these alerts go directly to their stream.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Mapping

import structlog

from shared.adapters.streams.bus import Bus
from shared.messages.conditions import Condition, ConditionTracker
from shared.messages.streams import ALERTS
from shared.runtime.lifecycle import Lifecycle

log = structlog.get_logger()

_POLL_SECONDS = 0.5

#: Time limit for the alert that a wait has ended; after it the trader begins without the alert.
_END_SECONDS = 2.0


class Backoff:
    """Pauses between sessions: doubled after each bad session up to a limit, short after a good one."""

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._num_bad = 0  # bad sessions in a row

    def after(self, *, good: bool) -> float:
        """Seconds to wait after a session, with a jitter of up to half of the pause."""
        self._num_bad = 0 if good else self._num_bad + 1
        return min(self._max_seconds, 0.5 * 2.0 ** min(self._num_bad, 16)) * random.uniform(0.5, 1.0)  # noqa: S311


@contextlib.asynccontextmanager
async def announced(
    lifecycle: Lifecycle, name: str, detail: str, *, begin_seconds: float
) -> AsyncIterator[None]:
    """Announce the beginning and the end of the wait inside the block.

    Args:
        lifecycle: lifecycle of the trader.
        name: name of the alert.
        detail: reason of the wait.
        begin_seconds: shortest wait that is announced.
    """
    tracker = ConditionTracker(begin_seconds=begin_seconds)
    task = asyncio.create_task(_announce(lifecycle.bus, tracker, {Condition("trader", name): detail}))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        try:
            async with asyncio.timeout(_END_SECONDS):
                for alert in tracker.update({}, time.monotonic()):
                    await lifecycle.bus.append(ALERTS, alert)
        except TimeoutError:
            log.warning("alert_not_sent", name=name, phase="ended")


async def _announce(bus: Bus, tracker: ConditionTracker, holding: Mapping[Condition, str]) -> None:
    while True:
        for alert in tracker.update(holding, time.monotonic()):
            log.warning("condition", name=alert.name, phase=alert.phase, detail=alert.detail)
            await bus.append(ALERTS, alert)
        await asyncio.sleep(_POLL_SECONDS)
