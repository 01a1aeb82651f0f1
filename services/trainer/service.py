"""Learns from finished trajectories and publishes checkpoint versions.

Two loops meet at the journal. One takes trajectories from the stream, appends them and acknowledges
them; the other reads the journal, learns, and publishes. Either may be ahead; neither waits for the
other but at the journal's end and at the number of trajectories that it may be ahead.

Under torchrun this is the leading rank. A third loop takes over what the other ranks read; what they
compute of each update is the learner's affair (services/trainer/learning/distributed.py, follower.py).
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

import structlog

from services.trainer.intake.episodes import WINDOW_FIGURES
from services.trainer.intake.ingest import Intake, consumer_name, stale_among
from services.trainer.intake.journal import Journal
from services.trainer.learning.distributed import Offer, Ranks, Report, Stop, Taken
from services.trainer.place import Place
from services.trainer.publishing.metrics import (
    CONTROL_UNREADABLE,
    DISK_FAILURES,
    DUPLICATES,
    REFUSED,
    ROLL_BACKS,
    UPDATE_FIGURES,
    VERSION_LAG,
    Refusal,
    TrainerMetrics,
)
from services.trainer.publishing.publishing import Publisher
from services.trainer.settings import TrainerSettings
from services.trainer.training import Training, TrainingConfig
from shared.adapters.tables.dataset import Dataset, read_dataset
from shared.adapters.tables.run_record import ResumePoint, RunRecord
from shared.adapters.versions.store import CheckpointStore
from shared.agent.trajectory import Trajectory
from shared.errors import MessageError, MuZeroError, StoreAwayError
from shared.messages.schemas import AlertRaised, ControlIssued
from shared.messages.streams import ALERTS, CONTROL, TRAINER_GROUP, TRAJECTORIES
from shared.runtime.lifecycle import Lifecycle

log = structlog.get_logger()

#: Longest stretch of updates between two looks at whether to stop or pause.
STRETCH_SECONDS = 0.25

#: The other ranks are asked so often for what they read and whether they were told to stop.
REPORT_SECONDS = 0.25

#: The disk refused a write: how long until the next try.
DISK_RETRY_SECONDS = 5.0

#: Stopping waits no longer than this for Redis to hear of the last version; the next start tells it.
LAST_WORD_SECONDS = 2.0

#: Control messages for this target are the trainer's.
CONTROL_TARGET = "training"

#: Where the newest control message cannot be read, the newest readable one is looked for among so many.
CONTROL_HISTORY = 1_000


class TrainerService:
    """The trainer's two loops, and those that hear of pauses and of the other ranks."""

    def __init__(self, settings: TrainerSettings, lifecycle: Lifecycle, ranks: Ranks | None = None) -> None:
        self._settings, self._lifecycle, self._ranks = settings, lifecycle, ranks
        self._bus = lifecycle.bus
        self._appending = asyncio.Lock()  # one append at a time
        self._ordering = asyncio.Lock()  # all ranks are at one thing at a time
        self._changed = asyncio.Event()
        self._paused = False
        self._updates_per_second = 0.0

    async def run(self) -> None:
        """Open what is on disk, go on from there, and learn until asked to stop."""
        with contextlib.ExitStack() as opened:
            await asyncio.to_thread(self._open, opened)
            resumed = await self._resume()
            if resumed:
                await self._take_in_and_learn()
            if self._ranks:
                await asyncio.to_thread(self._ranks.send_all, Stop())
            if resumed:
                await self._publisher.publish_last(patience_seconds=LAST_WORD_SECONDS)

    async def _take_in_and_learn(self) -> None:
        try:
            async with asyncio.TaskGroup() as loops:
                if self._ranks:
                    loops.create_task(self._lead(self._ranks))
                control_after = await self._lifecycle.until_stopping(self._hear_control())
                self._report()
                loops.create_task(self._ingest())
                loops.create_task(self._follow_control(control_after or "0-0"))
                loops.create_task(self._learn())
        except* MuZeroError as failures:
            raise failures.exceptions[0] from failures

    def _open(self, opened: contextlib.ExitStack) -> None:
        """Data set and journal, and a run at its beginning."""
        settings = self._settings
        self._dataset: Dataset = read_dataset(settings.dataset)
        self._journal = Journal(settings.journal_root, segment_bytes=settings.trainer.segment_megabytes << 20)
        opened.callback(self._journal.close)
        if self._journal.bytes_cut:
            log.warning("journal_tail_cut", bytes=self._journal.bytes_cut, position=self._journal.position)
        config = TrainingConfig(
            settings.model, settings.replay, settings.learner, settings.trainer, settings.search.discount
        )
        self._training = Training(
            config,
            self._dataset.features,
            self._dataset.fingerprint,
            self._ranks,
            instrument=self._dataset.bars.instrument,
            trained_until=self._dataset.trained_until,
        )
        self._metrics = TrainerMetrics()
        opened.callback(self._metrics.close)
        self._publisher = Publisher(
            CheckpointStore(settings.checkpoint_root), self._journal, self._training, self._bus, self._metrics
        )

    async def _resume(self) -> bool:
        """Go on from the newest valid version, once the store answers, or the disk takes version 0.

        Returns:
            False when asked to stop first.
        """
        while True:
            try:
                await asyncio.to_thread(self._publisher.resume)
                break
            except (OSError, StoreAwayError) as away:
                log.error("resume_failed", error=str(away), retry_seconds=DISK_RETRY_SECONDS)  # noqa: TRY400
                await self._lifecycle.sleep(DISK_RETRY_SECONDS)
                if self._lifecycle.stopping.is_set():
                    return False
        self._metrics.begin(self._record())
        log.info(
            "training_opened",
            version=self._publisher.version,
            episode=self._training.position,
            update=self._training.learner.counters.updates,
            journal=self._journal.position,
            replay_steps=len(self._training.replay),
            device=str(self._training.learner.device),
            precision=self._training.learner.precision.value,
            ranks=self._ranks.place.size if self._ranks else 1,
        )
        return True

    def _record(self) -> RunRecord:
        """The run's record, where the newest version left it."""
        training, counters = self._training, self._training.learner.counters
        record = RunRecord(
            self._settings.record_root,
            update_figures=UPDATE_FIGURES,
            version_figures=WINDOW_FIGURES,
            resume_at=ResumePoint(
                self._publisher.version or 0, training.position, counters.attempts, counters.updates
            ),
            tensorboard=self._settings.trainer.tensorboard,
        )
        bars = self._dataset.bars
        record.settings(
            {
                **training.config.recorded(),
                "seed": training.learner.seed,
                "dataset": {
                    "fingerprint": self._dataset.fingerprint,
                    "source": self._dataset.source,
                    "instrument": bars.instrument.name,
                    "bars": len(bars),
                },
            }
        )
        return record

    async def _ingest(self) -> None:
        """Trajectories from the stream into the journal; acknowledged only when synced there."""
        batches = self._bus.consume(TRAJECTORIES, TRAINER_GROUP, consumer_name(Place()))
        while not self._lifecycle.stopping.is_set():
            batch = await self._lifecycle.until_stopping(anext(batches))
            if batch is None or not batch.entries:
                continue
            intake = Intake.of(batch, self._dataset)
            stale = await self._append(intake.trajectories)
            if stale is None:
                return
            await intake.settle(stale, self._lifecycle, REFUSED.labels(Refusal.UNUSABLE).inc)
            self._changed.set()
            self._report()
            await self._wait_while(self._is_far_ahead)

    async def _lead(self, ranks: Ranks) -> None:
        """What the other ranks read into the journal too; when one of them is to stop, all stop."""
        # They are spoken to however long the disk refuses.
        appending: asyncio.Task[Mapping[UUID, str] | None] | None = None
        while not self._lifecycle.stopping.is_set():
            await self._lifecycle.sleep(REPORT_SECONDS)
            if appending and appending.done():
                stale = appending.result()
                if stale is not None:
                    async with self._ordering:
                        await asyncio.to_thread(ranks.send_all, Taken(stale))
                    self._changed.set()
                    self._report()
                appending = None
            report = Report(take=appending is None and not self._is_far_ahead())
            async with self._ordering:
                offers = await asyncio.to_thread(_offers, ranks, report)
            if any(offer.stopping for offer in offers):
                log.info("service_stopping", reason="another rank was told to stop")
                self._lifecycle.stop()
            REFUSED.labels(Refusal.UNUSABLE).inc(sum(offer.unusable for offer in offers))
            trajectories = [trajectory for offer in offers for trajectory in offer.trajectories]
            if trajectories:
                appending = asyncio.create_task(self._append(trajectories))
        if appending:
            await appending

    async def _append(self, trajectories: Sequence[Trajectory]) -> Mapping[UUID, str] | None:
        """Append to the journal what is not too old, trying again while the disk refuses.

        What is in the journal was young enough; it is learned from, now or after a restart, without a look
        at versions.

        Returns:
            Why trajectories are too old, by id; None when asked to stop first.
        """
        while True:
            try:
                async with self._appending:
                    newest = self._publisher.version or 0
                    stale = stale_among(
                        trajectories,
                        newest=newest,
                        max_version_lag=self._settings.trainer.max_version_lag,
                        journalled=self._journal,
                    )
                    recent = [one for one in trajectories if one.trajectory_id not in stale]
                    new = await asyncio.to_thread(self._journal.append, recent)
            except OSError as refused:
                DISK_FAILURES.labels("journal").inc()
                log.error("journal_write_failed", error=str(refused), retry_seconds=DISK_RETRY_SECONDS)  # noqa: TRY400
                await self._lifecycle.sleep(DISK_RETRY_SECONDS)
                if self._lifecycle.stopping.is_set():
                    return None
            else:
                DUPLICATES.inc(len(recent) - len(new))
                REFUSED.labels(Refusal.STALE).inc(len(trajectories) - len(recent))
                for trajectory in new:
                    VERSION_LAG.observe(max(newest - trajectory.checkpoint_version, 0))
                return stale

    def _is_far_ahead(self) -> bool:
        ahead = self._journal.position - self._training.position
        return ahead >= self._settings.trainer.max_ahead_episodes

    async def _learn(self) -> None:
        """Updates while they are owed, else the journal's next trajectory; a version when it is time."""
        training = self._training
        await self._lifecycle.until_stopping(self._publisher.announce_newest())
        while not self._lifecycle.stopping.is_set():
            if self._paused:
                await self._wait_while(lambda: self._paused)
            elif training.learner.diverged:
                await self._roll_back()
            elif training.may_update:
                async with self._ordering:
                    await asyncio.to_thread(self._update)
            elif self._publisher.is_due:
                await self._publisher.write()
                await self._lifecycle.until_stopping(self._publisher.announce_newest())
            elif self._journal.position > training.position:
                await asyncio.to_thread(self._take_next)
                self._changed.set()
            else:
                await self._wait_while(lambda: self._journal.position <= training.position)
            self._report()

    def _update(self) -> None:
        """Make updates for a short stretch of time."""
        training = self._training
        begin, before = time.monotonic(), training.learner.counters.updates
        while training.may_update and not training.learner.diverged:
            started = time.monotonic()
            statistics = training.update()
            self._metrics.updated(training, statistics, time.monotonic() - started)
            if time.monotonic() - begin > STRETCH_SECONDS or self._lifecycle.stopping.is_set():
                break
        made = training.learner.counters.updates - before
        self._updates_per_second = made / max(time.monotonic() - begin, 1e-9)

    def _take_next(self) -> None:
        trajectory = self._journal.read(self._training.position)
        self._training.insert(trajectory)
        self._metrics.took_in(self._training, trajectory)

    async def _roll_back(self) -> None:
        try:
            async with self._ordering:
                version = await asyncio.to_thread(self._publisher.roll_back)
        except (OSError, StoreAwayError) as away:
            log.error("roll_back_failed", error=str(away), retry_seconds=DISK_RETRY_SECONDS)  # noqa: TRY400
            await self._lifecycle.sleep(DISK_RETRY_SECONDS)
            return
        ROLL_BACKS.inc()
        skipped = self._settings.learner.max_skipped_in_a_row
        detail = f"{skipped} updates in a row were not finite; weights are those of version {version} again"
        log.error("training_rolled_back", version=version, skipped_in_a_row=skipped)
        alert = AlertRaised(source="trainer", name="training_rolled_back", detail=detail)
        await self._lifecycle.until_stopping(self._bus.append(ALERTS, alert))

    async def _hear_control(self) -> str:
        """Obey what was asked for last, before anything is learned; the id after which news begins."""
        after = await self._bus.last_id(CONTROL)
        try:
            latest = await self._bus.newest(CONTROL, name=CONTROL_TARGET)
        except MessageError as unreadable:
            CONTROL_UNREADABLE.inc()
            log.error("control_unreadable", error=str(unreadable))  # noqa: TRY400  the text says it all
            latest = await self._newest_readable_control()
        if latest is not None:
            self._obey(latest)
        return after

    async def _newest_readable_control(self) -> ControlIssued | None:
        """What a trainer obeys that was running when the unreadable came."""
        entries = await self._bus.recent(CONTROL, count=CONTROL_HISTORY)
        readable = (entry.message for entry in entries)
        return next((control for control in readable if control.target == CONTROL_TARGET), None)

    async def _follow_control(self, after: str) -> None:
        """Pause and resume."""
        messages = self._bus.follow(CONTROL, after)
        while not self._lifecycle.stopping.is_set():
            for entry in await self._lifecycle.until_stopping(anext(messages)) or ():
                self._obey(entry.message)

    def _obey(self, control: ControlIssued) -> None:
        if control.target != CONTROL_TARGET:
            return
        paused = control.state != "running"
        if paused != self._paused:
            log.info(
                "training_paused" if paused else "training_resumed", by=control.by, reason=control.reason
            )
        self._paused = paused
        self._changed.set()
        self._report()

    async def _wait_while(self, waiting: Callable[[], bool]) -> None:
        """Wait until a condition no longer holds, or the service is asked to stop."""
        while waiting() and not self._lifecycle.stopping.is_set():
            self._changed.clear()
            await self._lifecycle.until_stopping(self._changed.wait())

    def _report(self) -> None:
        training = self._training
        self._metrics.learned(training, self._journal.position)
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
            paused=self._paused,
            updates_per_second=round(self._updates_per_second, 2),
        )


def _offers(ranks: Ranks, report: Report) -> list[Offer]:
    ranks.send_all(report)
    return ranks.offers()
