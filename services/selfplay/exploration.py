"""The decay of exploration with the number of learned episodes."""

from services.selfplay.config import SelfPlayConfig
from shared.agent.exploration import Exploration


def exploration_at(episode: int, config: SelfPlayConfig) -> Exploration:
    """Exploration of a version that learned from `episode` episodes.

    The temperature changes linearly from its start to its end value and stays there. The excursion rate does
    the same if it has an end value.
    """
    rate, rate_end = config.excursion_rate, config.excursion_rate_end
    return Exploration(
        temperature=_linear(
            config.temperature_start, config.temperature_end, episode / config.temperature_episodes
        ),
        epsilon=config.epsilon,
        excursion_rate=rate
        if rate_end is None
        else _linear(rate, rate_end, episode / config.excursion_episodes),
        excursion_bars=config.excursion_bars,
    )


def _linear(start: float, end: float, share: float) -> float:
    return start + min(share, 1.0) * (end - start)
