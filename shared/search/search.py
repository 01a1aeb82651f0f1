"""Stochastic Monte Carlo tree search over a batch of roots.

    plant the roots, evaluate all their legal afterstates in one call
    for each simulation:  select a path in every tree  ->  evaluate all new nodes  ->  back up in every tree
    read targets, values and actions off the roots

One simulation evaluates one node, as docs/algorithm.md tells: an action's first visit backs up its
afterstate's Q, a later one lets the chance outcome that is most owed happen and backs up what follows.
Afterstates of the root are known from the start, so their first visits cost no call.

The tree part treats each root alone, in float64: a root's tree is the same, bit for bit, whatever else is
in the batch, as long as the model's rows are (`Model` asks for that).
"""

from dataclasses import dataclass

import numpy as np

from shared.errors import DataError
from shared.numeric import Bool, Float32, Float64, Int8, Int32, kernel, require_shape
from shared.search.config import SearchConfig, Selection
from shared.search.model import ActionRules, Model, RootNoise, Roots
from shared.search.selection import (
    Rule,
    chance_outcome,
    completed_q,
    considered_visits,
    gumbel_interior_action,
    gumbel_root_action,
    improved_policy,
    puct_action,
    visits_of,
)
from shared.search.tree import ABSENT, ROOT, Tree, add_chance_nodes, add_decision_nodes, back_up, planted


@dataclass(frozen=True)
class SearchResult:
    """What the search says about each root.

    `policies` is the training target: for gumbel softmax(logits + σ(completed Q)), for puct visits / ΣN.
    `values` is the root's value: for puct W/N. Sequential halving gives every action visits whatever it
    is worth, so W/N would be the value of a policy nobody follows: for gumbel it is Σ π'(a) Q(a), the
    value of the improved policy.
    `actions` is the search's own choice: for puct the most visited action (of equals the one of greater
    Q), for gumbel the best g + logits + σ(Q) among the most visited; without noise it is the greedy one.
    """

    policies: Float32  # [B, A], 0 where illegal
    values: Float32  # [B] pips
    q_values: Float32  # [B, A] pips, completed; NaN where illegal
    visits: Int32  # [B, A]
    actions: Int8  # [B]
    outcome_probabilities: Float32  # [B, A, C], what the model expects after each action; 0 where illegal


@dataclass(frozen=True)
class _Plan:
    """What stays the same over all simulations."""

    rule: Rule
    num_outcomes: int
    gumbel: Float64  # [B, A]
    considered: Bool  # [B, A] actions that enter sequential halving
    schedule: Int32  # [B, S] visits that an action must have to be taken in simulation t


def search(
    model: Model, roots: Roots, rules: ActionRules, config: SearchConfig, noise: RootNoise | None = None
) -> SearchResult:
    """Search every root and tell what was found.

    Args:
        model: evaluates nodes.
        roots: the states to decide in.
        rules: legal actions, at the roots and along every path.
        config: selection rule and its numbers.
        noise: exploration at the roots only; None for evaluation and trading.
    Raises:
        ShapeError: arrays disagree.
        DataError: the model answered a number that is not finite.
    """
    tree, plan = _grow(model, roots, rules, config, noise)
    return _read(tree, plan, rules)


def grow(
    model: Model, roots: Roots, rules: ActionRules, config: SearchConfig, noise: RootNoise | None = None
) -> Tree:
    """The trees after all simulations, as `search` reads them; for inspection and tests."""
    return _grow(model, roots, rules, config, noise)[0]


