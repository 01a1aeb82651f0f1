"""How far self-play strays, by how much was learned already."""

from services.selfplay.config import SelfPlayConfig
from shared.agent.exploration import Exploration


def exploration_at(episode: int, config: SelfPlayConfig) -> Exploration:
    """Exploration with a version that learned from some number of episodes.

    The temperature falls in a straight line from its start to its end, and stays there; so does the rate of
    excursions, where it has an end.
    """
    rate, rate_end = config.excursion_rate, config.excursion_rate_end
    return Exploration(
        temperature=_falling(
            config.temperature_start, config.temperature_end, episode / config.temperature_episodes
        ),
        epsilon=config.epsilon,
        excursion_rate=rate
        if rate_end is None
        else _falling(rate, rate_end, episode / config.excursion_episodes),
        excursion_bars=config.excursion_bars,
    )


def _falling(start: float, end: float, share: float) -> float:
    return start + min(share, 1.0) * (end - start)
