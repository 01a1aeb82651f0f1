"""Learns from finished trajectories and publishes checkpoint versions.

Two loops share the journal. One reads trajectories from the stream, appends them and acknowledges them.
The other reads the journal, learns, and publishes. The first loop may be a limited number of
trajectories ahead of the second; the second waits only at the journal's end.

Under torchrun this service runs on the leading rank. There a third loop journals what the other ranks read
(services/trainer/leader.py). How the ranks share an update is in services/trainer/learning/distributed.py.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog

from services.trainer.control import PauseControl
from services.trainer.intake.ingest import CheckedBatch, consumer_name
from services.trainer.intake.writer import JournalWriter
from services.trainer.leader import RankExchange
from services.trainer.learning.distributed import Ranks, Stop
from services.trainer.place import Rank
from services.trainer.publishing.metrics import REFUSED, ROLL_BACKS, Refusal
from services.trainer.retry import wait_to_retry
from services.trainer.run import Run
from services.trainer.settings import TrainerSettings
from shared.errors import StoreUnavailableError
from shared.messages.schemas import AlertRaised
from shared.messages.streams import ALERTS, TRAINER_GROUP, TRAJECTORIES
from shared.runtime.lifecycle import Lifecycle
from shared.runtime.tasks import service_tasks

log = structlog.get_logger()

#: Longest time spent on updates between two checks for a stop or pause request.
UPDATE_SLICE_SECONDS = 0.25

#: Longest wait at exit for Redis to accept the last announcement; if it fails, the next start repeats it.
FINAL_ANNOUNCE_SECONDS = 2.0


class TrainerService:
    """The loops of the trainer: ingest, learn, follow pause requests, exchange with other ranks."""

    def __init__(self, settings: TrainerSettings, lifecycle: Lifecycle, ranks: Ranks | None = None) -> None:
        self._settings, self._lifecycle, self._ranks = settings, lifecycle, ranks
        self._bus = lifecycle.bus
        self._control = PauseControl(lifecycle, self._notify)
        self._ranks_in_use = asyncio.Lock()  # one collective operation at a time
        self._changed = asyncio.Event()
        self._updates_per_second = 0.0

    async def run(self) -> None:
        """Resume from disk and learn until asked to stop."""
        settings, lifecycle, ranks = self._settings, self._lifecycle, self._ranks
        with contextlib.ExitStack() as opened:
            run = await asyncio.to_thread(Run.open, settings, lifecycle, ranks, opened)
            self._dataset, self._journal, self._training = run.dataset, run.journal, run.training
            self._metrics, self._publisher = run.metrics, run.publisher
            self._writer = JournalWriter(
                run.journal,
                lifecycle,
                max_version_lag=settings.trainer.max_version_lag,
                newest_version=lambda: run.publisher.version or 0,
            )
            resumed = await run.resume(settings, lifecycle, ranks.own.world_size if ranks else 1)
            if resumed:
                await self._run_loops()
            if ranks:
                await asyncio.to_thread(ranks.send_all, Stop())
            if resumed:
                await run.publisher.publish_last(patience_seconds=FINAL_ANNOUNCE_SECONDS)

    async def _run_loops(self) -> None:
        """Run all loops until asked to stop; apply the newest pause request before learning starts."""
        async with service_tasks() as loops:
            if self._ranks:
                exchange = RankExchange(
                    self._ranks,
                    self._lifecycle,
                    self._writer,
                    ranks_in_use=self._ranks_in_use,
                    is_far_ahead=self._is_far_ahead,
                    changed=self._notify,
                )
                loops.create_task(exchange.run(loops))
            control_after = await self._lifecycle.until_stopping(self._control.read_newest())
            self._report()
            loops.create_task(self._ingest())
            loops.create_task(self._control.follow(control_after or "0-0"))
            loops.create_task(self._learn())

    async def _ingest(self) -> None:
        """Move trajectories from the stream to the journal; acknowledge them only when they are synced."""
        batches = self._bus.consume(TRAJECTORIES, TRAINER_GROUP, consumer_name(Rank()))
        while not self._lifecycle.stopping.is_set():
            batch = await self._lifecycle.until_stopping(anext(batches))
            if batch is None or not batch.entries:
                continue
            checked = CheckedBatch.of(batch, self._dataset)
            stale = await self._writer.append(checked.trajectories)
            if stale is None:
                return
            await checked.acknowledge(stale, self._lifecycle, REFUSED.labels(Refusal.UNUSABLE).inc)
            self._notify()
            await self._wait_while(self._is_far_ahead)

    def _is_far_ahead(self) -> bool:
        ahead = self._journal.position - self._training.position
        return ahead >= self._settings.trainer.max_ahead_episodes

    async def _learn(self) -> None:
        """Make the updates that are owed, then read the journal's next trajectory; publish when due."""
        training = self._training
        await self._lifecycle.until_stopping(self._publisher.announce_newest())
        while not self._lifecycle.stopping.is_set():
            if self._control.paused:
                await self._wait_while(lambda: self._control.paused)
            elif training.learner.diverged:
                await self._roll_back()
            elif training.may_update:
                async with self._ranks_in_use:
                    await asyncio.to_thread(self._update)
            elif self._publisher.is_due:
                await self._publisher.write()
                await self._lifecycle.until_stopping(self._publisher.announce_newest())
            elif self._journal.position > training.position:
                await asyncio.to_thread(self._insert_next)
                self._changed.set()
            else:
                await self._wait_while(lambda: self._journal.position <= training.position)
            self._report()

    def _update(self) -> None:
        """Make updates for a short time."""
        training = self._training
        begin, before = time.monotonic(), training.learner.counters.updates
        while training.may_update and not training.learner.diverged:
            started = time.monotonic()
            statistics = training.update()
            self._metrics.updated(training, statistics, time.monotonic() - started)
            if time.monotonic() - begin > UPDATE_SLICE_SECONDS or self._lifecycle.stopping.is_set():
                break
        made = training.learner.counters.updates - before
        self._updates_per_second = made / max(time.monotonic() - begin, 1e-9)

    def _insert_next(self) -> None:
        trajectory = self._journal.read(self._training.position)
        self._training.insert(trajectory)
        self._metrics.inserted(self._training, trajectory)

    async def _roll_back(self) -> None:
        """Return to an earlier version's weights and raise an alert."""
        try:
            async with self._ranks_in_use:
                version = await asyncio.to_thread(self._publisher.roll_back)
        except (OSError, StoreUnavailableError) as failure:
            await wait_to_retry("roll_back_failed", failure, self._lifecycle)
            return
        ROLL_BACKS.inc()
        skipped = self._settings.learner.max_skipped_in_a_row
        detail = f"{skipped} updates in a row were not finite; restored the weights of version {version}"
        log.error("training_rolled_back", version=version, skipped_in_a_row=skipped)
        alert = AlertRaised(source="trainer", name="training_rolled_back", detail=detail)
        await self._lifecycle.until_stopping(self._bus.append(ALERTS, alert))

    async def _wait_while(self, waiting: Callable[[], bool]) -> None:
        """Wait until a condition no longer holds, or the service is asked to stop."""
        while waiting() and not self._lifecycle.stopping.is_set():
            self._changed.clear()
            await self._lifecycle.until_stopping(self._changed.wait())

    def _notify(self) -> None:
        """Wake the loops that wait for a change, and report."""
        self._changed.set()
        self._report()

    def _report(self) -> None:
        """Set the Prometheus gauges and the heartbeat's details."""
        training = self._training
        self._metrics.export(training, self._journal.position)
        figures = {
            name: None if value is None else round(value, 6)
            for name, value in self._metrics.figures(training).items()
        }
        self._lifecycle.report(
            **figures,
            episode=training.position,
            update=training.learner.counters.updates,
            version=self._publisher.version,
            journalled=self._journal.position,
            samples_per_insert_target=self._settings.trainer.samples_per_insert,
            paused=self._control.paused,
            updates_per_second=round(self._updates_per_second, 2),
        )
