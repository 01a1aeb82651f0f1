"""The leader's exchange with the other ranks: it journals their trajectories, and all ranks stop together."""

import asyncio
from collections.abc import Callable, Mapping
from uuid import UUID

import structlog

from services.trainer.intake.writer import JournalWriter
from services.trainer.learning.distributed import Journalled, Offer, Ranks, SendOffer
from services.trainer.publishing.metrics import REFUSED, Refusal
from shared.runtime.lifecycle import Lifecycle

log = structlog.get_logger()

#: Time between two requests for the other ranks' trajectories.
EXCHANGE_SECONDS = 0.25


class RankExchange:
    """Asks the other ranks for their trajectories until the service stops."""

    def __init__(
        self,
        ranks: Ranks,
        lifecycle: Lifecycle,
        writer: JournalWriter,
        *,
        ranks_in_use: asyncio.Lock,
        is_far_ahead: Callable[[], bool],
        changed: Callable[[], None],
    ) -> None:
        """Exchange with the other ranks.

        Args:
            ranks: all ranks.
            lifecycle: lifecycle of the service.
            writer: writer of the journal.
            ranks_in_use: held during every collective operation.
            is_far_ahead: returns True while no more trajectories are wanted.
            changed: called when trajectories were journalled.
        """
        self._ranks, self._lifecycle, self._writer = ranks, lifecycle, writer
        self._ranks_in_use, self._is_far_ahead, self._changed = ranks_in_use, is_far_ahead, changed

    async def run(self, tasks: asyncio.TaskGroup) -> None:
        """Exchange until the service stops.

        Each append runs in its own task. So the exchange continues while the disk rejects writes, and no
        rank times out.

        Args:
            tasks: task group of the appends.
        """
        appending: asyncio.Task[Mapping[UUID, str] | None] | None = None
        while not self._lifecycle.stopping.is_set():
            await self._lifecycle.sleep(EXCHANGE_SECONDS)
            if appending and appending.done():
                stale = appending.result()
                if stale is not None:
                    async with self._ranks_in_use:
                        await asyncio.to_thread(self._ranks.send_all, Journalled(stale))
                    self._changed()
                appending = None
            request = SendOffer(with_trajectories=appending is None and not self._is_far_ahead())
            async with self._ranks_in_use:
                offers = await asyncio.to_thread(self._request_offers, request)
            if any(offer.stopping for offer in offers):
                log.info("service_stopping", reason="another rank was asked to stop")
                self._lifecycle.stop()
            REFUSED.labels(Refusal.UNUSABLE).inc(sum(offer.unusable for offer in offers))
            trajectories = [trajectory for offer in offers for trajectory in offer.trajectories]
            if trajectories:
                appending = tasks.create_task(self._writer.append(trajectories))

    def _request_offers(self, request: SendOffer) -> list[Offer]:
        self._ranks.send_all(request)
        return self._ranks.offers()
