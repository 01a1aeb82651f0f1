"""The trainer's figures, compared with the batch that was learned from."""

import math
from dataclasses import replace
from uuid import UUID

import pytest
from prometheus_client import REGISTRY

from services.trainer.intake.episodes import WINDOW_EPISODES, WINDOW_FIGURES, EpisodeWindow
from services.trainer.learning.learner import UpdateStatistics
from services.trainer.learning.views import Views
from services.trainer.publishing.metrics import UPDATE_FIGURES, TrainerMetrics
from services.trainer.replay.steps import Steps
from shared.environment.action import NUM_ACTIONS
from tests.services.trainer.runs import CONFIG, new_training, trajectories


def test_the_reported_replay_age_is_that_of_the_drawn_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    training = new_training()
    drawn: list[Steps] = []
    update = training.learner.update

    def watched(steps: Steps, views: Views) -> UpdateStatistics:
        drawn.append(steps)
        return update(steps, views)

    monkeypatch.setattr(training.learner, "update", watched)
    ages = []
    for trajectory in trajectories(12):
        training.insert(trajectory)
        while training.may_update:
            newest = training.position - 1
            training.update()
            ages.append(training.replay_age)
            of_batch = [newest - position for position in drawn[-1].positions.tolist()]
            assert ages[-1] == pytest.approx(sum(of_batch) / len(of_batch))
    assert len(ages) > 10
    assert max(ages) > 3.0


def test_steps_per_second_counts_the_steps_drawn_not_the_batch_size() -> None:
    """A batch of 16 steps in stretches of 10 is two stretches, of 20 steps or fewer."""
    training = new_training(replace(CONFIG, learner=replace(CONFIG.learner, stretch_steps=10)))
    metrics = TrainerMetrics()
    played = iter(trajectories(10))
    speeds = []
    for _ in range(8):
        while not training.may_update:
            training.insert(next(played))
        before = training.pacing.drawn
        metrics.updated(training, training.update(), seconds=0.5)
        speeds.append(metrics.figures(training)["steps_per_second"])
        assert speeds[-1] == 2 * (training.pacing.drawn - before)
    assert set(speeds) != {32.0}


def test_a_figure_that_is_no_longer_defined_is_exported_as_nan() -> None:
    """An episode with trades is followed by a full window of episodes without any."""
    training, metrics = new_training(), TrainerMetrics()
    traded = next(played for played in trajectories(10) if played.trades)
    training.insert(traded)
    metrics.export(training, 1)
    assert metrics.figures(training)["win_rate"] is not None
    assert not math.isnan(_exported("win_rate"))
    for number in range(WINDOW_EPISODES):
        training.insert(replace(traded, trajectory_id=UUID(int=number), trades=()))
    metrics.export(training, WINDOW_EPISODES + 1)
    assert metrics.figures(training)["win_rate"] is None
    assert math.isnan(_exported("win_rate"))
    assert _exported("trades_per_episode") == 0.0


def _exported(name: str) -> float:
    value = REGISTRY.get_sample_value("mm_trainer_figure", {"name": name})
    assert value is not None
    return value


def test_figure_names_are_unique_and_declared() -> None:
    assert len(set(UPDATE_FIGURES)) == len(UPDATE_FIGURES)
    assert {"policy_loss", "value_loss", "reward_loss", "outcome_loss", "gradient_norm"} < set(UPDATE_FIGURES)
    window = EpisodeWindow()
    for trajectory in trajectories(6):
        window.add(trajectory)
    figures = window.metrics()
    assert set(figures) == set(WINDOW_FIGURES)
    assert sum(name.startswith("share_") for name in figures) == NUM_ACTIONS
