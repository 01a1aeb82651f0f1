"""The trainer's settings."""

from pathlib import Path

from pydantic import field_validator

from services.trainer.config import LearnerConfig, ReplayConfig, TrainerConfig
from services.trainer.place import Place
from shared.environment.action import NUM_ACTIONS
from shared.environment.outcome import NUM_OUTCOMES
from shared.environment.position import NUM_STATIC
from shared.errors import SettingsError
from shared.features.kernels import NUM_FEATURES
from shared.features.window import WINDOW_BARS
from shared.model.config import ModelConfig
from shared.runtime.settings import ServiceSettings
from shared.search.config import SearchConfig

#: Sizes of the model that bars and environment fix.
FIXED_SIZES = {
    "window_bars": WINDOW_BARS,
    "temporal_features": NUM_FEATURES,
    "static_features": NUM_STATIC,
    "num_actions": NUM_ACTIONS,
    "num_outcomes": NUM_OUTCOMES,
}


class TrainerSettings(ServiceSettings):
    """The trainer's settings."""

    model: ModelConfig = ModelConfig()
    replay: ReplayConfig = ReplayConfig()
    learner: LearnerConfig = LearnerConfig()
    trainer: TrainerConfig = TrainerConfig()
    search: SearchConfig = SearchConfig()  # its discount is the one that returns are computed with

    @field_validator("model")
    @classmethod
    def _of_the_bars_and_the_environment(cls, model: ModelConfig) -> ModelConfig:
        """Refuse sizes that what is learned from does not have."""
        for name, size in FIXED_SIZES.items():
            if getattr(model, name) != size:
                raise SettingsError(
                    f"model.{name} is {getattr(model, name)}, expected {size}: data have no other"
                )
        return model

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
