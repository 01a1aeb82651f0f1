"""Stochastic Monte Carlo tree search over a batch of roots.

    create a tree per root and evaluate all legal afterstates of the roots in one model call
    until every tree has run its simulations:
        run simulations in each tree until one needs a node, or the prior of a node, from the model
        evaluate these, one model call per kind  ->  add them to their trees and back up
    read policies, values and actions from the roots

Each simulation evaluates one node (docs/algorithm.md). The first visit to an action backs up the Q-value of
its afterstate. A later visit selects the chance outcome that is furthest below its share of visits and backs
up the state that follows. The afterstates of the root are evaluated at the start, so a first visit there
needs no model call, and the tree continues with its next simulation at once. The prior of a node is
evaluated when a simulation first selects an action there.

The tree code treats every root separately, in float64. If the model's rows do not depend on each other
(`Model` requires this), the tree of a root has the same bits in any batch.
"""

from typing import NamedTuple

import numpy as np

from shared.errors import DataError
from shared.numeric import Bool, Float32, Float64, Int8, Int32, kernel, require_shape
from shared.search.config import SearchConfig, Selection
from shared.search.model import ActionRules, Model, RootNoise, Roots
from shared.search.selection import (
    Rule,
    chance_outcome,
    completed_q,
    consider,
    considered_visits,
    gumbel_interior_action,
    gumbel_root_action,
    improved_policy,
    puct_action,
    visits_of,
)
from shared.search.tree import (
    ABSENT,
    ROOT,
    Tree,
    add_chance_nodes,
    add_decision_nodes,
    back_up,
    back_up_newest,
    create_trees,
    set_priors,
)


class SearchResult(NamedTuple):
    """The result of the search at each root.

    `policies` is the training target: softmax(logits + σ(completed Q)) for gumbel, visits / ΣN for puct.

    `values` is the value of the root. For puct it is W/N. For gumbel it is Σ π'(a) Q(a), the value of the
    improved policy: sequential halving also visits bad actions, so W/N would not be the value of any
    policy in use.

    `actions` is the action that the search selects. For puct it is the most visited one; if several are
    equal, the one with the larger Q. For gumbel it is the one with the largest g + logits + σ(Q) among the
    most visited ones; without noise this is the greedy action.
    """

    policies: Float32  # [B, A], 0 where illegal
    values: Float32  # [B] pips
    q_values: Float32  # [B, A] pips, completed; NaN where illegal
    visits: Int32  # [B, A]
    actions: Int8  # [B]
    outcome_probabilities: Float32  # [B, A, C] the model's prediction for each action; 0 where illegal


class _Plan(NamedTuple):
    """The inputs of a search that stay the same in all simulations."""

    rule: Rule
    num_outcomes: int
    gumbel: Float64  # [B, A]
    considered: Bool  # [B, A] actions that enter sequential halving
    schedule: Int32  # [A + 1, S] row m for m considered actions, see `considered_visits`


class Wanted(NamedTuple):
    """Nodes to evaluate with one model call; each row is a node, or the child of a node at a branch."""

    rows: Int32  # [B] tree
    nodes: Int32  # [B] node, or parent of the new node
    branches: Int8  # [B] branch of the parent; unused if the node itself is wanted

    @classmethod
    def blank(cls, batch: int) -> "Wanted":
        """Room for one node per tree."""
        return cls(np.empty(batch, np.int32), np.empty(batch, np.int32), np.empty(batch, np.int8))

    def first(self, count: int) -> "Wanted":
        """The first `count` rows."""
        return Wanted(self.rows[:count], self.nodes[:count], self.branches[:count])


def search(
    model: Model, roots: Roots, rules: ActionRules, config: SearchConfig, noise: RootNoise | None = None
) -> SearchResult:
    """Run the search at every root.

    Args:
        model: evaluates the nodes of the trees.
        roots: the states to search from.
        rules: the legal actions, at the roots and in the trees.
        config: the selection rule and its parameters.
        noise: exploration noise at the roots. Evaluation and trading pass None.
    Returns:
        The policy, value, Q-values and action of each root.
    Raises:
        ShapeError: the arrays do not fit together.
        DataError: the model returned a number that is not finite.
    """
    tree, plan = _grow(model, roots, rules, config, noise)
    return _read(tree, plan)


def grow(
    model: Model, roots: Roots, rules: ActionRules, config: SearchConfig, noise: RootNoise | None = None
) -> Tree:
    """Return the trees after all simulations; the arguments are those of `search`. For tests."""
    return _grow(model, roots, rules, config, noise)[0]


