"""A rank that does not lead: a consumer of the group that hands on what it reads, and a part of each update.

The leader keeps the one journal. What this rank read it offers to the leader, and acknowledges when the
leader has it synced; so a trajectory is learned from once, whichever rank read it and whoever is killed.
The leader decides which are too old (services/trainer/intake/ingest.py); this rank then dead-letters them.
"""

import asyncio
from collections.abc import Mapping
from uuid import UUID

import structlog
import torch

from services.trainer.intake.ingest import Intake, consumer_name
from services.trainer.learning.distributed import Become, Offer, Part, Ranks, Report, Stop, Taken
from services.trainer.learning.learner import Learner
from services.trainer.settings import TrainerSettings
from shared.adapters.tables.dataset import read_dataset
from shared.agent.trajectory import Trajectory
from shared.errors import MuZeroError
from shared.messages.streams import TRAINER_GROUP, TRAJECTORIES
from shared.model.network import initial_network
from shared.runtime.lifecycle import Lifecycle

log = structlog.get_logger()


class FollowerService:
    """Reads for the leader and obeys it; stops when the leader says so, and asks it to when told to stop."""

    def __init__(self, settings: TrainerSettings, lifecycle: Lifecycle, ranks: Ranks) -> None:
        self._settings, self._lifecycle, self._ranks = settings, lifecycle, ranks
        self._offered: list[Trajectory] = []
        self._handed_on = False  # what is offered; the leader may take other ranks' before it asks for this
        self._stale: Mapping[UUID, str] = {}  # of what was taken last
        self._unusable = 0  # not yet told to the leader
        self._taken = asyncio.Event()

    async def run(self) -> None:
        """Take part until the leader says stop."""
        await asyncio.to_thread(self._open)
        self._report()
        try:
            async with asyncio.TaskGroup() as loops:
                loops.create_task(self._ingest())
                loops.create_task(self._follow())
        except* MuZeroError as failures:
            raise failures.exceptions[0] from failures

    def _open(self) -> None:
        settings = self._settings
        self._dataset = read_dataset(settings.dataset)
        network = initial_network(settings.model, settings.trainer.seed)
        self._learner = Learner(
            network, settings.learner, settings.trainer.seed, self._ranks.device, self._ranks
        )

    async def _ingest(self) -> None:
        """Trajectories from the stream to the leader; acknowledged only when synced there."""
        consumer = consumer_name(self._ranks.place)
        batches = self._lifecycle.bus.consume(TRAJECTORIES, TRAINER_GROUP, consumer)
        while not self._lifecycle.stopping.is_set():
            batch = await self._lifecycle.until_stopping(anext(batches))
            if batch is None or not batch.entries:
                continue
            intake = Intake.of(batch, self._dataset)
            if intake.accepted:
                self._taken.clear()
                self._offered = intake.trajectories
                if not await self._lifecycle.until_stopping(self._taken.wait()):
                    return
            await intake.settle(self._stale, self._lifecycle, self._count_unusable)

    async def _follow(self) -> None:
        """Do what the leader orders."""
        while True:
            order = await asyncio.to_thread(self._ranks.receive)
            match order:
                case Part():
                    await asyncio.to_thread(self._learn, order)
                case Report():
                    offered = tuple(self._offered) if order.take else ()
                    self._handed_on = self._handed_on or bool(offered)
                    offer = Offer(self._lifecycle.stopping.is_set(), offered, self._unusable)
                    self._unusable = 0
                    await asyncio.to_thread(self._ranks.offer, offer)
                case Taken():
                    if self._handed_on:  # else it is of other ranks alone
                        self._offered, self._handed_on, self._stale = [], False, order.stale
                        self._taken.set()
                case Become():
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
        place = self._ranks.place
        self._lifecycle.report(rank=place.rank, ranks=place.size, updates_here=self._learner.counters.updates)
