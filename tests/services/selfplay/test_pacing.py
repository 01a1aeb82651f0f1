"""When a worker waits, how its exploration decays, and how it keeps trajectories on disk."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.selfplay.config import SelfPlayConfig
from services.selfplay.exploration import exploration_at
from services.selfplay.pacing import Backlog
from services.selfplay.spool import Spool
from shared.errors import SettingsError
from tests.shared.messages.trajectories import random_trajectory, same


def test_a_worker_waits_from_the_high_water_mark_until_below_half_of_it() -> None:
    backlog = Backlog(high_water=10)
    waited = []
    for length in (0, 10, 11, 9, 5, 4, 6, 10, 11, 0):
        backlog = backlog.seen(length)
        waited.append(backlog.waiting)
    assert waited == [False, False, True, True, True, False, False, False, True, False]


@given(lengths=st.lists(st.integers(0, 100)), high_water=st.integers(1, 50))
def test_a_worker_never_waits_at_an_empty_stream_or_plays_above_the_mark(
    lengths: list[int], high_water: int
) -> None:
    backlog = Backlog(high_water)
    for length in lengths:
        backlog = backlog.seen(length)
        assert not (length == 0 and backlog.waiting)
        assert not (length > high_water and not backlog.waiting)


@pytest.mark.parametrize(
    ("episode", "temperature"), [(0, 1.0), (5_000, 0.875), (10_000, 0.75), (20_000, 0.5), (900_000, 0.5)]
)
def test_the_temperature_falls_to_a_half_over_20_000_episodes(episode: int, temperature: float) -> None:
    exploration = exploration_at(episode, SelfPlayConfig())
    assert exploration.temperature == pytest.approx(temperature)
    assert exploration.epsilon == 0.2


@pytest.mark.parametrize(
    ("episode", "rate"), [(0, 0.1), (500, 0.075), (1_000, 0.05), (2_000, 0.0), (900_000, 0.0)]
)
def test_the_excursion_rate_decays_if_it_has_an_end_value(episode: int, rate: float) -> None:
    falling = SelfPlayConfig(excursion_rate=0.1, excursion_rate_end=0.0, excursion_episodes=2_000)
    assert exploration_at(episode, falling).excursion_rate == pytest.approx(rate)
    assert exploration_at(episode, replace(falling, excursion_rate_end=None)).excursion_rate == 0.1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lanes", 0),
        ("high_water", 0),
        ("embedding_megabytes", -1),
        ("epsilon", 1.5),
        ("excursion_rate_end", -0.1),
        ("excursion_episodes", 0),
        ("temperature_end", float("nan")),
    ],
)
def test_an_error_names_a_number_that_is_out_of_range(field: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"selfplay.{field} is {value}"):
        SelfPlayConfig(**{field: value})  # type: ignore[arg-type]


def test_the_spool_keeps_trajectories_until_they_are_sent(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "unsent")
    assert spool.files() == []
    made = {str(t.trajectory_id): t for t in (random_trajectory(1), random_trajectory(2))}
    assert spool.write(made.values()) == []
    files = spool.files()
    assert sorted(path.stem for path in files) == sorted(made)
    for path in files:
        read = spool.read(path)
        assert read is not None
        assert same(read, made[path.stem])
    spool.remove(files[0])
    assert spool.read(files[0]) is None  # another worker sent it meanwhile
    files[1].write_bytes(files[1].read_bytes()[:-5])
    assert spool.read(files[1]) is None
    assert spool.files() == files[1:]  # an unreadable file is kept


def test_an_error_names_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    taken = tmp_path / "unsent"
    taken.write_text("a file where the folder should be")
    with pytest.raises(SettingsError, match=rf"MM_HOME: {taken} cannot be written: File exists"):
        Spool(taken).prove_writable()


def test_checking_that_a_folder_is_writable_leaves_nothing_in_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "home" / "unsent")
    spool.prove_writable()
    assert list(spool.folder.iterdir()) == []


def test_the_spool_returns_an_error_for_each_trajectory_that_it_cannot_write(tmp_path: Path) -> None:
    """A folder has the name of the second file; the first and third trajectory are kept."""
    spool = Spool(tmp_path / "unsent")
    first, second, third = (random_trajectory(seed) for seed in (1, 2, 3))
    (spool.folder / f"{second.trajectory_id}.trajectory").mkdir(parents=True)
    (refused,) = spool.write([first, second, third])
    assert refused.strerror == "Is a directory"
    kept = {path.stem for path in spool.files() if path.is_file()}
    assert kept == {str(first.trajectory_id), str(third.trajectory_id)}
