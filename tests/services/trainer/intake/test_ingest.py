"""Which trajectories are unusable, and which are stale."""

from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.config import TrainerConfig
from services.trainer.intake.ingest import CheckedBatch, stale_among
from services.trainer.settings import TrainerSettings
from shared.adapters.streams.entries import Batch, Entry
from shared.adapters.tables.dataset import Dataset
from shared.errors import SettingsError
from shared.messages.codec import encode, encode_trajectory
from shared.messages.schemas import TrajectoryFinished
from shared.messages.streams import TRAJECTORIES
from shared.runtime.settings import load
from tests.shared.messages.absurd import ABSURD_ARRAYS, with_changes
from tests.shared.messages.trajectories import random_trajectory


async def acknowledged() -> None:
    """An acknowledgement that does nothing."""


def entry(number: int, fields: dict[str, bytes]) -> Entry[TrajectoryFinished]:
    """An entry as read from the stream."""
    return Entry.of(TRAJECTORIES, (f"{number}-0".encode(), {k.encode(): v for k, v in fields.items()}))


def test_impossible_trajectories_are_unusable_with_a_reason_and_others_are_accepted(
    saved_dataset: tuple[Path, Dataset],
) -> None:
    dataset = saved_dataset[1]
    good = random_trajectory(1, start_bar=500, dataset=dataset.fingerprint)
    kinds = list(ABSURD_ARRAYS.values())
    entries = [entry(n, with_changes(good, changes)) for n, (changes, _) in enumerate(kinds)]
    entries.append(entry(len(kinds), encode(*encode_trajectory(good))))
    checked = CheckedBatch.of(Batch(entries, acknowledged), dataset)
    assert list(checked.usable) == [f"{len(kinds)}-0"]
    for number, (_, reason) in enumerate(kinds):
        assert reason in checked.unusable[f"{number}-0"]


def is_stale(version: int, *, newest: int, limit: int | None, journalled: bool = False) -> bool:
    trajectory = random_trajectory(1, version=version)
    known = {trajectory.trajectory_id} if journalled else set()
    stale = stale_among([trajectory], newest=newest, max_version_lag=limit, journalled=known)
    assert set(stale) <= {trajectory.trajectory_id}
    return bool(stale)


def test_a_lag_equal_to_the_limit_is_accepted_and_one_more_is_not() -> None:
    assert not is_stale(7, newest=10, limit=3)
    assert is_stale(6, newest=10, limit=3)
    assert not is_stale(10, newest=10, limit=0)
    assert is_stale(9, newest=10, limit=0)


def test_without_a_limit_nothing_is_too_old() -> None:
    assert not is_stale(0, newest=1_000_000, limit=None)


def test_a_later_version_than_the_newest_is_accepted() -> None:
    """It arrives after the trainer went back to an earlier checkpoint."""
    assert not is_stale(12, newest=5, limit=0)


def test_a_redelivery_of_a_journalled_trajectory_is_not_refused() -> None:
    assert is_stale(0, newest=10, limit=3)
    assert not is_stale(0, newest=10, limit=3, journalled=True)


def test_the_reason_names_both_versions_the_limit_and_its_setting() -> None:
    trajectory = random_trajectory(1, version=5)
    stale = stale_among([trajectory], newest=17, max_version_lag=8, journalled=())
    assert stale == {
        trajectory.trajectory_id: f"trajectory {trajectory.trajectory_id}: played by version 5, "
        "newest 17: a lag of 12; trainer.max_version_lag allows 8"
    }


@given(
    versions=st.lists(st.integers(0, 30), max_size=12),
    newest=st.integers(0, 30),
    limit=st.none() | st.integers(0, 30),
    known=st.sets(st.integers(0, 11)),
)
def test_stale_trajectories_are_those_outside_the_allowed_range_of_versions(
    versions: list[int], newest: int, limit: int | None, known: set[int]
) -> None:
    played = [random_trajectory(seed, version=version) for seed, version in enumerate(versions)]
    journalled = {played[number].trajectory_id for number in known if number < len(played)}
    allowed = range(0 if limit is None else newest - limit, 31)
    expected: set[UUID] = set()
    for trajectory in played:
        if trajectory.checkpoint_version not in allowed and trajectory.trajectory_id not in journalled:
            expected.add(trajectory.trajectory_id)
    assert set(stale_among(played, newest=newest, max_version_lag=limit, journalled=journalled)) == expected


def test_the_limit_is_a_setting_and_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(TrainerSettings).trainer.max_version_lag is None
    monkeypatch.setenv("MM_TRAINER__MAX_VERSION_LAG", "12")
    assert load(TrainerSettings).trainer.max_version_lag == 12
    assert TrainerConfig(max_version_lag=0).max_version_lag == 0
    with pytest.raises(SettingsError, match=r"trainer\.max_version_lag is -1, expected 0 or more"):
        TrainerConfig(max_version_lag=-1)
