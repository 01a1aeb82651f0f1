"""The trees grow by the rules, and what is read off them is right: on problems whose answer is known."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import DataError, ShapeError
from shared.search.config import SearchConfig, Selection
from shared.search.model import ActionRules, RootNoise, Roots
from shared.search.search import grow, search
from shared.search.tree import ABSENT, Tree
from tests.oracles.expectimax import action_values
from tests.oracles.stochastic_search import Node, Search
from tests.shared.search.tables import (
    TableModel,
    constant_model,
    finite_game,
    free_rules,
    random_model,
    truthful,
)

BOTH = pytest.mark.parametrize("selection", list(Selection))
ONE_ROOT = np.zeros(1, np.int64)


def _children(tree: Tree, node: int, row: int = 0) -> list[int]:
    return [int(child) for child in tree.children[row, node] if child != ABSENT]


def _visits(tree: Tree, node: int, row: int = 0) -> list[int]:
    return [int(tree.visits[row, child]) if child != ABSENT else 0 for child in tree.children[row, node]]


@BOTH
def test_the_discount_enters_once_a_bar(selection: Selection) -> None:
    model = constant_model(1, [1.0], reward=1.0, value=0.0)
    config = SearchConfig(selection, simulations=2, discount=0.5)
    tree = grow(model, model.roots(ONE_ROOT), free_rules(1), config)
    # First the afterstate's value 0, then the bar's reward 1 with a state worth 0 behind it.
    assert tree.value_sum[0, 0] == 1.0
    tree = grow(model, model.roots(ONE_ROOT), free_rules(1), SearchConfig(selection, 4, discount=0.5))
    # Third and fourth: reward 1 and the next afterstate, then reward 1 and half of the next reward 1.
    assert tree.value_sum[0, 0] == 0.0 + 1.0 + 1.0 + 1.5


@BOTH
@pytest.mark.parametrize(
    ("probabilities", "visits"), [([0.5, 0.3, 0.2], [5, 3, 2]), ([0.9, 0.08, 0.02], [10, 0, 0])]
)
def test_chance_visits_follow_the_probabilities(
    selection: Selection, probabilities: list[float], visits: list[int]
) -> None:
    model = constant_model(1, probabilities)
    tree = grow(model, model.roots(ONE_ROOT), free_rules(1), SearchConfig(selection, simulations=11))
    (chance,) = _children(tree, 0)
    assert _visits(tree, chance) == visits


@BOTH
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), simulations=st.integers(1, 60), actions=st.integers(1, 4))
def test_any_tree_holds_together(selection: Selection, seed: int, simulations: int, actions: int) -> None:
    model = random_model(np.random.default_rng(seed), 5, actions)
    roots = model.roots(np.arange(5))
    tree = grow(model, roots, free_rules(actions), SearchConfig(selection, simulations))
    for row in range(5):
        size = int(tree.size[row])
        assert tree.visits[row, 0] == 1 + simulations
        assert not tree.is_chance[row, 0]
        assert np.isfinite(tree.value_sum[row, :size]).all()
        for node in range(size):
            for branch, child in enumerate(tree.children[row, node]):
                if child == ABSENT:
                    continue
                assert tree.is_chance[row, child] != tree.is_chance[row, node]  # kinds alternate
                assert (tree.parent[row, child], tree.branch[row, child]) == (node, branch)
            # One visit evaluated the node itself, every other one went on to a child.
            if tree.visits[row, node]:
                assert sum(_visits(tree, node, row)) == tree.visits[row, node] - 1
        q = tree.value_sum[row, :size] / np.maximum(tree.visits[row, :size], 1)
        seen = tree.is_chance[row, :size] & (tree.visits[row, :size] > 0)
        assert (q[seen] >= tree.q_bounds[row, 0]).all()
        assert (q[seen] <= tree.q_bounds[row, 1]).all()


@BOTH
@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    simulations=st.integers(1, 120),
    actions=st.integers(1, 5),
    outcomes=st.integers(1, 4),
    discount=st.sampled_from([0.0, 0.5, 0.997, 1.0]),
)
def test_trees_equal_those_of_a_node_by_node_search(
    selection: Selection, seed: int, simulations: int, actions: int, outcomes: int, discount: float
) -> None:
    model = random_model(np.random.default_rng(seed), 6, actions, outcomes)
    config = SearchConfig(selection, simulations, discount)
    roots = model.roots(np.arange(6))
    tree = grow(model, roots, free_rules(actions), config)
    result = search(model, roots, free_rules(actions), config)
    for row in range(6):
        logits, value = roots.policy_logits[row].tolist(), float(roots.values[row])
        oracle = Search(model, float(row), logits, value, config)
        _assert_same(tree, row, 0, oracle.root)
        np.testing.assert_allclose(result.q_values[row], oracle.completed(oracle.root), atol=1e-5)
        if selection is Selection.GUMBEL:
            improved = oracle.improved(oracle.root)
            np.testing.assert_allclose(result.policies[row], improved, atol=1e-5)
            value = float(np.dot(improved, oracle.completed(oracle.root)))
        else:
            np.testing.assert_allclose(result.policies[row], result.visits[row] / simulations)
            value = oracle.root.q
        assert result.values[row] == pytest.approx(value, abs=1e-5)


def _assert_same(tree: Tree, row: int, index: int, node: Node) -> None:
    assert tree.visits[row, index] == node.visits
    assert tree.value_sum[row, index] == pytest.approx(node.value_sum, abs=1e-6)
    children = {b: int(child) for b, child in enumerate(tree.children[row, index]) if child != ABSENT}
    assert children.keys() == node.children.keys()
    for branch, child in children.items():
        _assert_same(tree, row, child, node.children[branch])


def test_puct_visits_worked_by_hand() -> None:
    """Priors 2/3 and 1/3, rewards 0, values 1 and 3 (root 0): the visits alternate as the sums below say."""
    model = constant_model(2, [1.0])
    model.logits[:] = np.log([2 / 3, 1 / 3])
    model.q_values[:] = [1.0, 3.0]
    model.values[:] = 0.0
    # Bounds 0..3. Scores Qn + p √N 1.25 / (1 + n), N with the root's own visit (the logarithm adds 1e-4):
    #   N=1: 1/3 + .833 = 1.167        against 1 + .417 = 1.417          -> second, backs up 3
    #   N=2: 1/3 + .833 √2 = 1.512     against 1 + .208 √2 = 1.295       -> first, backs up 1
    #   N=3: 1/3 + .417 √3 = 1.055     against 1 + .208 √3 = 1.361       -> second, now its outcome: 0, Q 1.5
    #   N=4: 1/3 + .417 √4 = 1.167     against .5 + .139 √4 = .778       -> first, its outcome: 0, Q .5
    visits = [
        search(model, model.roots(ONE_ROOT), free_rules(2), SearchConfig(Selection.PUCT, simulations))
        .visits[0]
        .tolist()
        for simulations in (1, 2, 3, 4)
    ]
    assert visits == [[0, 1], [1, 1], [1, 2], [2, 2]]


def _spread(model: TableModel) -> None:
    """Nothing to change: the game as drawn."""


def _rare_ruin(model: TableModel) -> None:
    """The first action is better but for a rare, terrible outcome."""
    model.probabilities[0, 0] = [0.6, 0.3, 0.1]
    model.rewards[0, 0] = [0.1, 0.1, -1.5]
    model.rewards[0, 1] = 0.0


def _bait(model: TableModel) -> None:
    """The first action pays at once and leads to losses, the second costs and leads to gains."""
    model.rewards[0, 0], model.rewards[0, 1] = 0.1, -0.1
    model.rewards[1:4] = -0.3
    model.rewards[4:7] = 0.3


PROBLEMS = pytest.mark.parametrize("problem", [_spread, _rare_ruin, _bait])


def _two_plies(problem: Callable[[TableModel], None]) -> tuple[TableModel, list[float]]:
    """A problem of 2 actions, 3 outcomes and 2 plies, and the exact Q of the root's actions."""
    model = finite_game(np.random.default_rng(3), plies=2)
    model.rewards *= 0.1
    model.values *= 0.1
    model.q_values *= 0.1
    problem(model)
    return model, action_values(model, 0, plies=2, discount=0.9)


