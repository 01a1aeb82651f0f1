"""Exact values of a decision problem given as tables, by recursion over every action and outcome."""

from typing import Protocol

from shared.numeric import Float64, Int64


class Problem(Protocol):
    """The tables `[S, A, C]` of a stochastic decision problem."""

    probabilities: Float64
    rewards: Float64
    next_state: Int64


def action_values(problem: Problem, state: int, plies: int, discount: float) -> list[float]:
    """Q(s, a) = Σ_c p(c | s, a) (r + γ max_a' Q(s', a')) over the plies that are left."""
    num_actions, num_outcomes = problem.rewards.shape[1:]
    values = []
    for action in range(num_actions):
        value = 0.0
        for outcome in range(num_outcomes):
            edge = (state, action, outcome)
            future = 0.0
            if plies > 1:
                future = max(action_values(problem, int(problem.next_state[edge]), plies - 1, discount))
            value += float(problem.probabilities[edge]) * (float(problem.rewards[edge]) + discount * future)
        values.append(value)
    return values
