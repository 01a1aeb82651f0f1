"""Stochastic Monte Carlo tree search over a batch of roots.

    plant the roots, evaluate all their legal afterstates in one call
    until every tree has had its simulations:
        walk on in each tree until it needs a node, or a node's policy, that is not known
        evaluate all of these, in one call a kind  ->  hang them into their trees and back up
    read targets, values and actions off the roots

One simulation evaluates one node, as docs/algorithm.md tells: an action's first visit backs up its
afterstate's Q, a later one lets the chance outcome that is most owed happen and backs up what follows.
Afterstates of the root are known from the start, so their first visits cost no call, and a tree goes on
with its next simulation at once. A node's policy is evaluated when a simulation first goes on from it.

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
    consider,
    considered_visits,
    gumbel_interior_action,
    gumbel_root_action,
    improved_policy,
    puct_action,
    visits_of,
)
from shared.search.tree import (
    ROOT,
    Tree,
    add_chance_nodes,
    add_decision_nodes,
    back_up,
    back_up_newest,
    planted,
    set_priors,
)


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
    schedule: Int32  # [A + 1, S] by considered actions: visits of the action to take in simulation t


@dataclass(frozen=True)
class _Wanted:
    """What to ask the model for, of one kind: of a node of a tree, or of what hangs there at a branch."""

    rows: Int32  # [B] the tree
    nodes: Int32  # [B]
    branches: Int8  # [B]

    @classmethod
    def blank(cls, batch: int) -> "_Wanted":
        return cls(np.empty(batch, np.int32), np.empty(batch, np.int32), np.empty(batch, np.int8))

    def first(self, count: int) -> "_Wanted":
        return _Wanted(self.rows[:count], self.nodes[:count], self.branches[:count])


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
    return _read(tree, plan)


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
    simulations = np.zeros(len(roots), np.int32)
    chance, decision, policy = (_Wanted.blank(len(roots)) for _ in range(3))
    while True:
        num_chance, num_decision, num_policy = _walk(
            tree, plan.rule, plan.num_outcomes, plan.gumbel, plan.considered, plan.schedule, simulations,
            chance.rows, chance.nodes, chance.branches, decision.rows, decision.nodes, decision.branches,
            policy.rows, policy.nodes,
        )  # fmt: skip
        if num_chance:
            _add_afterstates(model, tree, rules, chance.first(num_chance), config.discount)
        if num_decision:
            _add_successors(model, tree, decision.first(num_decision), config.discount)
        if num_policy:
            _add_policies(model, tree, rules, policy.first(num_policy))
        if not num_chance and not num_decision and not num_policy:
            return tree, plan


def _planted_with_afterstates(
    model: Model, roots: Roots, rules: ActionRules, simulations: int
) -> tuple[Tree, int]:
    """Trees of roots and all their legal afterstates, and the number of chance outcomes."""
    rows, actions = rules.legal[roots.phases].nonzero()
    wanted = _Wanted(rows.astype(np.int32), np.full(len(rows), ROOT, np.int32), actions.astype(np.int8))
    answer = model.afterstates(roots.hidden[rows], wanted.branches)
    num_outcomes = answer[1].shape[1]
    tree = planted(roots, rules, num_outcomes, simulations)
    _hang_afterstates(tree, rules, wanted, answer)
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
def _walk(
    tree: Tree,
    rule: Rule,
    num_outcomes: int,
    gumbel: Float64,
    considered: Bool,
    schedule: Int32,
    simulations: Int32,
    chance_rows: Int32,
    chance_nodes: Int32,
    chance_branches: Int8,
    decision_rows: Int32,
    decision_nodes: Int32,
    decision_branches: Int8,
    policy_rows: Int32,
    policy_nodes: Int32,
) -> tuple[int, int, int]:
    """Go on in every tree until something is missing or its simulations are over.

    Counts up `simulations` `[B]`, those begun, and writes what is missing into the last arrays: chance and
    decision nodes, by the node and branch where they will hang, and the policies of nodes, whose simulation
    begins anew. Returns how many there are of each.
    """
    num_actions = gumbel.shape[1]
    q, work = np.empty(num_actions), np.empty(num_actions)
    num_chance, num_decision, num_policy = 0, 0, 0
    for b in range(len(simulations)):
        entered = 0
        for a in range(num_actions):
            entered += considered[b, a]
        while simulations[b] < schedule.shape[1]:
            visits = schedule[entered, simulations[b]]
            node, child, branch = 0, 0, 0
            while child != -1:
                node = child
                if tree.is_chance[b, node]:
                    if tree.visits[b, node] == 0:
                        break
                    branch = chance_outcome(tree, b, node, num_outcomes)
                elif not tree.has_prior[b, node]:
                    break
                else:
                    completed_q(tree, b, node, num_actions, q)
                    if not rule.gumbel:
                        branch = puct_action(tree, b, node, q, rule)
                    elif node == 0:
                        branch = gumbel_root_action(tree, b, q, gumbel[b], considered[b], visits, rule, work)
                    else:
                        branch = gumbel_interior_action(tree, b, node, q, rule, work)
                child = tree.children[b, node, branch]
            if not tree.is_chance[b, node] and not tree.has_prior[b, node]:
                policy_rows[num_policy], policy_nodes[num_policy] = b, node
                num_policy += 1
                break
            simulations[b] += 1
            if child != -1:
                back_up(tree, b, node, rule.discount)
            elif tree.is_chance[b, node]:
                decision_rows[num_decision], decision_nodes[num_decision] = b, node
                decision_branches[num_decision] = branch
                num_decision += 1
                break
            else:
                chance_rows[num_chance], chance_nodes[num_chance] = b, node
                chance_branches[num_chance] = branch
                num_chance += 1
                break
    return num_chance, num_decision, num_policy


def _add_afterstates(model: Model, tree: Tree, rules: ActionRules, wanted: _Wanted, discount: float) -> None:
    """Evaluate chance nodes, hang them into their trees and back them up."""
    hidden = tree.hidden[wanted.rows, wanted.nodes]
    _hang_afterstates(tree, rules, wanted, model.afterstates(hidden, wanted.branches))
    back_up_newest(tree, wanted.rows, discount)


def _hang_afterstates(
    tree: Tree, rules: ActionRules, wanted: _Wanted, answer: tuple[Float32, Float32, Float32]
) -> None:
    finite = add_chance_nodes(tree, wanted.rows, wanted.nodes, wanted.branches, rules.successor, *answer)
    _require_finite("afterstates", finite)


def _add_successors(model: Model, tree: Tree, wanted: _Wanted, discount: float) -> None:
    """Evaluate decision nodes, hang them into their trees and back them up."""
    actions = tree.branch[wanted.rows, wanted.nodes]
    answer = model.successors(tree.hidden[wanted.rows, wanted.nodes], actions, wanted.branches)
    finite = add_decision_nodes(tree, wanted.rows, wanted.nodes, wanted.branches, *answer)
    _require_finite("successors", finite)
    back_up_newest(tree, wanted.rows, discount)


def _add_policies(model: Model, tree: Tree, rules: ActionRules, wanted: _Wanted) -> None:
    """Evaluate the policies of decision nodes."""
    logits = model.policies(tree.hidden[wanted.rows, wanted.nodes])
    _require_finite("policies", set_priors(tree, wanted.rows, wanted.nodes, rules.legal, logits))


def _require_finite(call: str, finite: bool) -> None:
    if not finite:
        raise DataError(f"the model's {call} are not finite: its weights are damaged or its input is")


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
    _read_roots(
        tree, plan.rule, plan.gumbel, plan.considered, result.policies, result.values, result.q_values,
        result.visits, result.actions, result.outcome_probabilities,
    )  # fmt: skip
    return result


@kernel
def _read_roots(
    tree: Tree,
    rule: Rule,
    gumbel: Float64,
    considered: Bool,
    policies: Float32,
    values: Float32,
    q_values: Float32,
    visits: Int32,
    actions: Int8,
    outcome_probabilities: Float32,
) -> None:
    """Write what each root's children say into the last six arrays."""
    num_actions = gumbel.shape[1]
    q, policy, work = np.empty(num_actions), np.empty(num_actions), np.empty(num_actions)
    for b in range(len(values)):
        completed_q(tree, b, 0, num_actions, q)
        most_visited, total = 0, 0
        for a in range(num_actions):
            q_values[b, a] = q[a]
            visits[b, a] = visits_of(tree, b, 0, a)
            total += visits[b, a]
            if visits[b, a] > visits[b, most_visited]:
                most_visited = a
            child = tree.children[b, 0, a]
            if child != -1:
                for c in range(outcome_probabilities.shape[2]):
                    outcome_probabilities[b, a, c] = tree.prior[b, child, c]
        if rule.gumbel:
            improved_policy(tree, b, 0, q, rule, policy)
            value = 0.0
            for a in range(num_actions):
                policies[b, a] = policy[a]
                if policy[a] > 0.0:
                    value += policy[a] * q[a]
            values[b] = value
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