def _grow(
    model: Model, roots: Roots, rules: ActionRules, config: SearchConfig, noise: RootNoise | None
) -> tuple[Tree, _Plan]:
    roots.check(rules)
    tree, num_outcomes = _create_with_afterstates(model, roots, rules, config.simulations)
    plan = _plan(tree, rules, num_outcomes, config, noise)
    simulations = np.zeros(len(roots), np.int32)
    chance, decision, prior = (Wanted.blank(len(roots)) for _ in range(3))
    while True:
        num_chance, num_decision, num_prior = _simulate(tree, plan, simulations, chance, decision, prior)
        if num_chance:
            _add_afterstates(model, tree, rules, chance.first(num_chance), config.discount)
        if num_decision:
            _add_successors(model, tree, decision.first(num_decision), config.discount)
        if num_prior:
            _add_priors(model, tree, rules, prior.first(num_prior))
        if not num_chance and not num_decision and not num_prior:
            return tree, plan


def _create_with_afterstates(
    model: Model, roots: Roots, rules: ActionRules, simulations: int
) -> tuple[Tree, int]:
    """Create the trees with all legal afterstates of the roots; return also the number of outcomes."""
    rows, actions = rules.legal[roots.phases].nonzero()
    wanted = Wanted(rows.astype(np.int32), np.full(len(rows), ROOT, np.int32), actions.astype(np.int8))
    evaluated = model.afterstates(roots.hidden[rows], wanted.branches)
    num_outcomes = evaluated[1].shape[1]
    tree = create_trees(roots, rules, num_outcomes, simulations)
    _insert_afterstates(tree, rules, wanted, evaluated)
    return tree, num_outcomes


def _plan(
    tree: Tree, rules: ActionRules, num_outcomes: int, config: SearchConfig, noise: RootNoise | None
) -> _Plan:
    batch, num_actions = len(tree.size), rules.num_actions
    gumbel = np.zeros((batch, num_actions))
    if noise is not None:
        require_shape("noise.gumbel", noise.gumbel, batch, num_actions)
        if config.selection is Selection.GUMBEL:
            gumbel = noise.gumbel
        else:
            shares = np.where(rules.legal[tree.phase[:, ROOT]], noise.gamma, 0.0)
            shares /= shares.sum(axis=1, keepdims=True)
            prior = tree.prior[:, ROOT, :num_actions]
            prior += config.dirichlet_fraction * (shares - prior)
    considered = np.empty((batch, num_actions), np.bool_)
    consider(tree, gumbel, config.max_considered_actions, considered)
    schedule = considered_visits(num_actions, config.simulations)
    return _Plan(Rule.of(config), num_outcomes, gumbel, considered, schedule)


@kernel
def _simulate(
    tree: Tree, plan: _Plan, simulations: Int32, chance: Wanted, decision: Wanted, prior: Wanted
) -> tuple[int, int, int]:
    """Run simulations in every tree until one needs the model, or all have run.

    Args:
        tree: the trees; simulations that need no model call are backed up.
        plan: the selection rule and the schedule.
        simulations: `[B]` simulations started so far in each tree; updated.
        chance: receives the chance nodes to evaluate, as parent and action.
        decision: receives the decision nodes to evaluate, as parent and outcome.
        prior: receives the decision nodes without a prior. Their simulation restarts at the root later.
    Returns:
        The number of rows written to each of the last three.
    """
    rule, num_actions = plan.rule, plan.gumbel.shape[1]
    q, work = np.empty(num_actions), np.empty(num_actions)
    num_chance, num_decision, num_prior = 0, 0, 0
    for b in range(len(simulations)):
        gumbel, considered = plan.gumbel[b], plan.considered[b]
        num_considered = 0
        for a in range(num_actions):
            num_considered += considered[a]
        while simulations[b] < plan.schedule.shape[1]:
            visits = plan.schedule[num_considered, simulations[b]]
            node, child, branch = ROOT, ROOT, 0
            while child != ABSENT:
                node = child
                if tree.is_chance[b, node]:
                    if tree.visits[b, node] == 0:
                        break
                    branch = chance_outcome(tree, b, node, plan.num_outcomes)
                elif not tree.has_prior[b, node]:
                    break
                else:
                    completed_q(tree, b, node, num_actions, q)
                    if not rule.gumbel:
                        branch = puct_action(tree, b, node, q, rule)
                    elif node == ROOT:
                        branch = gumbel_root_action(tree, b, q, gumbel, considered, visits, rule, work)
                    else:
                        branch = gumbel_interior_action(tree, b, node, q, rule, work)
                child = tree.children[b, node, branch]
            if not tree.is_chance[b, node] and not tree.has_prior[b, node]:
                prior.rows[num_prior], prior.nodes[num_prior] = b, node
                num_prior += 1
                break
            simulations[b] += 1
            if child != ABSENT:
                back_up(tree, b, node, rule.discount)
            elif tree.is_chance[b, node]:
                decision.rows[num_decision], decision.nodes[num_decision] = b, node
                decision.branches[num_decision] = branch
                num_decision += 1
                break
            else:
                chance.rows[num_chance], chance.nodes[num_chance] = b, node
                chance.branches[num_chance] = branch
                num_chance += 1
                break
    return num_chance, num_decision, num_prior


