"""A non-leader rank: it forwards trajectories to the leader and computes its part of each update.

The leader keeps the only journal. This rank reads from the stream as a consumer of the group, offers the
trajectories to the leader, and acknowledges them when the leader has synced them to the journal. So the
journal holds each trajectory once, whichever rank reads it and whichever rank is killed. The leader decides
which trajectories are too old (services/trainer/intake/ingest.py); this rank then dead-letters them.
"""

import asyncio
from collections.abc import Mapping
from uuid import UUID

import structlog
import torch

from services.trainer.intake.ingest import CheckedBatch, consumer_name
from services.trainer.learning.distributed import Journalled, LoadWeights, Offer, Part, Ranks, SendOffer, Stop
from services.trainer.learning.learner import Learner
from services.trainer.settings import TrainerSettings
from shared.adapters.tables.dataset import read_dataset
from shared.agent.trajectory import Trajectory
from shared.messages.streams import TRAINER_GROUP, TRAJECTORIES
from shared.model.network import initial_network
from shared.runtime.lifecycle import Lifecycle
from shared.runtime.tasks import service_tasks

log = structlog.get_logger()


class FollowerService:
    """Follows the leader's orders. Reports a stop request to the leader, which then stops all ranks."""

    def __init__(self, settings: TrainerSettings, lifecycle: Lifecycle, ranks: Ranks) -> None:
        self._settings, self._lifecycle, self._ranks = settings, lifecycle, ranks
        self._offered: list[Trajectory] = []
        self._sent = False  # whether `_offered` was sent to the leader
        self._stale: Mapping[UUID, str] = {}  # why trajectories are too old, by id; newest from the leader
        self._unusable = 0  # number of unusable entries not yet reported to the leader
        self._journalled = asyncio.Event()

    async def run(self) -> None:
        """Follow the leader until it orders a stop."""
        await asyncio.to_thread(self._open)
        self._report()
        async with service_tasks() as loops:
            loops.create_task(self._ingest())
            loops.create_task(self._follow())

    def _open(self) -> None:
        settings = self._settings
        self._dataset = read_dataset(settings.dataset)
        network = initial_network(settings.model, settings.trainer.seed)
        self._learner = Learner(
            network, settings.learner, settings.trainer.seed, self._ranks.device, self._ranks
        )

    async def _ingest(self) -> None:
        """Offer the stream's trajectories to the leader; acknowledge them when the leader has synced them."""
        consumer = consumer_name(self._ranks.own)
        batches = self._lifecycle.bus.consume(TRAJECTORIES, TRAINER_GROUP, consumer)
        while not self._lifecycle.stopping.is_set():
            batch = await self._lifecycle.until_stopping(anext(batches))
            if batch is None or not batch.entries:
                continue
            checked = CheckedBatch.of(batch, self._dataset)
            if checked.usable:
                self._journalled.clear()
                self._offered = checked.trajectories
                if not await self._lifecycle.until_stopping(self._journalled.wait()):
                    return
            await checked.acknowledge(self._stale, self._lifecycle, self._count_unusable)

    async def _follow(self) -> None:
        """Carry out the leader's orders until it orders a stop."""
        while True:
            order = await asyncio.to_thread(self._ranks.receive)
            match order:
                case Part():
                    await asyncio.to_thread(self._learn, order)
                case SendOffer():
                    offered = tuple(self._offered) if order.with_trajectories else ()
                    self._sent = self._sent or bool(offered)
                    offer = Offer(self._lifecycle.stopping.is_set(), offered, self._unusable)
                    self._unusable = 0
                    await asyncio.to_thread(self._ranks.offer, offer)
                case Journalled():
                    if self._sent:  # otherwise only other ranks' trajectories were journalled
                        self._offered, self._sent, self._stale = [], False, order.stale
                        self._journalled.set()
                case LoadWeights():
                    await asyncio.to_thread(self._learner.restore, order.weights, order.moments)
                case Stop():
                    self._lifecycle.stop()
                    return
            self._report()

    def _count_unusable(self) -> None:
        self._unusable += 1

    def _learn(self, part: Part) -> None:
        torch.set_num_threads(self._settings.trainer.threads)
        self._learner.learn(part)

    def _report(self) -> None:
        rank, updates = self._ranks.own, self._learner.counters.updates
        self._lifecycle.report(rank=rank.rank, ranks=rank.world_size, updates_here=updates)
