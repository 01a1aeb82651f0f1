"""The trainer's settings."""

from pathlib import Path

from services.trainer.config import LearnerConfig, ReplayConfig, TrainerConfig
from shared.model.config import ModelConfig
from shared.runtime.settings import ServiceSettings
from shared.search.config import SearchConfig


class TrainerSettings(ServiceSettings):
    """The trainer's settings."""

    model: ModelConfig = ModelConfig()
    replay: ReplayConfig = ReplayConfig()
    learner: LearnerConfig = LearnerConfig()
    trainer: TrainerConfig = TrainerConfig()
    search: SearchConfig = SearchConfig()  # its discount is the one that returns are computed with

    @property
    def journal_root(self) -> Path:
        """Folder of the journal's segments."""
        return self.home / "journal"

    @property
    def record_root(self) -> Path:
        """Folder of the run's record."""
        return self.home / "record"
