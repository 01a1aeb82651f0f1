"""The validator's settings."""

from pydantic import Field

from services.validator.config import ValidationConfig
from services.validator.gate import GateConfig
from shared.environment.environment import EnvironmentConfig
from shared.metrics.monte_carlo import MonteCarloConfig
from shared.metrics.sizing import SizingConfig
from shared.runtime.settings import ServiceSettings
from shared.search.config import SearchConfig


class ValidatorSettings(ServiceSettings):
    """Judges every published version out of sample and promotes the best one to paper."""

    validation: ValidationConfig = Field(
        ValidationConfig(), description="lanes, number of sessions, time limit"
    )
    gate: GateConfig = Field(GateConfig(), description="conditions of promotion to paper and to live")
    monte_carlo: MonteCarloConfig = Field(MonteCarloConfig(), description="how trades are resampled")
    sizing: SizingConfig = Field(SizingConfig(), description="risk tolerance of safe-f and CAR25")
    environment: EnvironmentConfig = Field(EnvironmentConfig(), description="costs and session length")
    search: SearchConfig = Field(
        SearchConfig(), description="how the search plans each decision; always greedy"
    )
