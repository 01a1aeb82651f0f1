"""What the trainer measures, against the batch that was learned from."""

import pytest

from services.trainer.episodes import WINDOW_FIGURES, EpisodeWindow
from services.trainer.learner import UpdateStatistics
from services.trainer.metrics import UPDATE_FIGURES
from services.trainer.steps import Steps
from services.trainer.views import Views
from shared.environment.action import NUM_ACTIONS
from tests.services.trainer.runs import new_training, trajectories


def test_the_age_told_is_that_of_the_batch_that_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    training = new_training()
    drawn: list[Steps] = []
    update = training.learner.update

    def watched(steps: Steps, views: Views) -> UpdateStatistics:
        drawn.append(steps)
        return update(steps, views)

    monkeypatch.setattr(training.learner, "update", watched)
    told = []
    for trajectory in trajectories(12):
        training.insert(trajectory)
        while training.may_update:
            newest = training.position - 1
            training.update()
            told.append(training.replay_age)
            ages = [newest - position for position in drawn[-1].positions.tolist()]
            assert told[-1] == pytest.approx(sum(ages) / len(ages))
    assert len(told) > 10
    assert max(told) > 3.0


def test_every_figure_has_one_name_that_is_announced() -> None:
    assert len(set(UPDATE_FIGURES)) == len(UPDATE_FIGURES)
    assert {"policy_loss", "value_loss", "reward_loss", "outcome_loss", "gradient_norm"} < set(UPDATE_FIGURES)
    window = EpisodeWindow()
    for trajectory in trajectories(6):
        window.add(trajectory)
    figures = window.metrics()
    assert set(figures) == set(WINDOW_FIGURES)
    assert sum(name.startswith("share_") for name in figures) == NUM_ACTIONS
