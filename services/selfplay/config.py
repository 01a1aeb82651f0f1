"""What a self-play worker may be told."""

import math
from dataclasses import dataclass

from shared.errors import SettingsError


@dataclass(frozen=True)
class SelfPlayConfig:
    """Lanes, exploration and pacing of one worker."""

    lanes: int = 16  # sessions in lockstep; all of a batch finish together
    high_water: int = 32  # trajectories waiting in the stream at which the worker pauses
    embedding_megabytes: int = 128  # of bars' embeddings kept for as long as one version plays
    unsent_batches: int = 2  # finished batches held while Redis is away; then the worker pauses
    temperature_start: float = 1.0  # puct
    temperature_end: float = 0.5  # puct, from `temperature_episodes` on
    temperature_episodes: int = 20_000
    epsilon: float = 0.2  # puct, share of decisions that are any legal action
    excursion_rate: float = 0.0  # probability that any legal action is taken and then held
    excursion_bars: float = 30.0  # for so long, on average
    excursion_rate_end: float | None = None  # from `excursion_episodes` on; None: the rate stays
    excursion_episodes: int = 10_000

    def __post_init__(self) -> None:
        """Check every number's range."""
        for count in ("lanes", "high_water", "unsent_batches", "temperature_episodes", "excursion_episodes"):
            if getattr(self, count) < 1:
                raise SettingsError(f"selfplay.{count} is {getattr(self, count)}, expected 1 or more")
        if self.embedding_megabytes < 0:
            raise SettingsError(
                f"selfplay.embedding_megabytes is {self.embedding_megabytes}, expected 0 or more"
            )
        for name in ("temperature_start", "temperature_end"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise SettingsError(f"selfplay.{name} is {value}, expected 0 or more")
        for name in ("epsilon", "excursion_rate", "excursion_rate_end"):
            if getattr(self, name) is not None and not 0.0 <= getattr(self, name) <= 1.0:
                raise SettingsError(f"selfplay.{name} is {getattr(self, name)}, expected 0 to 1")
        if not 1.0 <= self.excursion_bars < float("inf"):
            raise SettingsError(f"selfplay.excursion_bars is {self.excursion_bars}, expected 1 or more")
