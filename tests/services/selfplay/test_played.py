"""Files of episodes: trajectories are read back completely, and SQL finds every decision."""

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from services.selfplay.config import SelfPlayConfig
from services.selfplay.picture import draw_episode
from services.selfplay.played import PlayedEpisode, read_episode, refuse_to_replace, write_episodes
from services.selfplay.settings import SelfPlaySettings
from services.selfplay.worker import SelfPlayWorker
from shared.adapters.tables.dataset import Dataset, build_dataset, export_features
from shared.environment.environment import EnvironmentConfig, Prices
from shared.errors import DataError
from shared.market.session import Split
from shared.market.synthetic import Market, synthesize
from shared.search.config import SearchConfig, Selection
from tests.shared.agent.markets import small_agent
from tests.shared.messages.trajectories import same

STEPS = 50
SETTINGS = SelfPlaySettings(
    selfplay=SelfPlayConfig(lanes=2),
    environment=EnvironmentConfig(session_bars=STEPS),
    search=SearchConfig(Selection.PUCT),
)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return build_dataset(synthesize(Market.OU, 3_000, seed=1), "synthetic ou")


def play(dataset: Dataset, count: int) -> list[PlayedEpisode]:
    worker = SelfPlayWorker.of("tester", dataset, SETTINGS, np.random.default_rng(5))
    decisions: list[int] = []
    played = worker.episodes(small_agent(), 0, count, decisions.append)
    assert sum(decisions) == count * STEPS
    prices = Prices.of(dataset.bars)
    return [PlayedEpisode.of(one, dataset.bars, prices, SETTINGS.environment) for one in played]


@pytest.fixture(scope="module")
def episodes(dataset: Dataset) -> list[PlayedEpisode]:
    return play(dataset, 3)


@pytest.fixture(scope="module")
def path(episodes: list[PlayedEpisode], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("played") / "episodes.parquet"
    write_episodes(path, episodes)
    return path


def test_the_requested_number_of_sessions_is_played_and_repeats_with_the_same_seed(
    dataset: Dataset, episodes: list[PlayedEpisode]
) -> None:
    """Three sessions of the train split, in batches of two."""
    assert len(episodes) == 3
    starts = {episode.trajectory.start_bar for episode in episodes}
    assert starts <= set(dataset.sessions.every(Split.TRAIN).tolist())
    again = play(dataset, 3)
    assert all(same(a.trajectory, b.trajectory) for a, b in zip(again, episodes, strict=True))


def test_every_trajectory_is_read_back_completely(path: Path, episodes: list[PlayedEpisode]) -> None:
    assert sum(len(episode.trajectory.trades) for episode in episodes) > 3
    for number, episode in enumerate(episodes):
        read = read_episode(path, number)
        assert same(read.trajectory, episode.trajectory)
        assert read.instrument == "GBP_JPY"
        for name in ("time_s", "close", "pnl"):
            np.testing.assert_array_equal(getattr(read, name), getattr(episode, name))


def rows_of(query: str) -> list[Any]:
    with duckdb.connect() as connection:
        return connection.execute(query).fetchall()


def test_the_rows_of_a_file_join_the_features_of_the_data_set(
    path: Path, dataset: Dataset, tmp_path: Path
) -> None:
    """The query is the SQL that a user would run on the exported features."""
    export_features(dataset, tmp_path / "features.parquet")
    query = f"""
        SELECT count(*), count(*) FILTER (played.time = features.time) FROM '{path}' AS played
        JOIN '{tmp_path / "features.parquet"}' AS features USING (bar_index)
    """
    assert rows_of(query) == [(3 * STEPS, 3 * STEPS)]
    rewards = f"SELECT episode, sum(reward_pips) FROM '{path}' GROUP BY episode ORDER BY episode"
    sums = [float(read_episode(path, number).trajectory.rewards.sum()) for number in range(3)]
    assert [row[1] for row in rows_of(rewards)] == pytest.approx(sums, rel=1e-4)


def test_a_trade_is_in_the_row_that_closed_it_with_its_profit_after_costs(path: Path) -> None:
    closed = rows_of(f"""
        SELECT action, step, bar_index, trade_exit_bar, pnl_pips, trade_pips, position_side, trade_side,
            trade_exit_price, trade_entry_price FROM '{path}' WHERE trade_side IS NOT NULL
    """)
    assert len(closed) > 3
    for action, step, bar, exit_bar, _, pips, side, name, exit_price, entry_price in closed:
        assert action == "CLOSE" or step == STEPS - 1
        assert exit_bar == bar + 1
        sign = {"LONG": 1, "SHORT": -1}[name]
        assert side == sign or (side == 0 and step == STEPS - 1)
        assert pips == pytest.approx(sign * (exit_price - entry_price) / 0.01 - 4.0, abs=1e-6)


def test_the_profit_of_an_open_position_is_measured_from_its_entry(
    path: Path, episodes: list[PlayedEpisode]
) -> None:
    held = 0
    for number in range(len(episodes)):
        episode = read_episode(path, number)
        for trade in episode.trajectory.trades:
            first, last = trade.entry_bar, trade.exit_bar - 1  # closes while it was open
            rows = slice(first - episode.trajectory.start_bar, last - episode.trajectory.start_bar + 1)
            worth = int(trade.side) * (episode.close[rows] - trade.entry_price) / 0.01 - 4.0
            np.testing.assert_allclose(episode.pnl[rows], worth, atol=1e-6)
            held += len(worth)
    assert held == sum((read_episode(path, n).trajectory.static[:, 0] != 0).sum() for n in range(3))


def test_an_existing_file_is_not_replaced(path: Path, episodes: list[PlayedEpisode], tmp_path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"exists: choose another name"):
        write_episodes(path, episodes)
    assert path.read_bytes() == before
    link = tmp_path / "link.parquet"
    link.symlink_to("target.parquet")
    write_episodes(link, episodes)
    assert link.is_symlink()
    assert len(read_episode(tmp_path / "target.parquet", 0).close)
    with pytest.raises(DataError, match="folder that exists"):
        refuse_to_replace(tmp_path / "absent" / "file.parquet")


def test_a_missing_episode_or_a_file_without_episodes_is_refused(
    path: Path, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no episode 3: expected 0 to 2"):
        read_episode(path, 3)
    with pytest.raises(DataError, match="no such file"):
        read_episode(tmp_path / "absent", 0)
    (tmp_path / "text").write_text("no Parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_episode(tmp_path / "text", 0)
    export_features(dataset, tmp_path / "features.parquet")
    with pytest.raises(DataError, match="expected a file of episodes"):
        read_episode(tmp_path / "features.parquet", 0)


def test_an_episode_is_drawn(path: Path, tmp_path: Path) -> None:
    import matplotlib.image

    draw_episode(read_episode(path, 0), tmp_path / "episode.png")
    draw_episode(read_episode(path, 1), tmp_path / "other.png")
    one, other = (matplotlib.image.imread(tmp_path / name) for name in ("episode.png", "other.png"))
    assert one.shape == other.shape == (1210, 1430, 4)
    assert (one != other).any()
