"""The record of the trainer's run, opened at the point from which the run continues."""

from services.trainer.intake.episodes import WINDOW_FIGURES
from services.trainer.publishing.metrics import UPDATE_FIGURES
from services.trainer.settings import TrainerSettings
from services.trainer.training import Training
from shared.adapters.tables.dataset import Dataset
from shared.adapters.tables.run_record import ResumePoint, RunRecord


def open_record(settings: TrainerSettings, dataset: Dataset, training: Training, version: int) -> RunRecord:
    """Open the record and note the settings of this start.

    Args:
        settings: settings of the trainer.
        dataset: data set of the run.
        training: training run, resumed or new.
        version: version from which the run continues.
    Raises:
        DataError: the record cannot be read, or its folder cannot be written to.
    """
    counters = training.learner.counters
    record = RunRecord(
        settings.record_root,
        update_figures=UPDATE_FIGURES,
        version_figures=WINDOW_FIGURES,
        resume_at=ResumePoint(version, training.position, counters.attempts, counters.updates),
        tensorboard=settings.trainer.tensorboard,
    )
    record.settings(
        {
            **training.config.recorded(),
            "seed": training.learner.seed,
            "dataset": {
                "fingerprint": dataset.fingerprint,
                "source": dataset.source,
                "instrument": dataset.bars.instrument.name,
                "bars": len(dataset.bars),
            },
        }
    )
    return record
