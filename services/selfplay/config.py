"""Settings of a self-play worker's lanes, exploration and pacing."""

from dataclasses import dataclass
from typing import Annotated

from shared.setting import Count, Natural, NonNegative, Range, Share, check_group, setting


@dataclass(frozen=True)
class SelfPlayConfig:
    """The `[selfplay]` group.

    Raises:
        SettingsError: a value is out of range.
    """

    lanes: Count = setting(16, "sessions of a batch, played in lockstep")
    high_water: Count = setting(32, "trajectories in the stream above which the worker pauses")
    embedding_megabytes: Natural = setting(128, "size of the cache of bar embeddings")
    unsent_batches: Count = setting(2, "finished batches that wait for Redis before the worker pauses")
    temperature_start: NonNegative = setting(1.0, "puct only: temperature of the first episodes")
    temperature_end: NonNegative = setting(0.5, "puct only: temperature after temperature_episodes")
    temperature_episodes: Count = setting(20_000, "episodes over which the temperature changes")
    epsilon: Share = setting(0.2, "puct only: probability of a random legal action per decision")
    excursion_rate: Share = setting(
        0.0, "probability per decision that an excursion starts: a random legal action, then HOLD"
    )
    excursion_bars: Annotated[float, Range(low=1.0)] = setting(30.0, "mean length of an excursion")
    excursion_rate_end: Share | None = setting(
        None, "excursion rate after excursion_episodes; unset keeps the rate constant"
    )
    excursion_episodes: Count = setting(10_000, "episodes over which the excursion rate changes")

    def __post_init__(self) -> None:
        """Check every range."""
        check_group("selfplay", self)
