"""What the trainer tells Prometheus, its heartbeat and the run's record."""

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
from shared.adapters.versions.store import Manifest
from shared.agent.trajectory import Trajectory

log = structlog.get_logger()

#: Numbers that the record has of every update.
UPDATE_FIGURES = (
    *(field.name for field in fields(UpdateStatistics) if field.name != "skipped"),
    "replay_age_episodes",  # taken in since those that the batch is of, on average
    "samples_per_insert",  # steps drawn for each that came in, so far
    "steps_per_second",  # drawn and learned from, while the update was made
)


class Refusal(StrEnum):
    """Why a trajectory is not learned from."""

    UNUSABLE = "unusable"  # damaged, of another data set, or outside its bars
    STALE = "stale"  # trainer.max_version_lag


FIGURES = Gauge("mm_trainer_figure", "Losses, errors, replay and pacing, by name", ["name"])
VERSION = Gauge("mm_trainer_version", "Newest published checkpoint version")
EPISODES = Gauge("mm_trainer_episodes", "Trajectories learned from, ever")
JOURNALLED = Gauge("mm_trainer_journalled", "Trajectories in the journal, ever")
UPDATES = Counter("mm_trainer_updates", "Updates made by this process")
SKIPPED = Counter("mm_trainer_updates_skipped", "Updates left out for a loss or gradient that was not finite")
ROLL_BACKS = Counter("mm_trainer_roll_backs", "Returns to an earlier version's weights")
DUPLICATES = Counter("mm_trainer_duplicates", "Trajectories delivered again and not counted again")
REFUSED = Counter("mm_trainer_refused", "Trajectories put with the dead letters", ["reason"])
for _reason in Refusal:
    REFUSED.labels(_reason)  # told from the start, as 0
VERSION_LAG = Histogram(
    "mm_trainer_version_lag",
    "Versions from the one that played a trajectory to the newest, when it was taken in; none is less than 0",
    buckets=(0, 1, 2, 3, 5, 10, 20, 50, 100),
)
CONTROL_UNREADABLE = Counter(
    "mm_trainer_control_unreadable", "Starts at which the newest order to pause or resume could not be read"
)
DISK_FAILURES = Counter("mm_trainer_disk_failures", "Writes that the disk refused", ["what"])


class TrainerMetrics:
    """Tells how learning goes; a disk that refuses the record does not stop it."""

    def __init__(self) -> None:
        self._record: RunRecord | None = None
        self._newest: Manifest | None = None
        self._pace: dict[str, float] = {}
        self._exported: set[str] = set()  # names of figures

    def start_record(self, record: RunRecord) -> None:
        """Tell the record too from now on, and of the version that the run begins or goes on with."""
        self._record = record
        if self._newest is not None:
            self._note(self._newest)

    def figures(self, training: Training) -> dict[str, float | None]:
        """How learning stands, by name; None is what was told before and is not defined now."""
        now = {**training.metrics(), **self._pace}
        self._exported |= now.keys()
        return {**dict.fromkeys(self._exported), **now}

    def inserted(self, training: Training, trajectory: Trajectory) -> None:
        """A trajectory is learned from now."""
        with self._recording() as record:
            if record:
                record.episode(training.position, trajectory)

    def updated(self, training: Training, statistics: UpdateStatistics, seconds: float) -> None:
        """An update was made or skipped.

        Args:
            training: after it.
            statistics: of the update.
            seconds: that it took.
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
        """Some updates were made or a trajectory was taken in."""
        for name, value in self.figures(training).items():
            FIGURES.labels(name).set(math.nan if value is None else value)
        EPISODES.set(training.position)
        JOURNALLED.set(journalled)

    def published(self, manifest: Manifest) -> None:
        """A version was published, or the run goes on from it."""
        VERSION.set(manifest.version)
        self._newest = manifest
        self._note(manifest)

    def flush(self) -> None:
        """Put what was recorded so far on the disk."""
        with self._recording() as record:
            if record:
                record.flush()

    def close(self) -> None:
        """Write what is left."""
        with self._recording() as record:
            if record:
                record.close()

    def _note(self, manifest: Manifest) -> None:
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
        except OSError as refused:
            DISK_FAILURES.labels("record").inc()
            lost = self._record.num_lost if self._record else 0
            log.error("record_write_failed", error=str(refused), rows_lost=lost)  # noqa: TRY400
