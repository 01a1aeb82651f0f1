"""Trading figures of recent self-play, which show whether a run learns or has collapsed."""

from collections import deque
from math import isfinite

from shared.agent.trajectory import Trajectory
from shared.environment.action import Action
from shared.metrics.episodes import Episode, mean_figures

#: Number of episodes that the figures cover.
WINDOW_EPISODES = 50

#: Names of the figures.
WINDOW_FIGURES = (
    "expectancy_pips",
    "win_rate",
    "trade_ratio",
    "trades_per_episode",
    "reward_per_episode",
    "net_pips_per_episode",
    "oldest_version_playing",
    *(f"share_{action.name.lower()}" for action in Action),
)


class EpisodeWindow:
    """Figures over the last episodes."""

    def __init__(self, num_episodes: int = WINDOW_EPISODES) -> None:
        self._episodes: deque[tuple[int, Episode]] = deque(maxlen=num_episodes)  # with its version

    def add(self, trajectory: Trajectory) -> None:
        """Add an episode; a full window drops its oldest one."""
        pips = [trade.pips for trade in trajectory.trades]
        episode = Episode.of(pips, trajectory.actions, trajectory.rewards)
        self._episodes.append((trajectory.checkpoint_version, episode))

    def metrics(self) -> dict[str, float]:
        """Figures by name; a figure that is undefined, such as a win rate without trades, is left out.

        Another thread may add episodes at the same time.
        """
        window = tuple(self._episodes)
        if not window:
            return {}
        figures = {
            **mean_figures([episode for _, episode in window]),
            "oldest_version_playing": float(min(version for version, _ in window)),
        }
        return {name: value for name, value in figures.items() if value is not None and isfinite(value)}
