"""Sends finished trajectories to the stream at the trainer's pace.

While the trainer lags behind, the sender waits. If Redis does not accept trajectories before a stopping
worker must exit, they are kept on disk. The next worker that starts with the same home sends them.
"""

import asyncio
from collections.abc import Sequence

import structlog
from prometheus_client import Gauge

from services.selfplay.pacing import Backlog
from services.selfplay.spool import Spool
from shared.adapters.streams.bus import ENTRIES_PER_APPEND
from shared.agent.trajectory import Trajectory
from shared.errors import ServiceError
from shared.messages.codec import encode_trajectory
from shared.messages.streams import TRAJECTORIES
from shared.runtime.lifecycle import Lifecycle

log = structlog.get_logger()

#: Seconds between two reads of the stream's length while the worker waits for the trainer.
BACKLOG_SECONDS = 0.5

#: Seconds that a stopping worker continues to send; the remaining trajectories are kept on disk.
LAST_SEND_SECONDS = 3.0

WAITING = Gauge("mm_selfplay_waiting", "1 while the worker waits for the trainer to catch up")

FinishedQueue = asyncio.Queue[Sequence[Trajectory] | None]


class TrajectorySender:
    """Sends batches from a queue until it takes None from it."""

    def __init__(
        self, lifecycle: Lifecycle, finished: FinishedQueue, spool: Spool, *, high_water: int
    ) -> None:
        self._lifecycle, self._finished, self._spool = lifecycle, finished, spool
        self._backlog = Backlog(high_water)
        self._may_play = asyncio.Event()
        self._sending: asyncio.Timeout | None = None  # while an exchange with Redis is in progress
        self._send_until: float | None = None  # the loop's time; None until a stopping worker sends

    async def wait_for_room(self) -> None:
        """Wait until the trainer keeps up, judging by the last known length of the stream."""
        await self._may_play.wait()

    async def run(self) -> None:
        """Send the trajectories that earlier workers kept on disk, then the batches of the queue.

        Raises:
            ServiceError: a stopping worker could neither send some trajectories nor keep them on disk.
        """
        await self._look_at_backlog()
        await self._send_kept()
        refusals: list[OSError] = []
        while (finished := await self._next_finished()) is not None:
            refusals += await self._keep(await self._send_batch(finished))
        if refusals:
            raise ServiceError(
                f"{len(refusals)} finished trajectories are lost: Redis did not take them in time, and "
                f"{self._spool.folder} cannot be written: {refusals[0].strerror}"
            ) from refusals[0]

    async def limit_at_stop(self) -> None:
        """Once the worker is asked to stop, set a deadline for the exchange that is in progress."""
        await self._lifecycle.stopping.wait()
        if self._sending:
            self._sending.reschedule(self._deadline())

    async def _send_kept(self) -> None:
        """Send the trajectories that earlier workers kept on disk, until asked to stop.

        A file is read only when there is room for it, since another worker may have sent it in the meantime.
        """
        for path in await asyncio.to_thread(self._spool.files):
            await self._wait_for_trainer()
            if self._lifecycle.stopping.is_set():
                return
            trajectory = await asyncio.to_thread(self._spool.read, path)
            if trajectory and await self._send([trajectory]):
                log.info("unsent_trajectory_sent", trajectory_id=str(trajectory.trajectory_id))
                self._spool.remove(path)

    async def _next_finished(self) -> Sequence[Trajectory] | None:
        """The next finished batch once the trainer keeps up; None after the last."""
        await self._wait_for_trainer()
        return await self._finished.get()

    async def _send_batch(self, finished: Sequence[Trajectory]) -> Sequence[Trajectory]:
        """Send a batch, and return the trajectories that a stopping worker had no time to send."""
        for begin in range(0, len(finished), ENTRIES_PER_APPEND):
            await self._wait_for_trainer()
            if not await self._send(finished[begin : begin + ENTRIES_PER_APPEND]):
                return finished[begin:]
        return ()

    async def _keep(self, unsent: Sequence[Trajectory]) -> list[OSError]:
        """Keep trajectories on disk; return an error for each that could not be written."""
        refusals = await asyncio.to_thread(self._spool.write, unsent)
        if num_kept := len(unsent) - len(refusals):
            log.warning("trajectories_kept_on_disk", count=num_kept, folder=str(self._spool.folder))
        return refusals

    async def _wait_for_trainer(self) -> None:
        """Wait while the stream holds too many trajectories, unless the worker is stopping."""
        while self._backlog.waiting and not self._lifecycle.stopping.is_set():
            self._lifecycle.report(waiting=True)
            await self._lifecycle.sleep(BACKLOG_SECONDS)
            await self._look_at_backlog()

    async def _look_at_backlog(self) -> None:
        length = await self._lifecycle.until_stopping(self._lifecycle.bus.length(TRAJECTORIES))
        if length is not None:
            self._update_backlog(length)

    def _update_backlog(self, length: int) -> None:
        """Allow or forbid new batches, by the number of trajectories in the stream."""
        self._backlog = self._backlog.seen(length)
        WAITING.set(self._backlog.waiting)
        if self._backlog.waiting:
            self._may_play.clear()
        else:
            self._may_play.set()

    async def _send(self, pipeline: Sequence[Trajectory]) -> bool:
        """Send at most `ENTRIES_PER_APPEND` trajectories; False if a stopping worker has no time left.

        A stop request sets a deadline for the exchange, but does not interrupt it at once: the trajectories
        may already be in the stream, and the next worker would send them again.
        """
        messages = [encode_trajectory(trajectory) for trajectory in pipeline]
        try:
            async with asyncio.timeout_at(self._deadline()) as self._sending:
                length = await self._lifecycle.bus.append_all(TRAJECTORIES, messages)
        except TimeoutError:
            return False
        finally:
            self._sending = None
        self._update_backlog(length)
        return True

    def _deadline(self) -> float | None:
        """The loop's time at which sending ends: `LAST_SEND_SECONDS` after a stopping worker first sends."""
        if self._send_until is None and self._lifecycle.stopping.is_set():
            self._send_until = asyncio.get_running_loop().time() + LAST_SEND_SECONDS
        return self._send_until
