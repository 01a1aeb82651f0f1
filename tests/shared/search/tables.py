"""Models without a network: decision problems as tables, with correct or wrong values."""

from dataclasses import dataclass, field

import numpy as np

from shared.numeric import Float32, Float64, Int8, Int64
from shared.search.model import ActionRules, Roots
from tests.oracles.expectimax import action_values


@dataclass
class TableModel:
    """A stochastic decision problem of `S` states. A hidden state is the number of the state.

    An afterstate is the number `state * A + action`. `calls` records the kind and size of every call.
    """

    probabilities: Float64  # [S, A, C]
    rewards: Float64  # [S, A, C]
    next_state: Int64  # [S, A, C]
    logits: Float64  # [S, A]
    values: Float64  # [S] values of the model, possibly wrong
    q_values: Float64  # [S, A] Q-values of the model, possibly wrong
    calls: list[tuple[str, int]] = field(default_factory=list)

    @property
    def num_actions(self) -> int:
        return int(self.logits.shape[1])

    def afterstates(self, hidden: Float32, actions: Int8) -> tuple[Float32, Float32, Float32]:
        state = hidden[:, 0].astype(np.int64)
        self.calls.append(("afterstates", len(state)))
        afterstates = (state * self.num_actions + actions)[:, None]
        return (
            afterstates.astype(np.float32),
            self.probabilities[state, actions].astype(np.float32),
            self.q_values[state, actions].astype(np.float32),
        )

    def successors(
        self, afterstates: Float32, actions: Int8, outcomes: Int8
    ) -> tuple[Float32, Float32, Float32]:
        self.calls.append(("successors", len(afterstates)))
        state, action = np.divmod(afterstates[:, 0].astype(np.int64), self.num_actions)
        assert (action == actions).all()
        following = self.next_state[state, action, outcomes]
        return (
            following[:, None].astype(np.float32),
            self.rewards[state, action, outcomes].astype(np.float32),
            self.values[following].astype(np.float32),
        )

    def policies(self, hidden: Float32) -> Float32:
        self.calls.append(("policies", len(hidden)))
        logits: Float32 = self.logits[hidden[:, 0].astype(np.int64)].astype(np.float32)
        return logits

    def roots(self, states: Int64, phases: Int8 | None = None) -> Roots:
        return Roots(
            states[:, None].astype(np.float32),
            self.logits[states].astype(np.float32),
            self.values[states].astype(np.float32),
            np.zeros(len(states), np.int8) if phases is None else phases,
        )


def free_rules(num_actions: int) -> ActionRules:
    """One phase in which every action is legal."""
    return ActionRules(np.ones((1, num_actions), np.bool_), np.zeros((1, num_actions), np.int8))


def random_rules(rng: np.random.Generator, num_phases: int, num_actions: int) -> ActionRules:
    """Rules with at least one legal action per phase and random next phases."""
    legal = rng.random((num_phases, num_actions)) < 0.5
    legal[np.arange(num_phases), rng.integers(num_actions, size=num_phases)] = True
    successor = np.where(legal, rng.integers(num_phases, size=legal.shape), -1)
    return ActionRules(legal, successor.astype(np.int8))


def constant_model(
    num_actions: int, probabilities: list[float], reward: float = 0.0, value: float = 0.0
) -> TableModel:
    """A problem with one state."""
    shape = (1, num_actions, len(probabilities))
    return TableModel(
        np.broadcast_to(np.array(probabilities), shape).copy(),
        np.full(shape, reward),
        np.zeros(shape, np.int64),
        np.zeros((1, num_actions)),
        np.full(1, value),
        np.full((1, num_actions), value),
    )


def random_model(
    rng: np.random.Generator, num_states: int, num_actions: int = 3, num_outcomes: int = 3
) -> TableModel:
    """A random problem with wrong values."""
    shape = (num_states, num_actions, num_outcomes)
    return TableModel(
        rng.dirichlet(np.ones(num_outcomes), shape[:2]),
        rng.normal(size=shape),
        rng.integers(num_states, size=shape),
        rng.normal(size=shape[:2]),
        rng.normal(size=num_states),
        rng.normal(size=shape[:2]),
    )


def finite_game(
    rng: np.random.Generator, plies: int, num_actions: int = 2, num_outcomes: int = 3
) -> TableModel:
    """A game of `plies` decisions without repeated states; it ends in an absorbing state of value 0."""
    fan = num_actions * num_outcomes
    inner = sum(fan**ply for ply in range(plies))
    model = random_model(rng, inner + 1, num_actions, num_outcomes)
    first_child = 1 + fan * np.arange(inner + 1)[:, None] + np.arange(fan)
    model.next_state[:] = np.minimum(first_child, inner).reshape(model.next_state.shape)
    model.rewards[inner] = model.values[inner] = model.q_values[inner] = 0.0
    model.logits[:] = 0.0
    return model


def ending_problem(num_states: int, num_actions: int, probabilities: list[float]) -> TableModel:
    """A problem to fill in: rewards are 0 and every action leads to the last, absorbing state."""
    model = constant_model(num_actions, probabilities)
    shape = (num_states, num_actions, len(probabilities))
    return TableModel(
        np.broadcast_to(model.probabilities, shape).copy(),
        np.zeros(shape),
        np.full(shape, num_states - 1),
        np.zeros(shape[:2]),
        np.zeros(num_states),
        np.zeros(shape[:2]),
    )


def set_true_values(model: TableModel, plies: int, discount: float) -> None:
    """Set the values of a finite game to the true ones."""
    fan = model.num_actions * model.rewards.shape[2]
    first = 0
    for ply in range(plies):
        for state in range(first, first + fan**ply):
            model.q_values[state] = action_values(model, state, plies - ply, discount)
            model.values[state] = model.q_values[state].max()
        first += fan**ply
