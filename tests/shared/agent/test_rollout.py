"""Complete sessions: the trajectories record each lane correctly."""

from dataclasses import replace
from itertools import islice
from uuid import uuid4

import numpy as np
import pytest

from shared.agent.decide import decide
from shared.agent.embeddings import EmbeddingCache
from shared.agent.exploration import Exploration
from shared.agent.rollout import play
from shared.agent.trajectory import Trajectory
from shared.environment.action import LEGAL
from shared.environment.environment import EnvironmentConfig
from shared.environment.episode import replay
from shared.errors import DataError, ShapeError
from shared.features.window import windows
from shared.search.config import SearchConfig, Selection
from tests.shared.agent.markets import small_agent, small_market

ENVIRONMENT = EnvironmentConfig(session_bars=60)
STARTS = np.array([200, 215, 700, 1399])
SEEDS = np.array([5, 6, 7, 8])
ARRAYS = ("static", "actions", "rewards", "policies", "values", "outcomes", "outcome_probabilities")


def _played(
    lanes: slice = slice(None),
    exploration: Exploration | None = None,
    search: SearchConfig = SearchConfig(),  # noqa: B008 (frozen)
) -> tuple[Trajectory, ...]:
    steps = list(
        play(
            small_agent(),
            small_market(),
            STARTS[lanes],
            ENVIRONMENT,
            search,
            seeds=SEEDS[lanes],
            exploration=exploration,
            worker="selfplay-1",
        )
    )
    assert len(steps) == 60
    assert not any(steps[:-1])
    return steps[-1]


EXPLORING = pytest.mark.parametrize(
    ("exploration", "search"),
    [
        (None, SearchConfig()),
        (Exploration(), SearchConfig()),
        (Exploration(1.0, epsilon=0.2), SearchConfig(Selection.PUCT)),
    ],
)


@EXPLORING
def test_the_record_matches_a_replay_of_the_actions_in_the_environment(
    exploration: Exploration | None, search: SearchConfig
) -> None:
    market = small_market()
    for lane, trajectory in enumerate(_played(exploration=exploration, search=search)):
        assert (trajectory.worker, trajectory.checkpoint_version) == ("selfplay-1", 7)
        assert (trajectory.start_bar, trajectory.seed) == (STARTS[lane], SEEDS[lane])
        assert trajectory.dataset == market.fingerprint
        episode = replay(trajectory.start_bar, trajectory.actions.tolist(), market.prices, ENVIRONMENT)
        np.testing.assert_array_equal(trajectory.rewards, episode.rewards)
        np.testing.assert_array_equal(trajectory.static, episode.static)
        assert trajectory.trades == episode.trades
        assert trajectory.trades
        np.testing.assert_array_equal(trajectory.outcomes, market.outcomes[episode.bars])
        legal = LEGAL[trajectory.static[:, 0].astype(int) + 1]
        assert not trajectory.policies[~legal].any()


@EXPLORING
def test_a_lane_has_the_same_trajectory_in_any_batch(
    exploration: Exploration | None, search: SearchConfig
) -> None:
    together = _played(exploration=exploration, search=search)
    (alone,) = _played(slice(2, 3), exploration, search)
    assert alone.trajectory_id == together[2].trajectory_id
    assert alone.trades == together[2].trades
    for name in ARRAYS:
        assert getattr(alone, name).tobytes() == getattr(together[2], name).tobytes(), name


@EXPLORING
@pytest.mark.parametrize("rows_kept", [0, 70, 5_000])
def test_cached_embeddings_do_not_change_the_result(
    exploration: Exploration | None, search: SearchConfig, rows_kept: int
) -> None:
    """Overlapping and repeated sessions with a cache for none, some or all of their bars."""
    agent, market = small_agent(), small_market()
    cache = EmbeddingCache(rows_kept * 4 * agent.config.temporal_channels)
    for starts in (STARTS, STARTS[::-1], STARTS - 20):
        kept, fresh = (
            list(
                play(
                    agent,
                    market,
                    starts,
                    ENVIRONMENT,
                    search,
                    seeds=SEEDS,
                    exploration=exploration,
                    embeddings=embeddings,
                )
            )[-1]
            for embeddings in (cache, None)
        )
        for one, other in zip(kept, fresh, strict=True):
            assert one.trades == other.trades
            for name in ARRAYS:
                assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name


def test_a_decision_in_a_session_equals_that_of_inference() -> None:
    agent, market = small_agent(), small_market()
    trajectory = _played()[0]
    for step in range(0, 60, 7):
        window = windows(market.features, np.array([trajectory.start_bar + step]))
        alone = decide(agent, agent.embed_windows(window), trajectory.static[step : step + 1], SearchConfig())
        assert alone.actions[0] == trajectory.actions[step]
        np.testing.assert_allclose(alone.policies[0], trajectory.policies[step], atol=1e-3)


def test_exploration_changes_the_actions_and_the_seed_determines_them() -> None:
    exploration = Exploration()
    first, second, greedy = _played(exploration=exploration), _played(exploration=exploration), _played()
    np.testing.assert_array_equal(first[0].actions, second[0].actions)
    assert (first[0].actions != greedy[0].actions).any()
    assert len({trajectory.trajectory_id for trajectory in first}) == 4


def test_a_rollout_can_be_stopped_between_two_steps() -> None:
    game = play(small_agent(), small_market(), STARTS, ENVIRONMENT, SearchConfig(), seeds=SEEDS)
    assert list(islice(game, 3)) == [(), (), ()]


def test_sessions_beyond_the_data_are_refused() -> None:
    market, agent = small_market(), small_agent()
    for start, reason in ((30, "needs bars -1..90"), (1440, r"needs bars 1409\.\.1500"), (140, "not finite")):
        with pytest.raises(DataError, match=reason):
            next(play(agent, market, np.array([start]), ENVIRONMENT, SearchConfig(), seeds=SEEDS[:1]))
    unlabelled = replace(market, outcomes=np.full_like(market.outcomes, -1))
    with pytest.raises(DataError, match="from bar 200 has bars without an outcome"):
        next(play(agent, unlabelled, STARTS, ENVIRONMENT, SearchConfig(), seeds=SEEDS))
    with pytest.raises(ShapeError, match="seeds"):
        next(play(agent, market, STARTS, ENVIRONMENT, SearchConfig(), seeds=SEEDS[:2]))
    with pytest.raises(ShapeError, match="outcomes"):
        replace(market, outcomes=market.outcomes[1:])


def test_a_trajectory_with_impossible_numbers_is_refused() -> None:
    good = _played()[0]
    with pytest.raises(ShapeError, match="rewards"):
        replace(good, rewards=good.rewards[1:])
    with pytest.raises(ShapeError, match="values is float64, expected float32"):
        replace(good, values=good.values.astype(np.float64))
    with pytest.raises(DataError, match=r"values\[0\] is nan, expected -1e\+09 to 1e\+09"):
        replace(good, values=np.full_like(good.values, np.nan))
    with pytest.raises(DataError, match=r"outcomes\[0\] is \d, expected 0 to 2"):
        replace(good, outcomes=good.outcomes + np.int8(3), trajectory_id=uuid4())
