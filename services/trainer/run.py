"""The parts of a training run. `open` creates them, and `resume` loads the newest version."""

import asyncio
import contextlib
from dataclasses import dataclass

import structlog

from services.trainer.intake.journal import Journal
from services.trainer.learning.distributed import Ranks
from services.trainer.publishing.metrics import TrainerMetrics
from services.trainer.publishing.publishing import Publisher
from services.trainer.publishing.record import open_record
from services.trainer.retry import wait_to_retry
from services.trainer.settings import TrainerSettings
from services.trainer.training import Training, TrainingConfig
from shared.adapters.tables.dataset import Dataset, read_dataset
from shared.adapters.versions.store import CheckpointStore
from shared.errors import StoreUnavailableError
from shared.runtime.lifecycle import Lifecycle

log = structlog.get_logger()


@dataclass(frozen=True)
class Run:
    """Data set, journal, training, metrics and publisher of one run."""

    dataset: Dataset
    journal: Journal
    training: Training
    metrics: TrainerMetrics
    publisher: Publisher

    @classmethod
    def open(
        cls,
        settings: TrainerSettings,
        lifecycle: Lifecycle,
        ranks: Ranks | None,
        exit_stack: contextlib.ExitStack,
    ) -> "Run":
        """Open the data set and the journal, and create a training run with random weights.

        Args:
            settings: settings of the trainer.
            lifecycle: lifecycle of the service.
            ranks: all ranks, if this is the leader of several.
            exit_stack: receives the callbacks that close the journal and the metrics.
        """
        dataset = read_dataset(settings.dataset)
        journal = Journal(settings.journal_root, segment_bytes=settings.trainer.segment_megabytes << 20)
        exit_stack.callback(journal.close)
        if journal.bytes_cut:
            log.warning("journal_tail_cut", bytes=journal.bytes_cut, position=journal.position)
        training = Training(
            TrainingConfig(
                settings.model, settings.replay, settings.learner, settings.trainer, settings.search.discount
            ),
            dataset.features,
            dataset.fingerprint,
            ranks,
            instrument=dataset.bars.instrument,
            trained_until=dataset.trained_until,
        )
        metrics = TrainerMetrics()
        exit_stack.callback(metrics.close)
        store = CheckpointStore(settings.checkpoint_root)
        publisher = Publisher(store, journal, training, lifecycle.bus, metrics)
        return cls(dataset, journal, training, metrics, publisher)

    async def resume(self, settings: TrainerSettings, lifecycle: Lifecycle, num_ranks: int) -> bool:
        """Resume from the newest valid version, or write version 0. Retry while the disk or the store fails.

        Returns:
            False if the service was asked to stop before it could resume.
        """
        while True:
            try:
                await asyncio.to_thread(self.publisher.resume)
                break
            except (OSError, StoreUnavailableError) as failure:
                if not await wait_to_retry("resume_failed", failure, lifecycle):
                    return False
        training, version = self.training, self.publisher.version
        self.metrics.start_record(open_record(settings, self.dataset, training, version or 0))
        log.info(
            "training_opened",
            version=version,
            episode=training.position,
            update=training.learner.counters.updates,
            journal=self.journal.position,
            replay_steps=len(training.replay),
            device=str(training.learner.device),
            precision=training.learner.precision.value,
            ranks=num_ranks,
        )
        return True
