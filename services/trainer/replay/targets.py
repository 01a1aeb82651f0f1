"""Training targets of a trajectory's steps: bootstrapped returns and K unrolled steps.

Each step gets copies of all its targets when its trajectory is inserted. So a stored step needs no other
step, whatever is evicted. Only the temporal window is not stored; it is rebuilt from the trainer's own bars
when the step is drawn.
"""

import numpy as np

from services.trainer.config import Shaping
from services.trainer.replay.steps import Steps
from shared.agent.trajectory import Trajectory
from shared.environment.action import Action
from shared.environment.position import pips_of_static
from shared.errors import ShapeError
from shared.numeric import Bool, Float32, Float64, Int64, kernel, require_shape


def n_step_returns(
    rewards: Float32,
    root_values: Float32,
    *,
    discount: float,
    n: int,
    cuts: Bool | None = None,
) -> Float32:
    """Bootstrapped n-step return of each decision of one trajectory.

    z_t = u_t + γ u_{t+1} + … + γⁿ⁻¹ u_{t+n-1} + γⁿ v_{t+n}, where u_t is the reward of the decision at
    step t. The value after the last step T-1, where the episode ended, is 0. The sum stops and bootstraps
    earlier at the first cut step after t (as Watkins 1989 does for Q(λ)).

    Args:
        rewards: `[T]` pips, received on leaving step t.
        root_values: `[T]` pips, root value of the search at step t.
        discount: γ per bar, in (0, 1].
        n: horizon in bars, at least 1.
        cuts: `[T]` True at steps whose decision was not the policy's (excursions); by default none.
    Returns:
        `[T]` pips.
    Raises:
        ShapeError: the two arrays differ in length.
    Source: Schrittwieser et al. 2020, section 3. Oracle: tests/oracles/returns.py.
    """
    require_shape("rewards", rewards, None)
    require_shape("root_values", root_values, len(rewards))
    if n < 1:
        raise ShapeError("n", n, "1 or more")
    values = np.append(root_values.astype(np.float64), 0.0)
    if cuts is None:
        cuts = np.zeros(len(rewards), np.bool_)
    return _returns(rewards.astype(np.float64), values, cuts, discount, n).astype(np.float32)


@kernel
def _returns(rewards: Float64, values: Float64, cuts: Bool, discount: float, n: int) -> Float64:
    returns = np.empty(len(rewards), np.float64)
    for step in range(len(rewards)):
        end, last = step + 1, min(step + n, len(rewards))
        while end < last and not cuts[end]:
            end += 1
        total = values[end]
        for later in range(end - 1, step - 1, -1):
            total = rewards[later] + discount * total
        returns[step] = total
    return returns


def shaped_rewards(trajectory: Trajectory, discount: float) -> Float32:
    """Potential-based reward shaping: u_t + γ Φ(s_{t+1}) - Φ(s_t), where Φ is the unrealised pips.

    A position's gain is then paid as it accrues. Φ is 0 when flat and after the end, so the best policy does
    not change (Ng, Harada and Russell 1999). Values then exclude what a position has already gained. They are
    a few pips instead of a hundred, and the first few bars after an entry suffice to learn them.

    Args:
        trajectory: T steps of an ended episode.
        discount: γ per bar.
    Returns:
        `[T]` pips.
    """
    potential = np.append(pips_of_static(trajectory.static), 0.0)
    shaped: Float32 = (trajectory.rewards + discount * potential[1:] - potential[:-1]).astype(np.float32)
    return shaped


def unrolled_steps(
    trajectory: Trajectory,
    position: int,
    *,
    discount: float,
    n: int,
    unroll_steps: int,
    trace_floor: float = 0.0,
    shaping: Shaping = Shaping.NONE,
    trade_margin: float = 0.0,
) -> Steps:
    """Every step of a trajectory with the targets of its next K decisions.

    Args:
        trajectory: T steps of an ended episode.
        position: journal number of the trajectory.
        discount: γ per bar.
        n: horizon of the value targets in bars.
        unroll_steps: number of decisions, K.
        trace_floor: a decision to which the search gave less than this probability is an excursion. Its
            return is the target of that decision only. The target of its state is the search's value, and
            returns of earlier steps bootstrap there. With 0, no decision is an excursion.
        shaping: shaping of the learned rewards.
        trade_margin: pips charged for a decision to close, on top of its costs. Predicted values are noisy,
            and a single one that is too low closes a position. With a margin, the next trade must
            promise more than it costs.
    Returns:
        T steps. Where a trajectory ends within the unroll, `lengths` is smaller, and the rest repeats the
        last step. The losses mask the rest.
    """
    num_steps = len(trajectory.actions)
    starts: Int64 = np.arange(num_steps)
    states = np.minimum(starts[:, None] + np.arange(unroll_steps + 1), num_steps - 1)
    decisions = states[:, :unroll_steps]
    rewards = shaped_rewards(trajectory, discount) if shaping is Shaping.UNREALISED else trajectory.rewards
    rewards = rewards - np.float32(trade_margin) * (trajectory.actions == Action.CLOSE)
    excursions = trajectory.policies[starts, trajectory.actions] < trace_floor
    decision_returns = n_step_returns(rewards, trajectory.values, discount=discount, n=n, cuts=excursions)
    returns = np.where(excursions, trajectory.values, decision_returns)
    return Steps(
        positions=np.full(num_steps, position, np.int64),
        decisions=starts,
        bars=trajectory.start_bar + starts,
        static=trajectory.static,
        actions=trajectory.actions[decisions],
        outcomes=trajectory.outcomes[decisions],
        unshaped_rewards=trajectory.rewards,
        rewards=rewards[decisions],
        policies=trajectory.policies[states],
        returns=returns[states],
        decision_returns=decision_returns[decisions],
        lengths=np.minimum(num_steps - starts, unroll_steps + 1).astype(np.int8),
    )
