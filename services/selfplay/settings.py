"""A self-play worker's settings."""

from services.selfplay.config import SelfPlayConfig
from shared.environment.environment import EnvironmentConfig
from shared.runtime.settings import ServiceSettings
from shared.search.config import SearchConfig


class SelfPlaySettings(ServiceSettings):
    """A self-play worker's settings."""

    selfplay: SelfPlayConfig = SelfPlayConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    search: SearchConfig = SearchConfig()
