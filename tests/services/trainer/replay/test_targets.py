"""Returns by hand and by oracle; unrolled steps never look past their trajectory's end."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.config import Shaping
from services.trainer.replay.targets import n_step_returns, shaped_rewards, unrolled_steps
from shared.errors import ShapeError
from shared.numeric import Float32
from tests.oracles.returns import n_step_return
from tests.shared.messages.trajectories import random_trajectory


def floats(*numbers: float) -> Float32:
    return np.array(numbers, np.float32)


REWARDS = floats(1, 0, -2, 4, 0, 8)
VALUES = floats(10, 20, 30, 40, 50, 60)


def test_an_ended_episode_bootstraps_inside_and_not_past_its_end() -> None:
    # γ = 1/2, n = 2: z_t = u_t + u_{t+1}/2 + v_{t+2}/4, and at the end only what is left of it.
    returns = n_step_returns(REWARDS, VALUES, discount=0.5, n=2)
    assert returns.tolist() == [
        1 + 0 / 2 + 30 / 4,
        0 - 2 / 2 + 40 / 4,
        -2 + 4 / 2 + 50 / 4,
        4 + 0 / 2 + 60 / 4,
        0 + 8 / 2 + 0 / 4,
        8,
    ]


def test_a_cut_episode_bootstraps_with_the_value_where_it_was_cut() -> None:
    returns = n_step_returns(REWARDS, VALUES, discount=0.5, n=2, final_value=70.0)
    assert returns.tolist()[:4] == n_step_returns(REWARDS, VALUES, discount=0.5, n=2).tolist()[:4]
    assert returns.tolist()[4:] == [0 + 8 / 2 + 70 / 4, 8 + 70 / 2]


def test_a_horizon_beyond_the_episode_is_the_discounted_sum_of_rewards() -> None:
    returns = n_step_returns(REWARDS, VALUES, discount=0.5, n=100)
    assert returns[0] == pytest.approx(1 + 0 - 2 / 4 + 4 / 8 + 0 + 8 / 32)


@given(
    pairs=st.lists(
        st.tuples(st.floats(-300, 300, width=32), st.floats(-300, 300, width=32)), min_size=1, max_size=30
    ),
    discount=st.floats(0.5, 1.0),
    n=st.integers(1, 40),
    final_value=st.floats(-100, 100),
)
def test_equals_the_formula(
    pairs: list[tuple[float, float]], discount: float, n: int, final_value: float
) -> None:
    rewards, values = (floats(*column) for column in zip(*pairs, strict=True))
    returns = n_step_returns(rewards, values, discount=discount, n=n, final_value=final_value)
    expected = [
        n_step_return(
            rewards.tolist(), values.tolist(), step, discount=discount, n=n, final_value=final_value
        )
        for step in range(len(rewards))
    ]
    np.testing.assert_allclose(returns, expected, rtol=1e-5, atol=1e-4)


def test_arrays_of_different_length_are_refused() -> None:
    with pytest.raises(ShapeError, match="root_values"):
        n_step_returns(REWARDS, VALUES[:5], discount=0.5, n=2)
    with pytest.raises(ShapeError, match="n is 0"):
        n_step_returns(REWARDS, VALUES, discount=0.5, n=0)


def test_every_step_carries_what_its_next_decisions_are_compared_with() -> None:
    trajectory = random_trajectory(1, num_steps=7, start_bar=300)
    steps = unrolled_steps(trajectory, 41, discount=0.9, n=3, unroll_steps=2)
    returns = n_step_returns(trajectory.rewards, trajectory.values, discount=0.9, n=3)
    assert len(steps) == 7
    assert steps.positions.tolist() == [41] * 7
    assert steps.bars.tolist() == [300, 301, 302, 303, 304, 305, 306]
    assert steps.lengths.tolist() == [3, 3, 3, 3, 3, 2, 1]
    for step in range(7):
        for k in range(int(steps.lengths[step])):
            assert steps.returns[step, k] == returns[step + k]
            assert np.array_equal(steps.policies[step, k], trajectory.policies[step + k])
            if k < 2:
                assert steps.actions[step, k] == trajectory.actions[step + k]
                assert steps.outcomes[step, k] == trajectory.outcomes[step + k]
                assert steps.rewards[step, k] == trajectory.rewards[step + k]
        assert np.array_equal(steps.static[step], trajectory.static[step])


def test_a_trajectory_shorter_than_the_unroll_still_teaches() -> None:
    steps = unrolled_steps(random_trajectory(1, num_steps=2), 0, discount=0.9, n=3, unroll_steps=5)
    assert steps.lengths.tolist() == [2, 1]


def test_a_sum_stops_where_a_later_decision_is_an_excursion() -> None:
    # γ = 1/2, n = 3, step 2 is cut: steps 0 and 1 bootstrap there; step 2's own decision is still followed.
    cuts = np.array([False, False, True, False, False, False])
    returns = n_step_returns(REWARDS, VALUES, discount=0.5, n=3, cuts=cuts)
    assert returns.tolist() == [
        1 + 0 / 2 + 30 / 4,
        0 + 30 / 2,
        -2 + 4 / 2 + 0 / 4 + 60 / 8,
        4 + 0 / 2 + 8 / 4 + 0,
        0 + 8 / 2,
        8,
    ]


def test_an_excursion_teaches_its_decision_and_not_its_state() -> None:
    trajectory = random_trajectory(2, num_steps=9)
    chosen = trajectory.policies[np.arange(9), trajectory.actions]
    floor = float(np.sort(chosen)[4])  # four decisions are less likely
    steps = unrolled_steps(trajectory, 0, discount=0.9, n=4, unroll_steps=1, trace_floor=floor)
    strayed = chosen < floor
    assert strayed.sum() == 4
    expected = n_step_returns(trajectory.rewards, trajectory.values, discount=0.9, n=4, cuts=strayed)
    np.testing.assert_array_equal(steps.decision_returns[:, 0], expected)
    np.testing.assert_array_equal(steps.returns[:, 0], np.where(strayed, trajectory.values, expected))


def test_shaped_rewards_pay_a_position_as_it_moves() -> None:
    # Flat, then long at -4, +1 and +6 pips unrealised, closed for 5; γ = 1 shows that sums stay.
    trajectory = random_trajectory(4, num_steps=5)
    static, actions = np.zeros((5, 6), np.float32), np.array([1, 0, 0, 3, 0], np.int8)
    static[1:4, 0] = 1.0
    static[1:4, 1] = np.tanh(np.array([-4.0, 1.0, 6.0]) / 100.0)
    paid = floats(0, 0, 0, 5, 0)
    policies = np.eye(4, dtype=np.float32)[actions]
    trajectory = replace(trajectory, static=static, actions=actions, policies=policies, rewards=paid)
    np.testing.assert_allclose(shaped_rewards(trajectory, 1.0), [-4, 5, 5, -1, 0], atol=1e-4)
    discounted = shaped_rewards(trajectory, 0.5)
    np.testing.assert_allclose(discounted, [-4 / 2, 1 / 2 + 4, 6 / 2 - 1, 5 - 6, 0], atol=1e-4)
    # The discounted sum from the flat start is that of the rewards as paid.
    powers = 0.5 ** np.arange(5)
    assert (powers * discounted).sum() == pytest.approx((powers * paid).sum(), abs=1e-4)


def test_a_margin_is_charged_at_every_close_and_reaches_the_returns() -> None:
    # γ = 1/2, n = 3: the close at step 2 is 1.5 pips worse, for its own decision and the two before it.
    trajectory = random_trajectory(6, num_steps=5)
    actions = np.array([1, 0, 3, 0, 0], np.int8)
    static = np.zeros((5, 6), np.float32)
    static[1:3, 0] = 1.0  # long
    policies = np.eye(4, dtype=np.float32)[actions]
    trajectory = replace(trajectory, actions=actions, static=static, policies=policies)
    plain, charged = (
        unrolled_steps(trajectory, 0, discount=0.5, n=3, unroll_steps=1, trade_margin=margin)
        for margin in (0.0, 1.5)
    )
    np.testing.assert_allclose(charged.rewards[:, 0] - plain.rewards[:, 0], [0, 0, -1.5, 0, 0], atol=1e-5)
    np.testing.assert_allclose(
        charged.returns[:, 0] - plain.returns[:, 0], [-1.5 / 4, -1.5 / 2, -1.5, 0, 0], atol=1e-5
    )
    np.testing.assert_array_equal(charged.paid, trajectory.rewards)


def test_shaping_changes_what_is_learned_and_not_what_counts_as_a_success() -> None:
    trajectory = random_trajectory(5, num_steps=6)
    steps = unrolled_steps(trajectory, 0, discount=0.9, n=3, unroll_steps=1, shaping=Shaping.UNREALISED)
    np.testing.assert_array_equal(steps.paid, trajectory.rewards)
    np.testing.assert_array_equal(steps.rewards[:, 0], shaped_rewards(trajectory, 0.9))
