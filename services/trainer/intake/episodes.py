"""How self-play traded lately: what tells a run that learns from one that collapsed."""

from collections import deque
from dataclasses import dataclass
from math import isfinite

import numpy as np

from shared.agent.trajectory import Trajectory
from shared.environment.action import NUM_ACTIONS, Action
from shared.metrics.trades import expectancy, win_rate
from shared.numeric import Float64, Int64

#: Episodes that the figures are taken over.
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


@dataclass(frozen=True)
class _Episode:
    pips: Float64  # [trades] net
    action_counts: Int64  # [4]
    reward: float
    version: int


class EpisodeWindow:
    """Figures over the last episodes."""

    def __init__(self, num_episodes: int = WINDOW_EPISODES) -> None:
        self._episodes: deque[_Episode] = deque(maxlen=num_episodes)

    def add(self, trajectory: Trajectory) -> None:
        """Count one episode in, and the oldest out."""
        self._episodes.append(
            _Episode(
                pips=np.array([trade.pips for trade in trajectory.trades], np.float64),
                action_counts=np.bincount(trajectory.actions, minlength=NUM_ACTIONS),
                reward=float(trajectory.rewards.sum(dtype=np.float64)),
                version=trajectory.checkpoint_version,
            )
        )

    def metrics(self) -> dict[str, float]:
        """Figures by name, all finite; one that is not defined, as a win rate without trades, is left out.

        Another thread may add an episode meanwhile.
        """
        episodes = tuple(self._episodes)
        if not episodes:
            return {}
        pips = np.concatenate([episode.pips for episode in episodes])
        counts = np.sum([episode.action_counts for episode in episodes], axis=0)
        shares = counts / counts.sum()
        figures = {
            "expectancy_pips": expectancy(pips),
            "win_rate": win_rate(pips),
            "trade_ratio": float(1.0 - shares[Action.HOLD]),
            "trades_per_episode": len(pips) / len(episodes),
            "reward_per_episode": float(np.mean([episode.reward for episode in episodes])),
            "net_pips_per_episode": float(pips.sum() / len(episodes)),
            "oldest_version_playing": float(min(episode.version for episode in episodes)),
            **{f"share_{action.name.lower()}": float(shares[action]) for action in Action},
        }
        return {name: value for name, value in figures.items() if value is not None and isfinite(value)}