@BOTH
@PROBLEMS
def test_a_truthful_model_leads_to_the_exact_values(
    selection: Selection, problem: Callable[[TableModel], None]
) -> None:
    model, exact = _two_plies(problem)
    truthful(model, plies=2, discount=0.9)
    model.values[0] = 0.0  # what the root is worth, the search has to find
    config = SearchConfig(selection, 2000, discount=0.9)
    result = search(model, model.roots(ONE_ROOT), free_rules(2), config)
    best = int(np.argmax(exact))
    assert result.actions[0] == best
    assert result.q_values[0, best] == pytest.approx(exact[best], abs=1e-2)
    assert result.values[0] == pytest.approx(exact[best], abs=1e-2)


@PROBLEMS
def test_puct_converges_even_where_the_model_claims_nonsense(problem: Callable[[TableModel], None]) -> None:
    model, exact = _two_plies(problem)
    errors = []
    for simulations in (125, 1000, 8000):
        config = SearchConfig(Selection.PUCT, simulations, discount=0.9)
        result = search(model, model.roots(ONE_ROOT), free_rules(2), config)
        errors.append(abs(float(result.values[0]) - max(exact)))
    assert result.actions[0] == int(np.argmax(exact))
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2


@BOTH
def test_rewards_on_another_scale_change_no_visit(selection: Selection) -> None:
    discount, scale, shift = 0.9, 1000.0, 7000.0
    model = random_model(np.random.default_rng(1), 6)
    roots = np.arange(6)
    config = SearchConfig(selection, 50, discount)
    expected = search(model, model.roots(roots), free_rules(3), config)
    model.rewards = scale * model.rewards + shift * (1.0 - discount)
    model.values, model.q_values = scale * model.values + shift, scale * model.q_values + shift
    got = search(model, model.roots(roots), free_rules(3), config)
    np.testing.assert_array_equal(got.visits, expected.visits)
    np.testing.assert_array_equal(got.actions, expected.actions)
    np.testing.assert_allclose(got.policies, expected.policies, atol=1e-4)
    np.testing.assert_allclose(got.values, scale * expected.values + shift, rtol=1e-5)


