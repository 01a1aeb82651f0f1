"""What the trainer shows to Prometheus and, when asked to, writes for TensorBoard."""

from pathlib import Path

from prometheus_client import Counter, Gauge

from services.trainer.learner import UpdateStatistics, as_metrics
from services.trainer.training import Training

#: Figures are written for TensorBoard every so many updates.
TENSORBOARD_EVERY = 10

FIGURES = Gauge("mm_trainer_figure", "Losses, errors, replay and pacing, by name", ["name"])
VERSION = Gauge("mm_trainer_version", "Newest published checkpoint version")
EPISODES = Gauge("mm_trainer_episodes", "Trajectories learned from, ever")
JOURNALLED = Gauge("mm_trainer_journalled", "Trajectories in the journal, ever")
UPDATES = Counter("mm_trainer_updates", "Updates made by this process")
SKIPPED = Counter("mm_trainer_updates_skipped", "Updates left out for a loss or gradient that was not finite")
ROLL_BACKS = Counter("mm_trainer_roll_backs", "Returns to an earlier version's weights")
DUPLICATES = Counter("mm_trainer_duplicates", "Trajectories delivered again and not counted again")
REFUSED = Counter("mm_trainer_refused", "Trajectories put with the dead letters")
DISK_FAILURES = Counter("mm_trainer_disk_failures", "Writes that the disk refused", ["what"])


class TensorBoard:
    """Event files of one run; the steps are updates."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, update: int, figures: dict[str, float]) -> None:
        """Add one point to each curve."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, update)

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()


class TrainerMetrics:
    """Tells Prometheus, and TensorBoard when there is one, how learning goes."""

    def __init__(self, tensorboard: TensorBoard | None) -> None:
        self._tensorboard = tensorboard

    def updated(self, training: Training, statistics: UpdateStatistics) -> None:
        """An update was made or skipped."""
        (SKIPPED if statistics.skipped else UPDATES).inc()
        updates = training.learner.counters.updates
        if self._tensorboard and updates % TENSORBOARD_EVERY == 0 and not statistics.skipped:
            self._tensorboard.write(updates, as_metrics(statistics))

    def learned(self, training: Training, journalled: int) -> None:
        """Some updates were made or a trajectory was taken in."""
        for name, value in training.metrics().items():
            FIGURES.labels(name).set(value)
        EPISODES.set(training.position)
        JOURNALLED.set(journalled)

    def published(self, version: int, training: Training) -> None:
        """A version was published."""
        VERSION.set(version)
        if self._tensorboard:
            figures = {f"episodes/{name}": value for name, value in training.episodes.metrics().items()}
            self._tensorboard.write(training.learner.counters.updates, figures)

    def close(self) -> None:
        """Write what is left."""
        if self._tensorboard:
            self._tensorboard.close()
