"""Settings of the trainer."""

from pathlib import Path

from pydantic import field_validator

from services.trainer.config import LearnerConfig, ReplayConfig, TrainerConfig
from services.trainer.place import Rank
from shared.environment.action import NUM_ACTIONS
from shared.environment.outcome import NUM_OUTCOMES
from shared.environment.position import NUM_STATIC
from shared.errors import SettingsError
from shared.features.kernels import NUM_FEATURES
from shared.features.window import WINDOW_BARS
from shared.model.config import ModelConfig
from shared.runtime.settings import ServiceSettings
from shared.search.config import SearchConfig

#: Sizes of the model that are fixed by the features and the environment.
FIXED_SIZES = {
    "window_bars": WINDOW_BARS,
    "temporal_features": NUM_FEATURES,
    "static_features": NUM_STATIC,
    "num_actions": NUM_ACTIONS,
    "num_outcomes": NUM_OUTCOMES,
}


class TrainerSettings(ServiceSettings):
    """Settings of the trainer and of each of its ranks."""

    model: ModelConfig = ModelConfig()
    replay: ReplayConfig = ReplayConfig()
    learner: LearnerConfig = LearnerConfig()
    trainer: TrainerConfig = TrainerConfig()
    search: SearchConfig = SearchConfig()  # returns are computed with its discount

    @field_validator("model")
    @classmethod
    def _require_fixed_sizes(cls, model: ModelConfig) -> ModelConfig:
        """Refuse sizes that differ from those of the training data."""
        for name, size in FIXED_SIZES.items():
            if getattr(model, name) != size:
                raise SettingsError(
                    f"model.{name} is {getattr(model, name)}, expected {size}, as in the training data"
                )
        return model

    @field_validator("instance")
    @classmethod
    def _with_rank(cls, instance: str) -> str:
        """Give each rank an instance name of its own; torchrun passes the same settings to all."""
        rank = Rank.from_torchrun()
        return instance if rank.is_leader or not instance else f"{instance}-rank-{rank.rank}"

    @field_validator("metrics_port")
    @classmethod
    def _only_on_leader(cls, port: int) -> int:
        """Serve metrics on the leader only: it has the figures, and only one process can use the port."""
        return port if Rank.from_torchrun().is_leader else 0

    @property
    def journal_root(self) -> Path:
        """Folder of the journal's segments."""
        return self.home / "journal"

    @property
    def record_root(self) -> Path:
        """Folder of the run's record."""
        return self.home / "record"
