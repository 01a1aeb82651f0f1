"""Only self-play is random, with the configured distribution."""

import numpy as np
import pytest

from shared.agent.exploration import Exploration, LaneDraws
from shared.agent.rollout import play
from shared.agent.trajectory import Trajectory
from shared.environment.environment import EnvironmentConfig
from shared.numeric import Int64
from shared.search.config import SearchConfig, Selection
from tests.shared.agent.markets import small_agent, small_market

STARTS = np.array([200, 700])


def _played(selection: Selection, seeds: Int64, exploration: Exploration | None) -> tuple[Trajectory, ...]:
    *_, finished = play(
        small_agent(),
        small_market(),
        STARTS,
        EnvironmentConfig(session_bars=20),
        SearchConfig(selection),
        seeds=seeds,
        exploration=exploration,
    )
    return finished


@pytest.mark.parametrize("selection", list(Selection))
def test_the_seed_changes_only_self_play(selection: Selection) -> None:
    """Evaluation has no exploration, so every seed gives the same bits."""
    first, second = (_played(selection, np.array(seeds), None) for seeds in ([1, 2], [3, 4]))
    for lane in range(len(STARTS)):
        for name in ("actions", "rewards", "policies", "values"):
            assert getattr(first[lane], name).tobytes() == getattr(second[lane], name).tobytes(), name
    first, second = (_played(selection, np.array(seeds), Exploration()) for seeds in ([1, 2], [3, 4]))
    assert (first[0].actions != second[0].actions).any()


@pytest.mark.parametrize("alpha", [0.3, 1.0, 5.0])
def test_normalised_gamma_draws_have_a_dirichlet_distribution(alpha: float) -> None:
    """Dirichlet(α) over A actions: mean 1/A, variance (1/A)(1 - 1/A)/(Aα + 1)."""
    draws = LaneDraws.draw(Exploration(), np.arange(20), 1000, 4, alpha)
    shares = draws.gamma / draws.gamma.sum(axis=2, keepdims=True)
    variance = 0.25 * 0.75 / (4 * alpha + 1)
    np.testing.assert_allclose(shares.mean(axis=(0, 1)), 0.25, atol=4 * np.sqrt(variance / 20_000))
    np.testing.assert_allclose(shares.var(axis=(0, 1)), variance, rtol=0.05)
