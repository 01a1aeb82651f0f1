"""Every path of every tree alternates node kinds, has only legal actions, and its sums are consistent."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.numeric import Float32, Float64, Int8, Int64
from shared.search.config import SearchConfig, Selection
from shared.search.model import ActionRules, RootNoise, Roots
from shared.search.search import grow
from shared.search.tree import ABSENT, Tree
from tests.shared.search.tables import TableModel, random_model, random_rules

BOTH = pytest.mark.parametrize("selection", list(Selection))
ROOTS = 4


@dataclass(frozen=True)
class PathModel:
    """Records the path in the hidden state: action a as a + 1, outcome c as -(c + 1).

    Slot 0 is the length of the path. All results are functions of the path, so they differ between paths.
    """

    num_actions: int
    num_outcomes: int
    length: int

    def afterstates(self, hidden: Float32, actions: Int8) -> tuple[Float32, Float32, Float32]:
        assert (hidden[:, 0] % 2 == 0).all(), "an action was applied to an afterstate"
        written = self._written(hidden, actions + 1)
        odds = np.exp(self._answers(written, self.num_outcomes))
        return written, odds / odds.sum(axis=1, keepdims=True), self._answers(written, 1)[:, 0]

    def successors(
        self, afterstates: Float32, actions: Int8, outcomes: Int8
    ) -> tuple[Float32, Float32, Float32]:
        assert (afterstates[:, 0] % 2 == 1).all(), "an outcome was applied to a state"
        last = afterstates[np.arange(len(afterstates)), afterstates[:, 0].astype(int)]
        assert (last == actions + 1).all(), "another action led to this afterstate"
        written = self._written(afterstates, -(outcomes + 1))
        answers = self._answers(written, 2)
        return written, answers[:, 0], answers[:, 1]

    def policies(self, hidden: Float32) -> Float32:
        assert (hidden[:, 0] % 2 == 0).all(), "the policy of an afterstate was requested"
        return self._answers(hidden, self.num_actions + 1)[:, 1:]

    def roots(self, phases: Int8) -> Roots:
        hidden = np.zeros((len(phases), 1 + self.length), np.float32)
        answers = self._answers(hidden, self.num_actions + 1)
        return Roots(hidden, answers[:, 1:], answers[:, 0], phases)

    @staticmethod
    def _written(hidden: Float32, steps: Int8) -> Float32:
        written = hidden.copy()
        written[:, 0] += 1
        written[np.arange(len(hidden)), written[:, 0].astype(int)] = steps
        return written

    def _answers(self, written: Float32, count: int) -> Float32:
        weights = np.random.default_rng(count).normal(size=(written.shape[1], count))
        return np.sin(3.0 * written @ weights).astype(np.float32)


def _noise(rng: np.random.Generator, actions: int) -> RootNoise:
    return RootNoise(rng.gumbel(size=(ROOTS, actions)), rng.standard_gamma(1.0, (ROOTS, actions)))


@BOTH
@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    simulations=st.integers(1, 60),
    actions=st.integers(1, 5),
    outcomes=st.integers(1, 3),
    phases=st.integers(1, 4),
)
def test_every_path_is_legal_and_alternates_actions_and_outcomes(
    selection: Selection, seed: int, simulations: int, actions: int, outcomes: int, phases: int
) -> None:
    rng = np.random.default_rng(seed)
    rules, model = random_rules(rng, phases, actions), PathModel(actions, outcomes, simulations + 1)
    roots = model.roots(rng.integers(phases, size=ROOTS).astype(np.int8))
    tree = grow(model, roots, rules, SearchConfig(selection, simulations), _noise(rng, actions))
    for row in range(ROOTS):
        for node in range(1, tree.size[row]):
            steps = _path(tree, row, node)
            length = int(tree.hidden[row, node, 0])
            assert tree.hidden[row, node, 1 : 1 + length].tolist() == steps  # the path in the model
            assert [step > 0 for step in steps] == [index % 2 == 0 for index in range(length)]
            _require_legal(steps, int(roots.phases[row]), rules)


def _path(tree: Tree, row: int, node: int) -> list[int]:
    """The path from the root to a node, as `PathModel` records it."""
    steps: list[int] = []
    while node != 0:
        parent, branch = int(tree.parent[row, node]), int(tree.branch[row, node])
        assert tree.children[row, parent, branch] == node
        steps.insert(0, -(branch + 1) if tree.is_chance[row, parent] else branch + 1)
        node = parent
    return steps


def _require_legal(steps: list[int], phase: int, rules: ActionRules) -> None:
    for step in steps:
        if step > 0:
            assert rules.legal[phase, step - 1]
            phase = int(rules.successor[phase, step - 1])


@BOTH
@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    simulations=st.integers(1, 80),
    actions=st.integers(1, 4),
    outcomes=st.integers(1, 4),
    discount=st.sampled_from([0.0, 0.5, 0.997, 1.0]),
)
def test_visits_and_values_are_the_sums_over_the_children(
    selection: Selection, seed: int, simulations: int, actions: int, outcomes: int, discount: float
) -> None:
    """The first visit of a node evaluates it, every other visit continues to a child.

    So N = 1 + Σ n, and W is the value of the model plus that of the children: Σ W below a decision node,
    Σ (n r + γ W) below a chance node.
    """
    rng = np.random.default_rng(seed)
    model, rules = random_model(rng, 6, actions, outcomes), random_rules(rng, 2, actions)
    roots = model.roots(np.arange(ROOTS), rng.integers(2, size=ROOTS).astype(np.int8))
    config = SearchConfig(selection, simulations, discount)
    tree = grow(model, roots, rules, config, _noise(rng, actions))
    for row in range(ROOTS):
        assert tree.visits[row, 0] == 1 + simulations
        for node in np.flatnonzero(tree.visits[row, : tree.size[row]]).tolist():
            _require_sums(tree, row, node, model, discount)
    _require_bounds(tree, model, discount)


def _require_sums(tree: Tree, row: int, node: int, model: TableModel, discount: float) -> None:
    children = tree.children[row, node][tree.children[row, node] != ABSENT]
    counts, sums = tree.visits[row, children], tree.value_sum[row, children]
    assert tree.visits[row, node] == 1 + counts.sum()
    at = int(tree.hidden[row, node, 0])
    if tree.is_chance[row, node]:
        state, action = divmod(at, model.num_actions)
        own = model.q_values[state, action]
        rewards = model.rewards[state, action, tree.branch[row, children]]
        below = (counts * rewards + discount * sums).sum()
    else:
        own, below = model.values[at], sums.sum()
    assert tree.value_sum[row, node] == pytest.approx(own + below, abs=1e-4)


def _require_bounds(tree: Tree, model: TableModel, discount: float) -> None:
    """Check that every W/N is possible with the values and rewards of the model."""
    values = np.concatenate([model.values, model.q_values.ravel()])
    least, greatest = [values.min()], [values.max()]
    for _ in range(tree.children.shape[1]):
        least.append(min(values.min(), model.rewards.min() + discount * least[-1]))
        greatest.append(max(values.max(), model.rewards.max() + discount * greatest[-1]))
    for row in range(ROOTS):
        bars = _bars_below(tree, row)
        seen = tree.visits[row] > 0
        mean: Float64 = tree.value_sum[row, seen] / tree.visits[row, seen]
        assert (mean >= np.array(least)[bars[seen]] - 1e-5).all()
        assert (mean <= np.array(greatest)[bars[seen]] + 1e-5).all()


def _bars_below(tree: Tree, row: int) -> Int64:
    """The number of bars below each node, `[N]`."""
    bars = np.zeros(tree.children.shape[1], np.int64)
    for node in range(int(tree.size[row]) - 1, 0, -1):  # parents precede their children
        parent = tree.parent[row, node]
        bars[parent] = max(bars[parent], bars[node] + int(tree.is_chance[row, parent]))
    return bars
