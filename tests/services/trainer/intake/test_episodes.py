"""Figures over the last episodes: worked by hand, always finite, and computed during additions."""

import math
from dataclasses import replace

import numpy as np
import pytest

from services.trainer.intake.episodes import WINDOW_EPISODES, EpisodeWindow
from shared.agent.trajectory import MAX_PIPS, Trajectory
from shared.environment.action import Side
from shared.environment.trade import Trade
from shared.messages.schemas import MAX_COUNT, CheckpointPublished
from tests.shared.messages.trajectories import random_trajectory


def episode(rewards: float, *pips: float, version: int = 3, num_steps: int = 10) -> Trajectory:
    """All steps have the same reward; the first one buys and all others hold."""
    trajectory = random_trajectory(1, num_steps, version=version)
    static, actions = np.zeros_like(trajectory.static), np.zeros_like(trajectory.actions)
    actions[0] = 1
    return replace(
        trajectory,
        static=static,
        actions=actions,
        policies=np.tile(np.array([0.5, 0.25, 0.25, 0.0], np.float32), (num_steps, 1)),
        rewards=np.full(num_steps, rewards, np.float32),
        trades=tuple(Trade(201, 204, Side.LONG, 185.0, 185.0, one, 0.0, 3) for one in pips),
    )


def test_figures_equal_those_worked_by_hand() -> None:
    window = EpisodeWindow()
    window.add(episode(0.5, 6.0, -2.0, version=4))
    window.add(episode(-0.25, 2.0, version=5))
    assert window.metrics() == pytest.approx(
        {
            "expectancy_pips": 2.0,
            "win_rate": 2 / 3,
            "trade_ratio": 0.1,
            "trades_per_episode": 1.5,
            "reward_per_episode": 1.25,
            "net_pips_per_episode": 3.0,
            "oldest_version_playing": 4.0,
            "share_hold": 0.9,
            "share_buy": 0.1,
            "share_sell": 0.0,
            "share_close": 0.0,
        }
    )


def test_an_empty_window_has_no_figures_and_one_without_trades_no_expectancy() -> None:
    window = EpisodeWindow()
    assert window.metrics() == {}
    window.add(episode(0.0))
    assert {"expectancy_pips", "win_rate"}.isdisjoint(window.metrics())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_figures_of_the_largest_accepted_values_can_be_announced(sign: float) -> None:
    most = sign * MAX_PIPS
    window = EpisodeWindow()
    for _ in range(WINDOW_EPISODES):
        window.add(episode(most, *[most] * 300, version=MAX_COUNT, num_steps=360))
    figures = window.metrics()
    assert figures["expectancy_pips"] == most
    assert figures["reward_per_episode"] == 360 * most
    announced = CheckpointPublished(
        version=1, episode=1, update=1, weights_sha256="0" * 64, metrics=window.metrics()
    )
    assert announced.metrics == figures


def test_a_figure_that_is_not_finite_is_left_out() -> None:
    """No message can contain such a trade, but a trajectory object can."""
    window = EpisodeWindow()
    window.add(episode(1.0, math.inf, 1.0))
    figures = window.metrics()
    assert {"expectancy_pips", "net_pips_per_episode"}.isdisjoint(figures)
    assert (figures["win_rate"], figures["reward_per_episode"]) == (1.0, 10.0)


def test_figures_can_be_computed_while_episodes_are_added() -> None:
    window = EpisodeWindow(4)

    class AddsWhenCompared(int):
        """A version; comparing two of them adds another episode."""

        def __lt__(self, other: int) -> bool:
            window.add(episode(2.0))
            return super().__lt__(other)

    for _ in range(4):
        window.add(episode(0.5, version=AddsWhenCompared(3)))
    before = window.metrics()  # of the four
    assert before["reward_per_episode"] == 5.0
    assert window.metrics()["reward_per_episode"] > 5.0
