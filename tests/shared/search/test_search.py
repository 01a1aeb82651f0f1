"""Trees and results of the search on problems with known answers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import DataError, ShapeError
from shared.search.config import SearchConfig, Selection
from shared.search.model import ActionRules, RootNoise, Roots
from shared.search.search import grow, search
from shared.search.tree import ABSENT, Tree
from tests.oracles.stochastic_search import Node, Search
from tests.shared.search.tables import (
    constant_model,
    free_rules,
    random_model,
)

BOTH = pytest.mark.parametrize("selection", list(Selection))
ONE_ROOT = np.zeros(1, np.int64)


def _noise(seed: int, batch: int, actions: int) -> RootNoise:
    rng = np.random.default_rng(seed)
    return RootNoise(rng.gumbel(size=(batch, actions)), rng.standard_gamma(1.0, (batch, actions)))


@BOTH
def test_the_discount_is_applied_once_per_bar(selection: Selection) -> None:
    model = constant_model(1, [1.0], reward=1.0, value=0.0)
    config = SearchConfig(selection, simulations=2, discount=0.5)
    tree = grow(model, model.roots(ONE_ROOT), free_rules(1), config)
    # First the afterstate value 0, then the reward 1 and a state of value 0.
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
    (chance,) = tree.children[0, 0][tree.children[0, 0] != ABSENT]
    below = tree.children[0, chance]
    assert np.where(below == ABSENT, 0, tree.visits[0, below]).tolist() == visits


@BOTH
@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    simulations=st.integers(1, 120),
    actions=st.integers(1, 5),
    outcomes=st.integers(1, 4),
    discount=st.sampled_from([0.0, 0.5, 0.997, 1.0]),
)
def test_trees_equal_those_of_a_search_with_node_objects(
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


def test_puct_visits_computed_by_hand() -> None:
    """Priors 2/3 and 1/3, rewards 0, values 1 and 3 (root 0): the scores below decide the visits."""
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


def test_gumbel_results_computed_by_hand() -> None:
    """Priors 2/3 and 1/3, afterstate values 1 and 3, rewards and state values 0: four simulations."""
    model = constant_model(2, [1.0])
    model.logits[:] = np.log([2 / 3, 1 / 3])
    model.q_values[:] = [1.0, 3.0]
    model.values[:] = 0.0
    # Halving of two actions: 0, 0, 1, 1 visits. The second action leads by σ = 5 > ln 2, so it is first. A
    # second visit backs up the outcome of value 0, which halves Q. σ = (50 + max N)·0.1·(0, 1).
    searches = [
        (1, [0, 1], np.array([1.0, 3.0]), 5.1),
        (2, [1, 1], np.array([1.0, 3.0]), 5.1),
        (3, [1, 2], np.array([1.0, 1.5]), 5.2),
        (4, [2, 2], np.array([0.5, 1.5]), 5.2),
    ]
    for simulations, visits, q, sigma in searches:
        result = search(model, model.roots(ONE_ROOT), free_rules(2), SearchConfig(simulations=simulations))
        assert result.visits[0].tolist() == visits
        np.testing.assert_array_equal(result.q_values[0], q)
        weights = np.array([2.0, np.exp(sigma)])
        policy = weights / weights.sum()
        np.testing.assert_allclose(result.policies[0], policy, atol=1e-6)
        assert result.values[0] == pytest.approx(policy @ q, abs=1e-6)


@BOTH
@pytest.mark.parametrize("scale", [1e-3, 0.37, 1000.0])
def test_the_scale_of_rewards_does_not_change_the_visits(selection: Selection, scale: float) -> None:
    discount, shift = 0.9, 7.0 * scale
    model = random_model(np.random.default_rng(1), 40)
    roots = np.arange(40)
    config = SearchConfig(selection, 50, discount, min_q_span=1e-9)
    expected = search(model, model.roots(roots), free_rules(3), config)
    model.rewards = scale * model.rewards + shift * (1.0 - discount)
    model.values, model.q_values = scale * model.values + shift, scale * model.q_values + shift
    got = search(model, model.roots(roots), free_rules(3), config)
    np.testing.assert_array_equal(got.visits, expected.visits)
    np.testing.assert_array_equal(got.actions, expected.actions)
    np.testing.assert_allclose(got.policies, expected.policies, atol=1e-4)
    np.testing.assert_allclose(got.values, scale * expected.values + shift, rtol=1e-5)


def test_q_values_within_the_minimum_span_keep_their_distance() -> None:
    """A distance of a tenth of `min_q_span` is 0.1 after scaling: σ = (50 + 1)·0.1·0.1 with one visit."""
    model = constant_model(2, [1.0])
    model.q_values[:] = [0.0, 0.001]
    config = SearchConfig(Selection.GUMBEL, simulations=1, min_q_span=0.01)
    policy = search(model, model.roots(ONE_ROOT), free_rules(2), config).policies[0]
    np.testing.assert_allclose(policy, [1 / (1 + np.exp(0.51)), 1 / (1 + np.exp(-0.51))], atol=1e-6)


@BOTH
def test_the_prior_decides_between_equal_values(selection: Selection) -> None:
    model = constant_model(3, [0.3, 0.4, 0.3])
    model.logits[:] = np.log([0.2, 0.5, 0.3])
    result = search(model, model.roots(ONE_ROOT), free_rules(3), SearchConfig(selection, 20))
    assert np.isfinite(result.policies).all()
    assert result.actions[0] == 1
    if selection is Selection.GUMBEL:
        np.testing.assert_allclose(result.policies[0], [0.2, 0.5, 0.3], atol=1e-6)
    else:
        assert result.visits[0].argsort().tolist() == [0, 2, 1]


@BOTH
def test_a_root_has_the_same_bits_in_any_batch(selection: Selection) -> None:
    model = random_model(np.random.default_rng(2), 300)
    rules, config, noise = free_rules(3), SearchConfig(selection, 25), _noise(0, 300, 3)
    together = search(model, model.roots(np.arange(300)), rules, config, noise)
    order = np.random.default_rng(4).permutation(300)
    for rows in [order[i : i + size] for size in (1, 7, 64, 300) for i in range(0, 300, size)]:
        part = search(
            model, model.roots(rows), rules, config, RootNoise(noise.gumbel[rows], noise.gamma[rows])
        )
        for name in ("policies", "values", "q_values", "visits", "actions", "outcome_probabilities"):
            assert getattr(part, name).tobytes() == getattr(together, name)[rows].tobytes(), name


@BOTH
@pytest.mark.parametrize("noise", [None, _noise(0, 40, 3)])
def test_a_repeated_search_gives_the_same_bits(selection: Selection, noise: RootNoise | None) -> None:
    model, config = random_model(np.random.default_rng(2), 40), SearchConfig(selection, 25)
    first, second = (grow(model, model.roots(np.arange(40)), free_rules(3), config, noise) for _ in range(2))
    for name in ("size", "children", "visits", "value_sum", "q_bounds"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes(), name


def test_dirichlet_noise_is_mixed_into_the_prior_of_the_root() -> None:
    """With three legal actions a Dirichlet(1) share has mean 1/3 and standard deviation √(1/18)."""
    model = random_model(np.random.default_rng(5), 1, 4)
    rules = ActionRules(np.array([[True, True, False, True]]), np.zeros((1, 4), np.int8))
    config = SearchConfig(Selection.PUCT, 1, dirichlet_fraction=0.4)
    draws = 4000
    roots, noise = model.roots(np.zeros(draws, np.int64)), _noise(0, draws, 4)
    quiet = grow(model, roots, rules, config).prior[:, 0]
    loud = grow(model, roots, rules, config, noise).prior[:, 0]
    weights = np.exp(model.logits[0]) * rules.legal[0]
    np.testing.assert_allclose(quiet, np.broadcast_to(weights / weights.sum(), quiet.shape), atol=1e-6)
    shares = noise.gamma * rules.legal
    shares /= shares.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(loud, 0.6 * quiet + 0.4 * shares, atol=1e-12)
    expected = 0.6 * quiet[0] + 0.4 * rules.legal[0] / 3
    np.testing.assert_allclose(loud.mean(axis=0), expected, atol=4 * 0.4 * np.sqrt(1 / 18 / draws))
    assert not loud[:, 2].any()


@BOTH
def test_noise_changes_only_the_root(selection: Selection) -> None:
    """The priors of all other nodes, and all logits, are those of the model."""
    model = random_model(np.random.default_rng(5), 20)
    roots, config = model.roots(np.arange(20)), SearchConfig(selection, 30)
    own = np.exp(model.logits) / np.exp(model.logits).sum(axis=1, keepdims=True)
    visits = []
    for noise in (None, _noise(1, 20, 3), _noise(2, 20, 3)):
        tree = grow(model, roots, free_rules(3), config, noise)
        for row in range(20):
            inner = tree.has_prior[row, : tree.size[row]].copy()
            inner[0] = noise is None or selection is Selection.GUMBEL
            states = tree.hidden[row, : tree.size[row], 0][inner].astype(np.int64)
            np.testing.assert_allclose(tree.prior[row, : tree.size[row], :3][inner], own[states], atol=1e-6)
            decisions = tree.has_prior[row, : tree.size[row]]
            assert not tree.is_chance[row, : tree.size[row]][decisions].any()
            states = tree.hidden[row, : tree.size[row], 0][decisions].astype(np.int64)
            logits = tree.logits[row, : tree.size[row], :3][decisions]
            np.testing.assert_allclose(logits, np.log(own[states]), atol=1e-6)
        visits.append(tree.visits.tobytes())
    assert len(set(visits)) == 3  # the noise does change the search


def test_gumbel_noise_draws_actions_from_the_policy() -> None:
    """With one simulation and equal values the search selects argmax g + logits, a draw from the softmax."""
    model = constant_model(4, [1.0])
    policy = np.array([0.1, 0.2, 0.3, 0.4])
    model.logits[:] = np.log(policy)
    draws = 4000
    roots = model.roots(np.zeros(draws, np.int64))
    result = search(model, roots, free_rules(4), SearchConfig(simulations=1), _noise(0, draws, 4))
    shares = np.bincount(result.actions, minlength=4) / draws
    np.testing.assert_allclose(shares, policy, atol=4 * np.sqrt(0.25 / draws))
    # The training target contains no noise.
    np.testing.assert_allclose(result.policies, np.broadcast_to(policy, (draws, 4)), atol=1e-6)


def test_only_the_actions_with_the_largest_logits_are_considered() -> None:
    model = constant_model(4, [1.0])
    model.logits[:] = np.log([0.1, 0.2, 0.4, 0.3])
    config = SearchConfig(simulations=9, max_considered_actions=2)
    result = search(model, model.roots(ONE_ROOT), free_rules(4), config)
    assert result.visits[0].tolist() == [0, 0, 5, 4]


@pytest.mark.parametrize(("simulations", "least_gain"), [(1, 0.84), (2, 0.84), (5, 0.85), (25, 0.89)])
def test_completed_q_improves_the_policy_when_q_is_exact(simulations: int, least_gain: float) -> None:
    """With an exact model no root loses true value. The mean gain of the best action is 1.03."""
    rng = np.random.default_rng(6)
    model = random_model(rng, 4096, 4)
    model.next_state[:] = np.arange(4096)[:, None, None]
    model.values[:] = 0.0
    model.rewards[:] = model.q_values[:, :, None]  # every outcome is worth the Q of the action
    q = model.q_values
    prior = np.exp(model.logits) / np.exp(model.logits).sum(axis=1, keepdims=True)
    config = SearchConfig(simulations=simulations, discount=0.0)
    result = search(model, model.roots(np.arange(4096)), free_rules(4), config)
    gain = (result.policies * q).sum(axis=1) - (prior * q).sum(axis=1)
    assert gain.min() > -1e-6  # float32
    assert gain.mean() > least_gain


@BOTH
def test_illegal_actions_get_no_probability_and_no_visit(selection: Selection) -> None:
    """Phase 0 allows actions 0 and 1, phase 1 allows 0 and 2; 1 leads to phase 1, 2 back to 0."""
    legal = np.array([[True, True, False], [True, False, True]])
    rules = ActionRules(legal, np.array([[0, 1, -1], [1, -1, 0]], np.int8))
    model = random_model(np.random.default_rng(7), 8)
    model.logits[:, 2] += 5.0  # the best action, illegal in phase 0
    model.q_values[:, 2] += 5.0
    roots = model.roots(np.arange(8), np.array([0, 1] * 4, np.int8))
    result = search(model, roots, rules, SearchConfig(selection, 80), _noise(1, 8, 3))
    legal = rules.legal[roots.phases]
    assert legal[np.arange(8), result.actions].all()
    assert not result.policies[~legal].any()
    assert not result.visits[~legal].any()
    assert not result.outcome_probabilities[~legal].any()
    assert np.isnan(result.q_values[~legal]).all()
    assert np.isfinite(result.q_values[legal]).all()
    np.testing.assert_allclose(result.policies.sum(axis=1), 1.0, atol=1e-6)


@BOTH
def test_each_level_of_all_trees_takes_one_call_per_kind(selection: Selection) -> None:
    model = random_model(np.random.default_rng(8), 50)
    search(model, model.roots(np.arange(50)), free_rules(3), SearchConfig(selection, simulations=5))
    assert model.calls[0] == ("afterstates", 150)
    # A simulation adds one node and may first need the policy of another: two rounds with up to three kinds
    # of calls, because trees can differ in what they need.
    assert len(model.calls) <= 1 + 3 * 2 * 5
    rows = {kind: sum(n for k, n in model.calls[1:] if k == kind) for kind in dict(model.calls)}
    assert rows["afterstates"] + rows["successors"] <= 5 * 50
    assert rows.get("policies", 0) <= rows["afterstates"]


@BOTH
def test_only_expanded_nodes_have_their_policy_evaluated(selection: Selection) -> None:
    model = random_model(np.random.default_rng(18), 50)
    tree = grow(model, model.roots(np.arange(50)), free_rules(3), SearchConfig(selection, simulations=25))
    evaluated = sum(rows for kind, rows in model.calls if kind == "policies")
    below = (tree.children[:, :, :3] != ABSENT).any(axis=2) & ~tree.is_chance
    np.testing.assert_array_equal(tree.has_prior, below)
    assert evaluated == below[:, 1:].sum()
    assert evaluated < (~tree.is_chance)[:, 1:].sum() / 2  # most decision nodes are leaves


def test_outcome_probabilities_are_those_of_the_model() -> None:
    model = random_model(np.random.default_rng(9), 3)
    result = search(model, model.roots(np.arange(3)), free_rules(3), SearchConfig())
    np.testing.assert_allclose(result.outcome_probabilities, model.probabilities, atol=1e-6)


@pytest.mark.parametrize("field", ["values", "q_values", "rewards", "logits"])
def test_a_number_that_is_not_finite_is_an_error(field: str) -> None:
    model = random_model(np.random.default_rng(10), 3)
    getattr(model, field)[...] = np.nan
    with pytest.raises(DataError, match="not finite"):
        search(model, model.roots(np.arange(3)), free_rules(3), SearchConfig(simulations=9))


def test_roots_that_do_not_fit_the_rules_are_refused() -> None:
    model = random_model(np.random.default_rng(11), 3)
    with pytest.raises(ShapeError, match="policy_logits"):
        search(model, model.roots(np.arange(3)), free_rules(4), SearchConfig())
    with pytest.raises(ShapeError, match="phases"):
        search(model, model.roots(np.arange(3), np.array([0, 1, 0], np.int8)), free_rules(3), SearchConfig())
    with pytest.raises(ShapeError, match=r"noise\.gumbel"):
        search(model, model.roots(np.arange(3)), free_rules(3), SearchConfig(), _noise(0, 2, 3))
    with pytest.raises(ShapeError, match="at least one root"):
        Roots(np.empty((0, 1), np.float32), *(np.empty((0, 3), np.float32),) * 2, np.empty(0, np.int8))
