"""Figures of one and of several episodes, worked by hand."""

import numpy as np
import pytest

from shared.metrics.episodes import Episode, episode_figures, mean_figures

TRADED = Episode.of(
    [6.0, -4.0, 0.0, 2.0],
    actions=np.array([0, 1, 0, 3, 2, 0, 3, 0], np.int8),
    rewards=np.array([0, 0, 0, 6.5, 0, 0, -4.25, 0], np.float32),
)
IDLE = Episode.of([], actions=np.zeros(8, np.int8), rewards=np.full(8, -0.5, np.float32))


def test_figures_of_an_episode_equal_those_worked_by_hand() -> None:
    assert episode_figures(TRADED) == {
        "reward": 2.25,
        "trades": 4,
        "wins": 2,
        "pips": 4.0,
        "expectancy_pips": 1.0,
        "win_rate": 0.5,
        "trade_ratio": 0.5,
        "share_hold": 0.5,
        "share_buy": 0.125,
        "share_sell": 0.125,
        "share_close": 0.25,
    }


def test_an_episode_without_trades_has_no_expectancy_and_no_win_rate() -> None:
    figures = episode_figures(IDLE)
    assert (figures["trades"], figures["pips"], figures["trade_ratio"]) == (0, 0.0, 0.0)
    assert (figures["expectancy_pips"], figures["win_rate"]) == (None, None)


def test_means_over_episodes_equal_those_worked_by_hand() -> None:
    assert mean_figures([TRADED, IDLE]) == pytest.approx(
        {
            "expectancy_pips": 1.0,
            "win_rate": 0.5,
            "trade_ratio": 0.25,
            "share_hold": 0.75,
            "share_buy": 0.0625,
            "share_sell": 0.0625,
            "share_close": 0.125,
            "trades_per_episode": 2.0,
            "reward_per_episode": -0.875,
            "net_pips_per_episode": 2.0,
        }
    )


def test_means_over_the_same_episode_twice_are_its_own_figures() -> None:
    one, twice = episode_figures(TRADED), mean_figures([TRADED, TRADED])
    shared = one.keys() & twice.keys()
    assert len(shared) == 7
    assert {name: twice[name] for name in shared} == {name: one[name] for name in shared}
