"""The parts of a training run: opened from the disk, then resumed from the newest version."""

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
from shared.errors import StoreAwayError
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
        opened: contextlib.ExitStack,
    ) -> "Run":
        """Open data set and journal, and create a training at its beginning.

        Args:
            settings: settings of the trainer.
            lifecycle: lifecycle of the service.
            ranks: all ranks, if this is the leader of several.
            opened: closes journal and metrics.
        """
        dataset = read_dataset(settings.dataset)
        journal = Journal(settings.journal_root, segment_bytes=settings.trainer.segment_megabytes << 20)
        opened.callback(journal.close)
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
        opened.callback(metrics.close)
        store = CheckpointStore(settings.checkpoint_root)
        publisher = Publisher(store, journal, training, lifecycle.bus, metrics)
        return cls(dataset, journal, training, metrics, publisher)

    async def resume(self, settings: TrainerSettings, lifecycle: Lifecycle, num_ranks: int) -> bool:
        """Resume from the newest valid version, or write version 0; retry while disk or store fails.

        Returns:
            False when asked to stop first.
        """
        while True:
            try:
                await asyncio.to_thread(self.publisher.resume)
                break
            except (OSError, StoreAwayError) as failure:
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
