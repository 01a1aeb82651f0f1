"""How self-play episodes were traded: figures of one episode, and means over several."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.environment.action import NUM_ACTIONS, Action
from shared.metrics.trades import expectancy, win_rate
from shared.numeric import Float32, Float64, Int8, Int64


@dataclass(frozen=True)
class Episode:
    """The data from which the figures of an episode are computed."""

    pips: Float64  # [trades] net
    action_counts: Int64  # [4] steps with each action
    reward: float  # sum over the steps, in pips

    @classmethod
    def of(cls, pips: Sequence[float], actions: Int8, rewards: Float32) -> "Episode":
        """Summarise an episode of T steps.

        Args:
            pips: net result of each trade.
            actions: `[T]` action of each step, an `Action`.
            rewards: `[T]` reward of each step, in pips.
        """
        return cls(
            pips=np.array(pips, np.float64),
            action_counts=np.bincount(actions, minlength=NUM_ACTIONS),
            reward=float(rewards.sum(dtype=np.float64)),
        )


def episode_figures(episode: Episode) -> dict[str, int | float | None]:
    """Figures of one episode by name; expectancy and win rate are None without trades."""
    pips = episode.pips
    return {
        "reward": episode.reward,
        "trades": len(pips),
        "wins": int((pips > 0.0).sum()),
        "pips": float(pips.sum()),
        **_trading_figures(pips, episode.action_counts),
    }


def mean_figures(episodes: Sequence[Episode]) -> dict[str, float | None]:
    """Figures of one or more episodes by name; expectancy and win rate are None without trades."""
    pips = np.concatenate([episode.pips for episode in episodes])
    return {
        **_trading_figures(pips, np.sum([episode.action_counts for episode in episodes], axis=0)),
        "trades_per_episode": len(pips) / len(episodes),
        "reward_per_episode": float(np.mean([episode.reward for episode in episodes])),
        "net_pips_per_episode": float(pips.sum() / len(episodes)),
    }


def _trading_figures(pips: Float64, action_counts: Int64) -> dict[str, float | None]:
    """Figures that have the same meaning for one episode and for several."""
    shares = action_counts / max(action_counts.sum(), 1)
    return {
        "expectancy_pips": expectancy(pips),
        "win_rate": win_rate(pips),
        "trade_ratio": float(1.0 - shares[Action.HOLD]),
        **{f"share_{action.name.lower()}": float(shares[action]) for action in Action},
    }
