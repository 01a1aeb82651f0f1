"""Plays with the newest version and sends the finished sessions.

One task follows announcements of versions (`versions`), one sends (`sender`), and one plays in a thread, so
that heartbeats and signals stay prompt. The version changes only between batches. While the trainer lags
behind, no batch begins, since its version would be old by the time it is sent. While Redis is unavailable,
play continues until the queue of finished batches is full. No finished trajectory is ever dropped.
"""

import asyncio
import time
from collections.abc import Sequence

import numpy as np
from prometheus_client import Counter

from services.selfplay.sender import BACKLOG_SECONDS, FinishedQueue, TrajectorySender
from services.selfplay.settings import SelfPlaySettings
from services.selfplay.spool import Spool
from services.selfplay.versions import NewestVersion
from services.selfplay.worker import SelfPlayWorker
from shared.adapters.tables.dataset import read_dataset
from shared.agent.trajectory import Trajectory
from shared.runtime.lifecycle import Lifecycle
from shared.runtime.tasks import service_tasks

EPISODES = Counter("mm_selfplay_episodes", "Sessions played to their end")
STEPS = Counter("mm_selfplay_steps", "Decisions made")


class SelfPlayService:
    """One worker and its tasks."""

    def __init__(self, settings: SelfPlaySettings, lifecycle: Lifecycle) -> None:
        self._settings, self._lifecycle = settings, lifecycle
        self._versions = NewestVersion(settings, lifecycle)
        self._spool = Spool(settings.unsent_root)
        self._finished: FinishedQueue = asyncio.Queue(settings.selfplay.unsent_batches)
        self._sender = TrajectorySender(
            lifecycle, self._finished, self._spool, high_water=settings.selfplay.high_water
        )
        self._episodes = 0

    async def run(self) -> None:
        """Play until asked to stop, then send what is finished."""
        worker = await asyncio.to_thread(self._open)
        async with service_tasks() as tasks:
            tasks.create_task(self._versions.follow())
            tasks.create_task(self._sender.run())
            tasks.create_task(self._sender.limit_at_stop())
            tasks.create_task(self._play(worker))

    def _open(self) -> SelfPlayWorker:
        self._spool.prove_writable()
        dataset = read_dataset(self._settings.dataset)
        return SelfPlayWorker.of(self._lifecycle.instance, dataset, self._settings, np.random.default_rng())

    async def _play(self, worker: SelfPlayWorker) -> None:
        """Play batch after batch, each with the version that is newest when it begins."""
        stopping = self._lifecycle.stopping
        await self._lifecycle.until_stopping(self._versions.wait())
        while not stopping.is_set():
            await self._lifecycle.until_stopping(self._sender.wait_for_room())
            self._lifecycle.report(waiting=False)
            player = await self._versions.load()
            if player is None:
                await self._lifecycle.sleep(BACKLOG_SECONDS)
                continue
            begin = time.monotonic()
            finished = await asyncio.to_thread(worker.play, player.agent, player.episode, stopping.is_set)
            if finished:
                self._count(finished, player.agent.version, time.monotonic() - begin)
                await self._finished.put(finished)
        await self._finished.put(None)

    def _count(self, finished: Sequence[Trajectory], version: int, seconds: float) -> None:
        steps = sum(len(trajectory) for trajectory in finished)
        self._episodes += len(finished)
        EPISODES.inc(len(finished))
        STEPS.inc(steps)
        self._lifecycle.report(
            version=version, episodes=self._episodes, steps_per_second=round(steps / max(seconds, 1e-9), 1)
        )
