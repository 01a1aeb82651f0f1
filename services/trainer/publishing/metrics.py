"""Figures for Prometheus, for the trainer's heartbeat and for the run's record."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import fields
from enum import StrEnum

import structlog
from prometheus_client import Counter, Gauge, Histogram

from services.trainer.learning.learner import UpdateStatistics, as_metrics
from services.trainer.training import Training
from shared.adapters.tables.run_record import RunRecord
from shared.adapters.versions.manifest import Manifest
from shared.agent.trajectory import Trajectory

log = structlog.get_logger()

#: Names of the numbers that are recorded for every update.
UPDATE_FIGURES = (
    *(field.name for field in fields(UpdateStatistics) if field.name != "skipped"),
    "replay_age_episodes",  # mean age of the batch's steps, in episodes inserted since
    "samples_per_insert",  # steps drawn so far per step inserted
    "steps_per_second",  # steps of the batch over the duration of the update
)


class Refusal(StrEnum):
    """Why a trajectory is refused."""

    UNUSABLE = "unusable"  # damaged, of another data set, or outside the bars
    STALE = "stale"  # older than trainer.max_version_lag allows


FIGURES = Gauge("mm_trainer_figure", "Losses, errors, replay and pacing, by name", ["name"])
VERSION = Gauge("mm_trainer_version", "Newest published checkpoint version")
EPISODES = Gauge("mm_trainer_episodes", "Trajectories learned from in total")
JOURNALLED = Gauge("mm_trainer_journalled", "Trajectories journalled in total")
UPDATES = Counter("mm_trainer_updates", "Updates made by this process")
SKIPPED = Counter("mm_trainer_updates_skipped", "Updates skipped because loss or gradient was not finite")
ROLL_BACKS = Counter("mm_trainer_roll_backs", "Returns to an earlier version's weights")
DUPLICATES = Counter("mm_trainer_duplicates", "Redelivered trajectories that were already in the journal")
REFUSED = Counter("mm_trainer_refused", "Dead-lettered trajectories", ["reason"])
for _reason in Refusal:
    REFUSED.labels(_reason)  # exported as 0 from the start
VERSION_LAG = Histogram(
    "mm_trainer_version_lag",
    "Versions that a trajectory was behind the newest when it was journalled, at least 0",
    buckets=(0, 1, 2, 3, 5, 10, 20, 50, 100),
)
CONTROL_UNREADABLE = Counter(
    "mm_trainer_control_unreadable", "Starts at which the newest pause or resume message could not be read"
)
DISK_FAILURES = Counter("mm_trainer_disk_failures", "Failed writes", ["what"])


class TrainerMetrics:
    """Exports and records the figures of learning, which continues if the record cannot be written."""

    def __init__(self) -> None:
        self._record: RunRecord | None = None
        self._newest: Manifest | None = None
        self._pace: dict[str, float] = {}
        self._exported: set[str] = set()  # names of all figures so far

    def start_record(self, record: RunRecord) -> None:
        """Start to record, first the version that the run began with or resumed from."""
        self._record = record
        if self._newest is not None:
            self._record_version(self._newest)

    def figures(self, training: Training) -> dict[str, float | None]:
        """Current figures by name; None for a figure that is no longer defined."""
        now = {**training.metrics(), **self._pace}
        self._exported |= now.keys()
        return {**dict.fromkeys(self._exported), **now}

    def inserted(self, training: Training, trajectory: Trajectory) -> None:
        """Record a trajectory that was inserted into the replay."""
        with self._recording() as record:
            if record:
                record.episode(training.position, trajectory)

    def updated(self, training: Training, statistics: UpdateStatistics, seconds: float) -> None:
        """Count and record an update that was made or skipped.

        Args:
            training: training run after the update.
            statistics: statistics of the update.
            seconds: duration of the update.
        """
        (SKIPPED if statistics.skipped else UPDATES).inc()
        self._pace = {
            "replay_age_episodes": training.replay_age,
            "steps_per_second": training.pacing.drawn_last / max(seconds, 1e-9),
        }
        counters = training.learner.counters
        with self._recording() as record:
            if record:
                record.update(
                    counters.attempts,
                    counters.updates,
                    training.position,
                    {**as_metrics(statistics), **self._pace, "samples_per_insert": training.pacing.ratio},
                    skipped=statistics.skipped,
                )

    def export(self, training: Training, journalled: int) -> None:
        """Set the Prometheus gauges."""
        for name, value in self.figures(training).items():
            FIGURES.labels(name).set(math.nan if value is None else value)
        EPISODES.set(training.position)
        JOURNALLED.set(journalled)

    def published(self, manifest: Manifest) -> None:
        """Export and record a version that was published or resumed from."""
        VERSION.set(manifest.version)
        self._newest = manifest
        self._record_version(manifest)

    def flush(self) -> None:
        """Write the recorded rows to the disk."""
        with self._recording() as record:
            if record:
                record.flush()

    def close(self) -> None:
        """Write the remaining rows and close the record."""
        with self._recording() as record:
            if record:
                record.close()

    def _record_version(self, manifest: Manifest) -> None:
        with self._recording() as record:
            if record:
                record.version(
                    manifest.version,
                    manifest.episode,
                    manifest.update,
                    manifest.created_at,
                    manifest.metrics,
                )

    @contextlib.contextmanager
    def _recording(self) -> Iterator[RunRecord | None]:
        try:
            yield self._record
        except OSError as failure:
            DISK_FAILURES.labels("record").inc()
            lost = self._record.num_lost if self._record else 0
            log.error("record_write_failed", error=str(failure), rows_lost=lost)  # noqa: TRY400