@BOTH
def test_where_all_values_are_equal_the_prior_decides(selection: Selection) -> None:
    model = constant_model(3, [0.3, 0.4, 0.3])
    model.logits[:] = np.log([0.2, 0.5, 0.3])
    result = search(model, model.roots(ONE_ROOT), free_rules(3), SearchConfig(selection, 20))
    assert np.isfinite(result.policies).all()
    assert result.actions[0] == 1
    if selection is Selection.GUMBEL:
        np.testing.assert_allclose(result.policies[0], [0.2, 0.5, 0.3], atol=1e-6)
    else:
        assert result.visits[0].argsort().tolist() == [0, 2, 1]


def _noise(seed: int, batch: int, actions: int) -> RootNoise:
    rng = np.random.default_rng(seed)
    return RootNoise(rng.gumbel(size=(batch, actions)), rng.standard_gamma(1.0, (batch, actions)))


@BOTH
def test_a_root_is_searched_alike_in_any_company(selection: Selection) -> None:
    model = random_model(np.random.default_rng(2), 40)
    rules, config, noise = free_rules(3), SearchConfig(selection, 25), _noise(0, 40, 3)
    together = search(model, model.roots(np.arange(40)), rules, config, noise)
    again = search(model, model.roots(np.arange(40)), rules, config, noise)
    order = np.random.default_rng(4).permutation(40)
    for rows in [order[i : i + size] for size in (1, 7) for i in range(0, 40, size)]:
        part = search(
            model, model.roots(rows), rules, config, RootNoise(noise.gumbel[rows], noise.gamma[rows])
        )
        for name in ("policies", "values", "q_values", "visits", "actions", "outcome_probabilities"):
            assert getattr(part, name).tobytes() == getattr(together, name)[rows].tobytes(), name
            assert getattr(again, name).tobytes() == getattr(together, name).tobytes(), name


