"""Settings of a self-play worker."""

from pathlib import Path

from services.selfplay.config import SelfPlayConfig
from shared.environment.environment import EnvironmentConfig
from shared.runtime.settings import ServiceSettings
from shared.search.config import SearchConfig


class SelfPlaySettings(ServiceSettings):
    """Plays sessions with the newest version and sends them to the trainer."""

    selfplay: SelfPlayConfig = SelfPlayConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    search: SearchConfig = SearchConfig()

    @property
    def unsent_root(self) -> Path:
        """Folder of the finished trajectories that a stopping worker could not send."""
        return self.home / "unsent"
