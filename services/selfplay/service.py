"""Plays with the newest version and sends what it played.

Three tasks: one hears of versions, one plays (in a thread, so that heartbeats and signals are not
kept waiting), one sends. A version is changed between batches only. While the trainer lags the sender
waits, and no batch is begun, which would be of an old version once it is sent. While Redis is away
playing goes on until the queue of finished batches is full; nothing finished is ever dropped.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import structlog
from prometheus_client import Counter, Gauge

from services.selfplay.pacing import Backlog
from services.selfplay.settings import SelfPlaySettings
from services.selfplay.spool import Spool
from services.selfplay.worker import SelfPlayWorker
from shared.adapters.streams.bus import PIPELINE
from shared.adapters.tables.dataset import read_dataset
from shared.adapters.versions.agents import load_agent
from shared.adapters.versions.store import CheckpointStore
from shared.agent.agent import Agent
from shared.agent.trajectory import Trajectory
from shared.errors import CheckpointError, MessageError, MuZeroError, ServiceError, StoreAwayError
from shared.messages.codec import encode_trajectory
from shared.messages.schemas import CheckpointPublished
from shared.messages.streams import CHECKPOINTS, TRAJECTORIES
from shared.runtime.lifecycle import Lifecycle

log = structlog.get_logger()

#: How often a worker that waits for the trainer looks whether it may go on.
BACKLOG_SECONDS = 0.5

#: A stopping worker goes on sending for so long; what is left then waits on disk for the next start.
LAST_WORD_SECONDS = 3.0

EPISODES = Counter("mm_selfplay_episodes", "Sessions played to their end")
STEPS = Counter("mm_selfplay_steps", "Decisions made")
VERSION = Gauge("mm_selfplay_version", "Checkpoint version that plays")
WAITING = Gauge("mm_selfplay_waiting", "1 while the worker waits for the trainer to catch up")


@dataclass(frozen=True)
class _Player:
    """A version, and how many episodes it learned from: both decide what it plays."""

    agent: Agent
    episode: int


class SelfPlayService:
    """One worker and its three tasks."""

    def __init__(self, settings: SelfPlaySettings, lifecycle: Lifecycle) -> None:
        self._settings, self._lifecycle = settings, lifecycle
        self._bus = lifecycle.bus
        self._store = CheckpointStore(settings.checkpoint_root)
        self._spool = Spool(settings.unsent_root)
        self._announced: CheckpointPublished | None = None
        self._refused: int | None = None
        self._heard = asyncio.Event()
        self._backlog = Backlog(settings.selfplay.high_water)
        self._room = asyncio.Event()  # the trainer keeps up, as far as the sender knows
        self._finished: asyncio.Queue[Sequence[Trajectory] | None] = asyncio.Queue(
            settings.selfplay.unsent_batches
        )
        self._episodes = 0
        self._send_until: float | None = None  # once the worker is stopping

    async def run(self) -> None:
        """Play until asked to stop, then send what is finished."""
        worker = await asyncio.to_thread(self._open)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_versions())
                tasks.create_task(self._send())
                tasks.create_task(self._play(worker))
        except* MuZeroError as failures:
            raise failures.exceptions[0] from failures

    def _open(self) -> SelfPlayWorker:
        self._spool.prove_writable()
        dataset = read_dataset(self._settings.dataset)
        return SelfPlayWorker.of(self._lifecycle.instance, dataset, self._settings, np.random.default_rng())

    async def _follow_versions(self) -> None:
        """Remember the newest announcement; those between, after an absence, are passed over."""
        after = await self._lifecycle.until_stopping(self._bus.last_id(CHECKPOINTS))
        if after is None:
            return
        messages = self._bus.follow(CHECKPOINTS, after)
        is_new = True
        while not self._lifecycle.stopping.is_set():
            newest = await self._lifecycle.until_stopping(self._newest_announced()) if is_new else None
            if newest is not None:
                self._announced = newest
                self._heard.set()
            is_new = bool(await self._lifecycle.until_stopping(anext(messages)))

    async def _newest_announced(self) -> CheckpointPublished | None:
        """What was announced last; None when there is nothing, or nothing that this worker can read."""
        try:
            return await self._bus.newest(CHECKPOINTS)
        except MessageError as unreadable:
            log.error("announcement_unreadable", error=str(unreadable))  # noqa: TRY400
            return None

    async def _play(self, worker: SelfPlayWorker) -> None:
        """Batch after batch, each with the version that is newest when it begins."""
        player: _Player | None = None
        await self._lifecycle.until_stopping(self._heard.wait())
        while not self._lifecycle.stopping.is_set():
            await self._lifecycle.until_stopping(self._room.wait())
            self._lifecycle.report(waiting=False)
            player = await self._newest(player)
            if player is None:
                await self._lifecycle.sleep(BACKLOG_SECONDS)
                continue
            begin = time.monotonic()
            finished = await asyncio.to_thread(
                worker.play, player.agent, player.episode, self._lifecycle.stopping.is_set
            )
            if finished:
                self._count(finished, player.agent.version, time.monotonic() - begin)
                await self._finished.put(finished)
        await self._finished.put(None)

    async def _newest(self, player: _Player | None) -> _Player | None:
        """The newest version that was announced; when it is damaged the one that plays, else an older one."""
        newest = self._announced
        known = {self._refused, player.agent.version if player else None}
        if newest is None or newest.version in known:
            return player
        try:
            loaded = await asyncio.to_thread(self._load, newest.version)
            if loaded is None:
                player = player or await asyncio.to_thread(self._newest_before, newest.version)
                self._refused = newest.version
                return player
        except StoreAwayError as away:  # asked again before the next batch
            log.warning("version_not_fetched", version=newest.version, error=str(away))
            return player
        return loaded

    def _newest_before(self, version: int) -> _Player | None:
        """The newest whole version older than one; None where there is none.

        Raises:
            StoreAwayError: the store does not answer.
        """
        for older in reversed(self._store.versions()):
            if older < version and (player := self._load(older)):
                log.warning("older_version_plays", version=older, newest=version)
                return player
        return None

    def _load(self, version: int) -> _Player | None:
        """A version, ready to play; None where it is missing or damaged, which is logged.

        Raises:
            StoreAwayError: the store does not answer.
        """
        try:
            episode = self._store.manifest(version).episode
            agent = load_agent(self._store, version, self._settings.precision)
        except CheckpointError as damaged:
            log.error("version_refused", version=version, error=str(damaged))  # noqa: TRY400
            return None
        VERSION.set(version)
        return _Player(agent, episode)

    def _count(self, finished: Sequence[Trajectory], version: int, seconds: float) -> None:
        steps = sum(len(trajectory) for trajectory in finished)
        self._episodes += len(finished)
        EPISODES.inc(len(finished))
        STEPS.inc(steps)
        self._lifecycle.report(
            version=version, episodes=self._episodes, steps_per_second=round(steps / max(seconds, 1e-9), 1)
        )

    async def _send(self) -> None:
        """First what an earlier worker could not send, then batches as they are finished.

        Raises:
            ServiceError: what a stopping worker had no time left for could not be kept either.
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

    async def _send_kept(self) -> None:
        """Send what an earlier worker could not, until asked to stop.

        Each is read once there is room for it: another worker may have sent it meanwhile.
        """
        for path in await asyncio.to_thread(self._spool.files):
            await self._wait_for_trainer()
            if self._lifecycle.stopping.is_set():
                return
            trajectory = await asyncio.to_thread(self._spool.read, path)
            if trajectory and await self._sent([trajectory]):
                log.info("unsent_trajectory_sent", trajectory_id=str(trajectory.trajectory_id))
                self._spool.remove(path)

    async def _next_finished(self) -> Sequence[Trajectory] | None:
        """The next finished batch once the trainer keeps up; None after the last."""
        await self._wait_for_trainer()
        return await self._finished.get()

    async def _send_batch(self, finished: Sequence[Trajectory]) -> Sequence[Trajectory]:
        """Send a batch however long it takes; what a stopping worker has no time left for."""
        for begin in range(0, len(finished), PIPELINE):
            await self._wait_for_trainer()
            if not await self._sent(finished[begin : begin + PIPELINE]):
                return finished[begin:]
        return ()

    async def _keep(self, unsent: Sequence[Trajectory]) -> list[OSError]:
        """Leave trajectories on the disk for the next start; what it said to those that it refused."""
        refusals = await asyncio.to_thread(self._spool.write, unsent)
        if num_kept := len(unsent) - len(refusals):
            log.warning("trajectories_kept_on_disk", count=num_kept, folder=str(self._spool.folder))
        return refusals

    async def _wait_for_trainer(self) -> None:
        """Wait while too many trajectories lie in the stream, unless the worker is stopping."""
        while self._backlog.waiting and not self._lifecycle.stopping.is_set():
            self._lifecycle.report(waiting=True)
            await self._lifecycle.sleep(BACKLOG_SECONDS)
            await self._look_at_backlog()

    async def _look_at_backlog(self) -> None:
        length = await self._lifecycle.until_stopping(self._bus.length(TRAJECTORIES))
        if length is not None:
            self._saw(length)

    def _saw(self, length: int) -> None:
        """Let batches begin, or none, by how many trajectories wait in the stream."""
        self._backlog = self._backlog.seen(length)
        WAITING.set(self._backlog.waiting)
        if self._backlog.waiting:
            self._room.clear()
        else:
            self._room.set()

    async def _sent(self, pipeline: Sequence[Trajectory]) -> bool:
        """Send at most `PIPELINE` trajectories; False when a stopping worker has no time left for it.

        What is on its way when the worker is asked to stop goes on: sent again, it would be there twice.
        """
        messages = [encode_trajectory(trajectory) for trajectory in pipeline]
        sending = asyncio.ensure_future(self._bus.append_all(TRAJECTORIES, messages))
        try:
            await self._lifecycle.until_stopping(asyncio.shield(sending))
            if not sending.done():
                now = time.monotonic()
                self._send_until = self._send_until or now + LAST_WORD_SECONDS
                await asyncio.wait({sending}, timeout=max(self._send_until - now, 0.0))
            if not sending.done():
                return False
            self._saw(sending.result())
            return True
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