def test_dirichlet_noise_is_mixed_into_the_roots_prior_alone() -> None:
    model = random_model(np.random.default_rng(5), 1)
    rules, roots = free_rules(3), model.roots(ONE_ROOT)
    config = SearchConfig(Selection.PUCT, 30, dirichlet_fraction=0.4)
    quiet = grow(model, roots, rules, config)
    prior = quiet.prior[0, 0, :3]
    means = np.zeros(3)
    for seed in range(400):
        noise = _noise(seed, 1, 3)
        tree = grow(model, roots, rules, config, noise)
        shares = noise.gamma[0] / noise.gamma[0].sum()
        np.testing.assert_allclose(tree.prior[0, 0, :3], 0.6 * prior + 0.4 * shares)
        inner = [node for node in range(1, tree.size[0]) if not tree.is_chance[0, node]]
        for node in inner:
            state = int(tree.hidden[0, node, 0])
            expected = np.exp(model.logits[state]) / np.exp(model.logits[state]).sum()
            np.testing.assert_allclose(tree.prior[0, node, :3], expected, atol=1e-6)
        means += tree.prior[0, 0, :3] / 400
    # A Dirichlet(1) share of three has mean 1/3 and standard deviation √(1/18).
    np.testing.assert_allclose(means, 0.6 * prior + 0.4 / 3, atol=4 * 0.4 * np.sqrt(1 / 18 / 400))


def test_gumbel_noise_draws_actions_from_the_policy() -> None:
    """With one simulation and equal values the search takes the best of g + logits: a draw from softmax."""
    model = constant_model(4, [1.0])
    policy = np.array([0.1, 0.2, 0.3, 0.4])
    model.logits[:] = np.log(policy)
    draws = 4000
    roots = model.roots(np.zeros(draws, np.int64))
    result = search(model, roots, free_rules(4), SearchConfig(simulations=1), _noise(0, draws, 4))
    shares = np.bincount(result.actions, minlength=4) / draws
    np.testing.assert_allclose(shares, policy, atol=4 * np.sqrt(0.25 / draws))
    # The training target stays free of noise.
    np.testing.assert_allclose(result.policies, np.broadcast_to(policy, (draws, 4)), atol=1e-6)


def test_only_the_strongest_actions_are_considered() -> None:
    model = constant_model(4, [1.0])
    model.logits[:] = np.log([0.1, 0.2, 0.4, 0.3])
    config = SearchConfig(simulations=9, max_considered_actions=2)
    result = search(model, model.roots(ONE_ROOT), free_rules(4), config)
    assert result.visits[0].tolist() == [0, 0, 5, 4]


def test_completed_q_improves_the_policy_when_q_is_exact() -> None:
    """Completed Q with an exact model: no root's true value falls, most gain."""
    rng = np.random.default_rng(6)
    model = random_model(rng, 4096, 4)
    model.next_state[:] = np.arange(4096)[:, None, None]
    model.values[:] = 0.0
    model.rewards[:] = model.q_values[:, :, None]  # whatever happens, an action is worth its Q
    q = model.q_values
    prior = np.exp(model.logits) / np.exp(model.logits).sum(axis=1, keepdims=True)
    result = search(model, model.roots(np.arange(4096)), free_rules(4), SearchConfig(discount=0.0))
    gain = (result.policies * q).sum(axis=1) - (prior * q).sum(axis=1)
    assert gain.min() > -1e-6
    assert gain.mean() > 0.8