def _grow(
    model: Model, roots: Roots, rules: ActionRules, config: SearchConfig, noise: RootNoise | None
) -> tuple[Tree, _Plan]:
    roots.check(rules)
    tree, num_outcomes = _planted_with_afterstates(model, roots, rules, config.simulations)
    plan = _plan(tree, rules, num_outcomes, config, noise)
    nodes = np.empty(len(roots), np.int32)
    branches = np.empty(len(roots), np.int8)
    missing = np.empty(len(roots), np.bool_)
    for simulation in range(config.simulations):
        visits = plan.schedule[:, simulation]
        _select(
            tree, plan.rule, plan.num_outcomes, plan.gumbel, plan.considered, visits, nodes, branches, missing
        )
        leaves = _expand(model, tree, rules, nodes, branches, missing)
        back_up(tree, leaves, config.discount)
    return tree, plan


def _planted_with_afterstates(
    model: Model, roots: Roots, rules: ActionRules, simulations: int
) -> tuple[Tree, int]:
    """Trees of roots and all their legal afterstates, and the number of chance outcomes."""
    legal_rows, legal_actions = rules.legal[roots.phases].nonzero()
    rows, actions = legal_rows.astype(np.int32), legal_actions.astype(np.int8)
    afterstates, outcomes, q_values = model.afterstates(roots.hidden[rows], actions)
    _require_finite("afterstates", outcomes, q_values)
    tree = planted(roots, rules, outcomes.shape[1], simulations)
    parents = np.full(len(rows), ROOT, np.int32)
    add_chance_nodes(tree, rows, parents, actions, rules.successor, afterstates, outcomes, q_values)
    return tree, outcomes.shape[1]


def _plan(
    tree: Tree, rules: ActionRules, num_outcomes: int, config: SearchConfig, noise: RootNoise | None
) -> _Plan:
    batch, num_actions = len(tree.size), rules.num_actions
    gumbel = np.zeros((batch, num_actions))
    legal = rules.legal[tree.phase[:, ROOT]]
    if noise is not None:
        require_shape("noise.gumbel", noise.gumbel, batch, num_actions)
        if config.selection is Selection.GUMBEL:
            gumbel = noise.gumbel
        else:
            shares = np.where(legal, noise.gamma, 0.0)
            shares /= shares.sum(axis=1, keepdims=True)
            prior = tree.prior[:, ROOT, :num_actions]
            prior += config.dirichlet_fraction * (shares - prior)
    # The best g + logits enter sequential halving; the stable sort lets the first of equals win.
    strength = gumbel + tree.logits[:, ROOT, :num_actions]
    rank = np.argsort(np.argsort(-strength, axis=1, kind="stable"), axis=1, kind="stable")
    considered = legal & (rank < config.max_considered_actions)
    table = considered_visits(num_actions, config.simulations)
    return _Plan(Rule.of(config), num_outcomes, gumbel, considered, table[considered.sum(axis=1)])


@kernel
def _select(
    tree: Tree,
    rule: Rule,
    num_outcomes: int,
    gumbel: Float64,
    considered: Bool,
    considered_visits: Int32,
    nodes: Int32,
    branches: Int8,
    missing: Bool,
) -> None:
    """Walk every tree from its root to the place of the next evaluation; the last three are written.

    Where `missing`, the node to make hangs under `nodes` at `branches`; elsewhere `nodes` is a node
    that is known and not visited yet.
    """
    num_actions = gumbel.shape[1]
    q, work = np.empty(num_actions), np.empty(num_actions)
    for b in range(len(nodes)):
        node, child, branch = 0, 0, 0
        while child != -1:
            node = child
            if tree.is_chance[b, node]:
                if tree.visits[b, node] == 0:
                    break
                branch = chance_outcome(tree, b, node, num_outcomes)
            else:
                completed_q(tree, b, node, num_actions, q)
                if not rule.gumbel:
                    branch = puct_action(tree, b, node, q, rule)
                elif node == 0:
                    branch = gumbel_root_action(
                        tree, b, q, gumbel[b], considered[b], considered_visits[b], rule, work
                    )
                else:
                    branch = gumbel_interior_action(tree, b, node, q, rule, work)
            child = tree.children[b, node, branch]
        nodes[b], branches[b], missing[b] = node, branch, child == -1