def _add_afterstates(model: Model, tree: Tree, rules: ActionRules, wanted: Wanted, discount: float) -> None:
    """Evaluate chance nodes, add them to their trees and back them up."""
    hidden = tree.hidden[wanted.rows, wanted.nodes]
    _insert_afterstates(tree, rules, wanted, model.afterstates(hidden, wanted.branches))
    back_up_newest(tree, wanted.rows, discount)


def _insert_afterstates(
    tree: Tree, rules: ActionRules, wanted: Wanted, evaluated: tuple[Float32, Float32, Float32]
) -> None:
    finite = add_chance_nodes(tree, wanted.rows, wanted.nodes, wanted.branches, rules.successor, *evaluated)
    _require_finite("afterstates", finite)


def _add_successors(model: Model, tree: Tree, wanted: Wanted, discount: float) -> None:
    """Evaluate decision nodes, add them to their trees and back them up."""
    actions = tree.branch[wanted.rows, wanted.nodes]
    evaluated = model.successors(tree.hidden[wanted.rows, wanted.nodes], actions, wanted.branches)
    finite = add_decision_nodes(tree, wanted.rows, wanted.nodes, wanted.branches, *evaluated)
    _require_finite("successors", finite)
    back_up_newest(tree, wanted.rows, discount)


def _add_priors(model: Model, tree: Tree, rules: ActionRules, wanted: Wanted) -> None:
    """Evaluate the priors of decision nodes."""
    logits = model.policies(tree.hidden[wanted.rows, wanted.nodes])
    _require_finite("policies", set_priors(tree, wanted.rows, wanted.nodes, rules.legal, logits))


def _require_finite(call: str, finite: bool) -> None:
    if not finite:
        raise DataError(f"the model's {call} are not finite: its weights or its input are damaged")


def _read(tree: Tree, plan: _Plan) -> SearchResult:
    batch, num_actions = plan.gumbel.shape
    result = SearchResult(
        policies=np.zeros((batch, num_actions), np.float32),
        values=np.empty(batch, np.float32),
        q_values=np.empty((batch, num_actions), np.float32),
        visits=np.empty((batch, num_actions), np.int32),
        actions=np.empty(batch, np.int8),
        outcome_probabilities=np.zeros((batch, num_actions, plan.num_outcomes), np.float32),
    )
    _read_roots(tree, plan, result)
    return result


@kernel
def _read_roots(tree: Tree, plan: _Plan, result: SearchResult) -> None:
    """Fill `result` from the children of each root."""
    rule, num_actions = plan.rule, plan.gumbel.shape[1]
    q, policy, work = np.empty(num_actions), np.empty(num_actions), np.empty(num_actions)
    for b in range(len(result.values)):
        completed_q(tree, b, ROOT, num_actions, q)
        visits = result.visits[b]
        most_visited, total = 0, 0
        for a in range(num_actions):
            result.q_values[b, a] = q[a]
            visits[a] = visits_of(tree, b, ROOT, a)
            total += visits[a]
            if visits[a] > visits[most_visited]:
                most_visited = a
            child = tree.children[b, ROOT, a]
            if child != ABSENT:
                for c in range(plan.num_outcomes):
                    result.outcome_probabilities[b, a, c] = tree.prior[b, child, c]
        if rule.gumbel:
            improved_policy(tree, b, ROOT, q, rule, policy)
            value = 0.0
            for a in range(num_actions):
                result.policies[b, a] = policy[a]
                if policy[a] > 0.0:
                    value += policy[a] * q[a]
            result.values[b] = value
            result.actions[b] = gumbel_root_action(
                tree, b, q, plan.gumbel[b], plan.considered[b], visits[most_visited], rule, work
            )
        else:
            result.values[b] = tree.value_sum[b, ROOT] / tree.visits[b, ROOT]
            for a in range(num_actions):
                result.policies[b, a] = visits[a] / total
                if visits[a] == visits[most_visited] and q[a] > q[most_visited]:
                    most_visited = a
            result.actions[b] = most_visited
