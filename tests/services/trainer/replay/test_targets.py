"""Returns against hand-worked numbers and an oracle; targets of unrolled steps."""

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


def test_returns_bootstrap_inside_an_episode_and_not_past_its_end() -> None:
    # γ = 1/2, n = 2: z_t = u_t + u_{t+1}/2 + v_{t+2}/4, and near the end only the terms that exist.
    returns = n_step_returns(REWARDS, VALUES, discount=0.5, n=2)
    assert returns.tolist() == [
        1 + 0 / 2 + 30 / 4,
        0 - 2 / 2 + 40 / 4,
        -2 + 4 / 2 + 50 / 4,
        4 + 0 / 2 + 60 / 4,
        0 + 8 / 2 + 0 / 4,
        8,
    ]


def test_with_a_horizon_beyond_the_end_the_return_is_the_discounted_sum_of_rewards() -> None:
    returns = n_step_returns(REWARDS, VALUES, discount=0.5, n=100)
    assert returns[0] == pytest.approx(1 + 0 - 2 / 4 + 4 / 8 + 0 + 8 / 32)


@given(
    pairs=st.lists(
        st.tuples(st.floats(-300, 300, width=32), st.floats(-300, 300, width=32)), min_size=1, max_size=30
    ),
    discount=st.floats(0.5, 1.0),
    n=st.integers(1, 40),
)
def test_returns_equal_the_formula(pairs: list[tuple[float, float]], discount: float, n: int) -> None:
    rewards, values = (floats(*column) for column in zip(*pairs, strict=True))
    returns = n_step_returns(rewards, values, discount=discount, n=n)
    expected = [
        n_step_return(rewards.tolist(), values.tolist(), step, discount=discount, n=n, final_value=0.0)
        for step in range(len(rewards))
    ]
    np.testing.assert_allclose(returns, expected, rtol=1e-5, atol=1e-4)


def test_arrays_of_different_length_are_refused() -> None:
    with pytest.raises(ShapeError, match="root_values"):
        n_step_returns(REWARDS, VALUES[:5], discount=0.5, n=2)
    with pytest.raises(ShapeError, match="n is 0"):
        n_step_returns(REWARDS, VALUES, discount=0.5, n=0)


def test_every_step_carries_the_targets_of_its_next_decisions() -> None:
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


def test_a_trajectory_shorter_than_the_unroll_gives_steps() -> None:
    steps = unrolled_steps(random_trajectory(1, num_steps=2), 0, discount=0.9, n=3, unroll_steps=5)
    assert steps.lengths.tolist() == [2, 1]


def test_a_return_bootstraps_at_the_next_excursion() -> None:
    # γ = 1/2, n = 3, excursion at step 2: steps 0 and 1 bootstrap there; the return of step 2 continues.
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


def test_an_excursions_return_is_a_target_of_its_decision_and_not_of_its_state() -> None:
    trajectory = random_trajectory(2, num_steps=9)
    chosen = trajectory.policies[np.arange(9), trajectory.actions]
    floor = float(np.sort(chosen)[4])  # four decisions have a smaller probability
    steps = unrolled_steps(trajectory, 0, discount=0.9, n=4, unroll_steps=1, trace_floor=floor)
    excursions = chosen < floor
    assert excursions.sum() == 4
    expected = n_step_returns(trajectory.rewards, trajectory.values, discount=0.9, n=4, cuts=excursions)
    np.testing.assert_array_equal(steps.decision_returns[:, 0], expected)
    np.testing.assert_array_equal(steps.returns[:, 0], np.where(excursions, trajectory.values, expected))


def test_shaped_rewards_pay_a_positions_gain_as_it_accrues() -> None:
    # Flat, then long at -4, +1 and +6 pips unrealised, closed for 5; with γ = 1 the sum is unchanged.
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
    # The discounted sum from the flat start equals that of the unshaped rewards.
    powers = 0.5 ** np.arange(5)
    assert (powers * discounted).sum() == pytest.approx((powers * paid).sum(), abs=1e-4)


def test_a_trade_margin_is_charged_at_every_close_and_enters_the_returns() -> None:
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
    np.testing.assert_array_equal(charged.unshaped_rewards, trajectory.rewards)


def test_shaping_changes_the_learned_rewards_and_not_the_success_memory() -> None:
    trajectory = random_trajectory(5, num_steps=6)
    steps = unrolled_steps(trajectory, 0, discount=0.9, n=3, unroll_steps=1, shaping=Shaping.UNREALISED)
    np.testing.assert_array_equal(steps.unshaped_rewards, trajectory.rewards)
    np.testing.assert_array_equal(steps.rewards[:, 0], shaped_rewards(trajectory, 0.9))
