"""Both selection rules give the trees of mctx, node by node.

mctx is DeepMind's implementation of the papers. tests/oracles/mctx_search.py documents which parts are from
mctx (traversal, selection rules, sequential halving, chance rule, expansion, backup, mixed value) and which
definitions are added (root afterstates known from the start, the bounds that scale Q, illegal actions inside
the tree).
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from shared.environment.action import LEGAL, SUCCESSOR
from shared.numeric import Bool, Float64, Int64
from shared.search.config import SearchConfig, Selection
from shared.search.model import ActionRules, RootNoise
from shared.search.search import grow, search
from shared.search.selection import considered_visits
from shared.search.tree import ABSENT, Tree
from tests.oracles.mctx_process import Mctx, MctxTrees, mctx_process
from tests.shared.search.tables import TableModel, random_model

NUM_STATES, NUM_ACTIONS = 48, 4
STATES = np.arange(NUM_STATES)
PHASES = STATES % 3


@pytest.fixture(scope="module")
def mctx() -> Iterator[Mctx]:
    with mctx_process() as process:
        yield process


def _plain(model: TableModel) -> None:
    """Change nothing: values are around 1 pip."""


def _wide(model: TableModel) -> None:
    """Values of hundreds of pips and a nearly deterministic prior."""
    model.rewards *= 200.0
    model.values *= 200.0
    model.q_values *= 200.0
    model.logits *= 5.0


def _flat(model: TableModel) -> None:
    """All values within `min_q_span`."""
    model.rewards *= 1e-4
    model.values *= 1e-4
    model.q_values *= 1e-4


def _sure(model: TableModel) -> None:
    """Nearly certain outcomes, and some of probability 0."""
    model.probabilities **= 6
    model.probabilities[model.probabilities < 1e-3] = 0.0
    model.probabilities /= model.probabilities.sum(axis=2, keepdims=True)


PROBLEMS = pytest.mark.parametrize("problem", [_plain, _wide, _flat, _sure])
#: Both of the same shape, so that mctx compiles once.
RULES = pytest.mark.parametrize(
    "rules",
    [
        pytest.param(
            ActionRules(np.ones((3, 4), np.bool_), np.zeros((3, 4), np.int8)), id="everything is legal"
        ),
        pytest.param(ActionRules(LEGAL, SUCCESSOR), id="a position's actions"),
    ],
)


def _problem(problem: Callable[[TableModel], None]) -> TableModel:
    model = random_model(np.random.default_rng(12), NUM_STATES, NUM_ACTIONS)
    problem(model)
    return model


@RULES
@PROBLEMS
def test_puct_equals_mctxs_stochastic_policy(
    mctx: Mctx, problem: Callable[[TableModel], None], rules: ActionRules
) -> None:
    model, config = _problem(problem), SearchConfig(Selection.PUCT, 50)
    roots = model.roots(STATES, PHASES.astype(np.int8))
    found = mctx.puct(model, STATES, PHASES, rules, config)
    _require_same_trees(grow(model, roots, rules, config), found)
    for simulations in (5, 25, 50):  # a longer search starts like a shorter one
        result = search(model, roots, rules, SearchConfig(Selection.PUCT, simulations))
        np.testing.assert_array_equal(result.visits, _visits_after(found, simulations))
    np.testing.assert_allclose(result.policies, found.policies, atol=1e-6)
    np.testing.assert_allclose(result.values, found.values[:, 0], rtol=1e-6)
    legal = rules.legal[PHASES]
    np.testing.assert_allclose(result.q_values[legal], found.root_q[legal], rtol=1e-6)


@RULES
@PROBLEMS
@pytest.mark.parametrize("simulations", [5, 25, 50])
def test_gumbel_equals_mctxs_rules_with_mctxs_chance_nodes(
    mctx: Mctx, problem: Callable[[TableModel], None], rules: ActionRules, simulations: int
) -> None:
    model, config = _problem(problem), SearchConfig(Selection.GUMBEL, simulations)
    legal = rules.legal[PHASES]
    rng = np.random.default_rng(13)
    for noise in (None, rng.gumbel(size=legal.shape)):
        _require_same_gumbel(mctx, model, rules, config, noise, legal)


@RULES
def test_gumbel_equals_mctx_if_only_two_actions_are_considered(mctx: Mctx, rules: ActionRules) -> None:
    model, legal = _problem(_plain), rules.legal[PHASES]
    noise = np.random.default_rng(14).gumbel(size=legal.shape)
    strength = np.where(legal, noise + model.logits[STATES], -np.inf)
    considered = strength >= np.sort(strength, axis=1)[:, -2:-1]
    assert (considered.sum(axis=1) == 2).all()
    config = SearchConfig(Selection.GUMBEL, 25, max_considered_actions=2)
    _require_same_gumbel(mctx, model, rules, config, noise, considered)


def _require_same_gumbel(
    mctx: Mctx,
    model: TableModel,
    rules: ActionRules,
    config: SearchConfig,
    noise: Float64 | None,
    considered: Bool,
) -> None:
    roots, legal = model.roots(STATES, PHASES.astype(np.int8)), rules.legal[PHASES]
    root_noise = None if noise is None else RootNoise(noise, np.ones_like(noise))
    gumbel = np.zeros(legal.shape) if noise is None else noise
    found = mctx.gumbel(model, STATES, PHASES, rules, config, gumbel, considered)
    _require_same_trees(grow(model, roots, rules, config, root_noise), found)
    result = search(model, roots, rules, config, root_noise)
    np.testing.assert_array_equal(result.visits, found.root_visits)
    np.testing.assert_array_equal(result.actions, found.actions)
    np.testing.assert_allclose(result.policies, found.policies, atol=1e-6)
    np.testing.assert_allclose(result.q_values[legal], found.root_q[legal], rtol=1e-6)


@pytest.mark.parametrize("simulations", [1, 2, 5, 16, 25, 50, 200])
def test_sequential_halving_equals_mctxs_table(mctx: Mctx, simulations: int) -> None:
    np.testing.assert_array_equal(considered_visits(20, simulations), mctx.halving_table(20, simulations))


def _visits_after(found: MctxTrees, simulations: int) -> Int64:
    """Visits of the root actions after the first simulations, each of which added one node."""
    visits = np.zeros((NUM_STATES, NUM_ACTIONS), np.int64)
    for row in range(NUM_STATES):
        actions = [-1]
        for node in range(1, simulations + 1):
            parent = int(found.parents[row, node])
            actions.append(int(found.branches[row, node]) if parent == 0 else actions[parent])
        visits[row] = np.bincount(actions[1:], minlength=NUM_ACTIONS)
    return visits


def _require_same_trees(tree: Tree, found: MctxTrees) -> None:
    """Check parent, branch, visits and value of every node of every tree."""
    for row in range(NUM_STATES):
        # The index in our tree of each node of mctx. A parent precedes its children.
        ours = [0]
        for node in range(1, found.visits.shape[1]):
            parent = ours[found.parents[row, node]]
            first = NUM_ACTIONS if tree.is_chance[row, parent] else 0
            ours.append(int(tree.children[row, parent, found.branches[row, node] - first]))
        assert ABSENT not in ours, row
        np.testing.assert_array_equal(tree.visits[row, ours], found.visits[row])
        np.testing.assert_allclose(
            tree.value_sum[row, ours] / tree.visits[row, ours], found.values[row], rtol=1e-9, atol=1e-9
        )
        # The other nodes of our tree are root afterstates without visits.
        others = np.setdiff1d(np.arange(tree.size[row]), ours)
        assert not tree.visits[row, others].any()
        assert not tree.parent[row, others].any()