def _two_phases() -> ActionRules:
    """Phase 0 allows actions 0 and 1, phase 1 allows 0 and 2; 1 leads to phase 1, 2 back to 0."""
    legal = np.array([[True, True, False], [True, False, True]])
    return ActionRules(legal, np.array([[0, 1, -1], [1, -1, 0]], np.int8))


@BOTH
def test_illegal_actions_are_never_taken_on_any_path(selection: Selection) -> None:
    rules, model = _two_phases(), random_model(np.random.default_rng(7), 8)
    model.logits[:, 2] += 5.0  # wanted most, and illegal in phase 0
    model.q_values[:, 2] += 5.0
    roots = model.roots(np.arange(8), np.array([0, 1] * 4, np.int8))
    config = SearchConfig(selection, 80)
    tree = grow(model, roots, rules, config, _noise(1, 8, 3))
    result = search(model, roots, rules, config, _noise(1, 8, 3))
    for row in range(8):
        for node in range(tree.size[row]):
            phase = int(tree.phase[row, node])
            if tree.is_chance[row, node]:
                parent = int(tree.parent[row, node])
                action = int(tree.branch[row, node])
                assert rules.legal[tree.phase[row, parent], action]
                assert phase == rules.successor[tree.phase[row, parent], action]
            else:
                assert tree.parent[row, node] == ABSENT or phase == tree.phase[row, tree.parent[row, node]]
                assert tree.prior[row, node, :3][~rules.legal[phase]].sum() == 0.0
                assert tree.prior[row, node, :3].sum() == pytest.approx(1.0)
    legal = rules.legal[roots.phases]
    assert legal[np.arange(8), result.actions].all()
    assert not result.policies[~legal].any()
    assert not result.visits[~legal].any()
    assert not result.outcome_probabilities[~legal].any()
    assert np.isnan(result.q_values[~legal]).all()
    assert np.isfinite(result.q_values[legal]).all()
    np.testing.assert_allclose(result.policies.sum(axis=1), 1.0, atol=1e-6)


@BOTH
def test_every_level_is_one_call_for_all_roots(selection: Selection) -> None:
    model = random_model(np.random.default_rng(8), 50)
    search(model, model.roots(np.arange(50)), free_rules(3), SearchConfig(selection, simulations=5))
    assert model.calls[0] == ("afterstates", 150)
    # Five simulations: at most one call of each kind in each, and no row twice.
    assert len(model.calls) <= 1 + 2 * 5
    assert sum(rows for _, rows in model.calls[1:]) <= 5 * 50


def test_outcome_probabilities_are_the_models() -> None:
    model = random_model(np.random.default_rng(9), 3)
    result = search(model, model.roots(np.arange(3)), free_rules(3), SearchConfig())
    np.testing.assert_allclose(result.outcome_probabilities, model.probabilities, atol=1e-6)


@pytest.mark.parametrize("field", ["values", "q_values", "rewards", "logits"])
def test_a_number_that_is_not_finite_is_an_error(field: str) -> None:
    model = random_model(np.random.default_rng(10), 3)
    getattr(model, field)[...] = np.nan
    with pytest.raises(DataError, match="not finite"):
        search(model, model.roots(np.arange(3)), free_rules(3), SearchConfig(simulations=9))


def test_roots_and_rules_must_agree() -> None:
    model = random_model(np.random.default_rng(11), 3)
    with pytest.raises(ShapeError, match="policy_logits"):
        search(model, model.roots(np.arange(3)), free_rules(4), SearchConfig())
    with pytest.raises(ShapeError, match="phases"):
        search(model, model.roots(np.arange(3), np.array([0, 1, 0], np.int8)), free_rules(3), SearchConfig())
    with pytest.raises(ShapeError, match=r"noise\.gumbel"):
        search(model, model.roots(np.arange(3)), free_rules(3), SearchConfig(), _noise(0, 2, 3))
    with pytest.raises(ShapeError, match="at least one root"):
        Roots(np.empty((0, 1), np.float32), *(np.empty((0, 3), np.float32),) * 2, np.empty(0, np.int8))
