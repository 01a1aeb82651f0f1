"""A trajectory accepts every number that a session can give, and no other."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.agent.trajectory import MAX_PIPS, SUM_TOLERANCE
from shared.environment.action import LEGAL, Action
from shared.errors import DataError, ShapeError
from tests.shared.messages.trajectories import random_trajectory


@given(side=st.integers(-1, 1), action=st.sampled_from(list(Action)), at=st.integers(0, 11))
def test_an_action_is_accepted_only_if_the_position_allows_it(side: int, action: Action, at: int) -> None:
    trajectory = random_trajectory(1)
    static, actions = trajectory.static.copy(), trajectory.actions.copy()
    policies = trajectory.policies.copy()
    static[at], actions[at], policies[at] = [side, *[0.0] * 5], action, [1.0, 0.0, 0.0, 0.0]
    if LEGAL[side + 1, action]:
        replace(trajectory, static=static, actions=actions, policies=policies)
        policies[at] = np.eye(4)[action]
        replace(trajectory, static=static, actions=actions, policies=policies)
        return
    with pytest.raises(DataError, match=rf"actions\[{at}\] is {action:d}, expected 0 HOLD or "):
        replace(trajectory, static=static, actions=actions, policies=policies)
    actions[at], policies[at] = Action.HOLD, 0.75 * policies[at] + 0.25 * np.eye(4)[action]
    with pytest.raises(DataError, match=rf"policies\[{at}, {action:d}\] is 0.25, expected 0 for an action"):
        replace(trajectory, static=static, actions=actions, policies=policies)


def test_rounding_errors_are_accepted() -> None:
    trajectory = random_trajectory(1)
    static = trajectory.static.copy()
    static[3, 1:] = np.tanh(np.array([-1e6, 1e6, 1e6, 1e6, 1e6])).astype(np.float32)
    for scale in (1.0 - 0.9 * SUM_TOLERANCE, 1.0 + 0.9 * SUM_TOLERANCE):
        policies = (scale * trajectory.policies).astype(np.float32)
        replace(trajectory, static=static, policies=policies)
    with pytest.raises(DataError, match=r"outcome_probabilities\[0\] sums to 1.002, expected 1 within 0.001"):
        replace(
            trajectory,
            outcome_probabilities=(1.002 * trajectory.outcome_probabilities).astype(np.float32),
        )


@pytest.mark.parametrize("name", ["rewards", "values"])
def test_the_largest_number_of_pips_is_accepted_and_the_next_refused(name: str) -> None:
    trajectory = random_trajectory(1)
    column = getattr(trajectory, name).copy()
    for most, beyond in ((MAX_PIPS, np.inf), (-MAX_PIPS, -np.inf)):
        column[5] = most
        replace(trajectory, **{name: column})
        column[5] = np.nextafter(np.float32(most), np.float32(beyond))
        with pytest.raises(DataError, match=rf"{name}\[5\] is -?1e\+09, expected -1e\+09 to 1e\+09"):
            replace(trajectory, **{name: column})


def test_arrays_of_another_shape_or_type_are_refused() -> None:
    trajectory = random_trajectory(1)
    with pytest.raises(ShapeError, match="static"):
        replace(trajectory, static=trajectory.static[:, :5])
    with pytest.raises(ShapeError, match="actions is int64, expected int8"):
        replace(trajectory, actions=trajectory.actions.astype(np.int64))


def test_a_trajectory_without_steps_is_refused() -> None:
    trajectory = random_trajectory(1)
    arrays = ("static", "actions", "rewards", "policies", "values", "outcomes", "outcome_probabilities")
    with pytest.raises(DataError, match="no steps, expected at least 1"):
        replace(trajectory, **{name: getattr(trajectory, name)[:0] for name in arrays})
