"""Settings of a self-play worker's lanes, exploration and pacing."""

import math
from dataclasses import dataclass

from shared.errors import SettingsError


@dataclass(frozen=True)
class SelfPlayConfig:
    """The `[selfplay]` group."""

    lanes: int = 16  # sessions in a batch, played in lockstep
    high_water: int = 32  # trajectories in the stream above which the worker pauses
    embedding_megabytes: int = 128  # cache of the bars' embeddings by the current version
    unsent_batches: int = 2  # queue of finished batches; the worker pauses while it is full
    temperature_start: float = 1.0  # puct only
    temperature_end: float = 0.5  # puct only; reached after `temperature_episodes`
    temperature_episodes: int = 20_000
    epsilon: float = 0.2  # puct only; probability of a random legal action per decision
    excursion_rate: float = 0.0  # probability per decision of a random legal action that is then held
    excursion_bars: float = 30.0  # mean length of an excursion
    excursion_rate_end: float | None = None  # reached after `excursion_episodes`; None: no decay
    excursion_episodes: int = 10_000

    def __post_init__(self) -> None:
        """Check the range of every value.

        Raises:
            SettingsError: a number is out of range.
        """
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
