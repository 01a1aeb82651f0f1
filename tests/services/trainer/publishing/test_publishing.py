"""Which versions are published, and to which version a diverged run rolls back."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.trainer.intake.journal import Journal
from services.trainer.publishing.metrics import TrainerMetrics
from services.trainer.publishing.publishing import Publisher
from services.trainer.training import Training
from shared.adapters.streams.bus import Bus
from shared.adapters.versions.store import CheckpointStore
from tests.services.trainer.runs import CONFIG, advance, new_training, trajectories

PLAYED = trajectories(20)


@pytest.fixture
def training() -> Training:
    return new_training(replace(CONFIG, trainer=replace(CONFIG.trainer, publish_every_episodes=4)))


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


@pytest.fixture
def publisher(tmp_path: Path, store: CheckpointStore, training: Training, bus: Bus) -> Iterator[Publisher]:
    journal = Journal(tmp_path / "journal")
    publisher = Publisher(store, journal, training, bus, TrainerMetrics())
    publisher.resume()
    yield publisher
    journal.close()


async def test_a_roll_back_without_progress_goes_to_the_version_before(
    publisher: Publisher, training: Training
) -> None:
    for updates in (5, 5):
        advance(training, PLAYED, updates)
        await publisher.write()
    assert publisher.version == 2
    advance(training, PLAYED, 1)
    versions = [publisher.roll_back() for _ in range(4)]  # without an update between them
    assert versions == [2, 1, 0, 2]
    advance(training, PLAYED, 1)  # an update follows version 2
    assert publisher.roll_back() == 2


async def test_weights_whose_last_update_was_skipped_are_not_published(
    publisher: Publisher, training: Training, store: CheckpointStore
) -> None:
    advance(training, PLAYED, 20)
    due, versions = [], []
    for skipped in (3, 0):
        training.learner.counters.skipped_in_a_row = skipped
        due.append(publisher.is_due)
        await publisher.publish_last(patience_seconds=1.0)
        versions.append(store.versions())
    assert due == [False, True]
    assert versions == [[0], [0, 1]]