def _expand(
    model: Model, tree: Tree, rules: ActionRules, nodes: Int32, branches: Int8, missing: Bool
) -> Int32:
    """Make the missing nodes, all of one kind in one call; the leaf of every tree, `[B]`."""
    rows = missing.nonzero()[0].astype(np.int32)
    below_chance = tree.is_chance[rows, nodes[rows]]
    chance, decision = rows[~below_chance], rows[below_chance]
    if chance.size:
        parents, actions = nodes[chance], branches[chance]
        afterstates, outcome_probabilities, q_values = model.afterstates(
            tree.hidden[chance, parents], actions
        )
        _require_finite("afterstates", outcome_probabilities, q_values)
        add_chance_nodes(
            tree, chance, parents, actions, rules.successor, afterstates, outcome_probabilities, q_values
        )
    if decision.size:
        parents, outcomes = nodes[decision], branches[decision]
        actions = tree.branch[decision, parents]
        hidden, rewards, policy_logits, values = model.successors(
            tree.hidden[decision, parents], actions, outcomes
        )
        _require_finite("successors", rewards, policy_logits, values)
        add_decision_nodes(
            tree, decision, parents, outcomes, rules.legal, hidden, rewards, policy_logits, values
        )
    return np.where(missing, tree.size - 1, nodes).astype(np.int32)


def _require_finite(call: str, *numbers: Float32) -> None:
    if not all(np.isfinite(array).all() for array in numbers):
        raise DataError(f"the model's {call} are not finite: its weights are damaged or its input is")


def _read(tree: Tree, plan: _Plan, rules: ActionRules) -> SearchResult:
    batch, num_actions = plan.gumbel.shape
    policies = np.zeros((batch, num_actions))
    values = np.zeros(batch)
    q_values = np.zeros((batch, num_actions))
    visits = np.zeros((batch, num_actions), np.int32)
    actions = np.zeros(batch, np.int8)
    _read_roots(tree, plan.rule, plan.gumbel, plan.considered, policies, values, q_values, visits, actions)
    below = np.where(tree.children[:, ROOT, :num_actions] == ABSENT, 0, tree.children[:, ROOT, :num_actions])
    expected = tree.prior[np.arange(batch)[:, None], below, : plan.num_outcomes]
    expected[~rules.legal[tree.phase[:, ROOT]]] = 0.0
    return SearchResult(
        policies.astype(np.float32),
        values.astype(np.float32),
        q_values.astype(np.float32),
        visits,
        actions,
        expected.astype(np.float32),
    )


@kernel
def _read_roots(
    tree: Tree,
    rule: Rule,
    gumbel: Float64,
    considered: Bool,
    policies: Float64,
    values: Float64,
    q_values: Float64,
    visits: Int32,
    actions: Int8,
) -> None:
    """Write what each root's children say into the last five arrays."""
    num_actions = gumbel.shape[1]
    work = np.empty(num_actions)
    for b in range(len(values)):
        q = q_values[b]
        completed_q(tree, b, 0, num_actions, q)
        most_visited, total = 0, 0
        for a in range(num_actions):
            visits[b, a] = visits_of(tree, b, 0, a)
            total += visits[b, a]
            if visits[b, a] > visits[b, most_visited]:
                most_visited = a
        if rule.gumbel:
            improved_policy(tree, b, 0, q, rule, policies[b])
            for a in range(num_actions):
                if policies[b, a] > 0.0:
                    values[b] += policies[b, a] * q[a]
            actions[b] = gumbel_root_action(
                tree, b, q, gumbel[b], considered[b], visits[b, most_visited], rule, work
            )
        else:
            values[b] = tree.value_sum[b, 0] / tree.visits[b, 0]
            for a in range(num_actions):
                policies[b, a] = visits[b, a] / total
                if visits[b, a] == visits[b, most_visited] and q[a] > q[most_visited]:
                    most_visited = a
            actions[b] = most_visited
