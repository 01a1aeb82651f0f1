"""How far self-play strays, by how much was learned already."""

from services.selfplay.config import SelfPlayConfig
from shared.agent.exploration import Exploration


def exploration_at(episode: int, config: SelfPlayConfig) -> Exploration:
    """Exploration with a version that learned from some number of episodes.

    The temperature falls in a straight line from its start to its end, and stays there.
    """
    share = min(episode / config.temperature_episodes, 1.0)
    fall = config.temperature_start - config.temperature_end
    return Exploration(
        temperature=config.temperature_start - share * fall,
        epsilon=config.epsilon,
        excursion_rate=config.excursion_rate,
        excursion_bars=config.excursion_bars,
    )
