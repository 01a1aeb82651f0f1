"""The trainer's settings."""

from pathlib import Path

from pydantic import field_validator

from services.trainer.config import LearnerConfig, ReplayConfig, TrainerConfig
from services.trainer.place import Place
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

    @field_validator("instance")
    @classmethod
    def _of_this_rank(cls, instance: str) -> str:
        """Ranks are given one name together; each needs its own."""
        place = Place.of()
        return instance if place.leads or not instance else f"{instance}-rank-{place.rank}"

    @field_validator("metrics_port")
    @classmethod
    def _of_the_leader(cls, port: int) -> int:
        """One of a machine's ranks can have the port, and the leader has the figures."""
        return port if Place.of().leads else 0

    @property
    def journal_root(self) -> Path:
        """Folder of the journal's segments."""
        return self.home / "journal"

    @property
    def record_root(self) -> Path:
        """Folder of the run's record."""
        return self.home / "record"
