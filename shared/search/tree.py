"""The search trees of a batch of roots as arrays, and the functions that change them.

A decision node holds a state, a chance node an afterstate; the two kinds alternate along every path. Node 0
is the root. A node is added when the model evaluates it. The chance nodes below the root are added together
with the root, before their first visit, because one model call evaluates all legal afterstates of all roots.
A decision node gets its prior when a simulation first selects an action there; most nodes never need one.

Values follow docs/algorithm.md. The edge from a decision to a chance node carries no reward and no
discount; the edge from a chance node to the next decision carries the bar's reward and γ:

    backup of G from a node to the root:  W += G, N += 1;  G <- r + γ G if the node is a decision node
    Q(s, a) = W(as) / N(as);  V(s) = W(s) / N(s)
"""

from typing import NamedTuple, cast

import numpy as np

from shared.numeric import Bool, Float32, Float64, Int8, Int32, kernel
from shared.search.model import ActionRules, Roots

#: Index of the root in every tree.
ROOT = cast("int", np.int64(0))  # Numba would compile the functions of a node once more for a literal 0

#: Index of a parent or child that does not exist.
ABSENT = -1


class Tree(NamedTuple):
    """Trees of `B` roots with capacity for `N` nodes each; `W` is the larger of `A` and `C`."""

    size: Int32  # [B] nodes in use
    parent: Int32  # [B, N], ABSENT at the root
    branch: Int8  # [B, N] the action or outcome that leads here from the parent
    children: Int32  # [B, N, W], ABSENT if not in the tree
    is_chance: Bool  # [B, N]
    has_prior: Bool  # [B, N] whether logits and prior of a decision node are set
    phase: Int8  # [B, N] row of the action rules; a chance node holds the phase of its successors
    visits: Int32  # [B, N]
    value_sum: Float64  # [B, N] pips
    raw_value: Float64  # [B, N] pips, the model's estimate
    reward: Float64  # [B, N] pips, on the edge from the parent; 0 at chance nodes
    logits: Float64  # [B, N, W] log prior of the actions, -inf where illegal
    prior: Float64  # [B, N, W] probability of each action or chance outcome
    q_bounds: Float64  # [B, 2] pips, smallest and largest value in the tree
    hidden: Float32  # [B, N, H]


def create_trees(roots: Roots, rules: ActionRules, num_outcomes: int, simulations: int) -> Tree:
    """Create trees that hold only the root, with one visit and its predicted value."""
    batch, width = len(roots), max(rules.num_actions, num_outcomes)
    nodes = 1 + rules.num_actions + simulations
    tree = Tree(
        size=np.empty(batch, np.int32),
        parent=np.empty((batch, nodes), np.int32),
        branch=np.empty((batch, nodes), np.int8),
        children=np.empty((batch, nodes, width), np.int32),
        is_chance=np.empty((batch, nodes), np.bool_),
        has_prior=np.empty((batch, nodes), np.bool_),
        phase=np.empty((batch, nodes), np.int8),
        visits=np.empty((batch, nodes), np.int32),
        value_sum=np.empty((batch, nodes)),
        raw_value=np.empty((batch, nodes)),
        reward=np.empty((batch, nodes)),
        logits=np.empty((batch, nodes, width)),
        prior=np.empty((batch, nodes, width)),
        q_bounds=np.empty((batch, 2)),
        hidden=np.empty((batch, nodes, roots.hidden.shape[1]), np.float32),
    )
    _write_roots(tree, rules.legal, roots.hidden, roots.policy_logits, roots.values, roots.phases)
    return tree


@kernel
def _write_roots(
    tree: Tree, legal: Bool, hidden: Float32, policy_logits: Float32, values: Float32, phases: Int8
) -> None:
    """Write the roots. Their prior is the softmax of the logits over the legal actions."""
    for b in range(len(values)):
        for node in range(tree.parent.shape[1]):
            _clear_node(tree, b, node)
        tree.size[b] = 1
        tree.phase[b, ROOT] = phases[b]
        tree.visits[b, ROOT] = 1
        tree.raw_value[b, ROOT] = tree.value_sum[b, ROOT] = values[b]
        tree.q_bounds[b, 0] = tree.q_bounds[b, 1] = values[b]
        for i in range(hidden.shape[1]):
            tree.hidden[b, ROOT, i] = hidden[b, i]
        _set_prior(tree, b, ROOT, legal[phases[b]], policy_logits[b])


@kernel
def _clear_node(tree: Tree, b: int, node: int) -> None:
    """Reset a node to unused: no parent, visits, children or prior."""
    tree.parent[b, node] = ABSENT
    tree.branch[b, node] = tree.phase[b, node] = tree.visits[b, node] = 0
    tree.is_chance[b, node] = tree.has_prior[b, node] = False
    tree.value_sum[b, node] = tree.raw_value[b, node] = tree.reward[b, node] = 0.0
    for branch in range(tree.children.shape[2]):
        tree.children[b, node, branch] = ABSENT
        tree.logits[b, node, branch] = -np.inf
        tree.prior[b, node, branch] = 0.0


@kernel
def _set_prior(tree: Tree, b: int, node: int, legal: Bool, policy_logits: Float32) -> None:
    """Set the prior of a decision node; illegal actions get probability 0 and logit -inf."""
    highest = -np.inf
    for a in range(len(legal)):
        if legal[a]:
            highest = max(highest, policy_logits[a])
    total = 0.0
    for a in range(len(legal)):
        if legal[a]:
            tree.prior[b, node, a] = np.exp(policy_logits[a] - highest)
            total += tree.prior[b, node, a]
    for a in range(len(legal)):
        if legal[a]:
            tree.prior[b, node, a] /= total
            tree.logits[b, node, a] = policy_logits[a] - highest - np.log(total)
    tree.has_prior[b, node] = True


@kernel
def set_priors(tree: Tree, rows: Int32, nodes: Int32, legal: Bool, policy_logits: Float32) -> bool:
    """Set the prior of decision node `nodes[i]` in tree `rows[i]` for each row i.

    Returns:
        Whether every logit is finite.
    """
    finite = True
    for i in range(len(rows)):
        _set_prior(tree, rows[i], nodes[i], legal[tree.phase[rows[i], nodes[i]]], policy_logits[i])
        for a in range(policy_logits.shape[1]):
            finite &= np.isfinite(policy_logits[i, a])
    return finite


@kernel
def _add_node(tree: Tree, b: int, parent: int, branch: int, value: float, hidden: Float32) -> int:
    """Add a child of `parent` with no visits and return its index."""
    node = tree.size[b]
    tree.size[b] += 1
    tree.parent[b, node] = parent
    tree.branch[b, node] = branch
    tree.children[b, parent, branch] = node
    tree.is_chance[b, node] = not tree.is_chance[b, parent]
    tree.raw_value[b, node] = value
    for i in range(len(hidden)):
        tree.hidden[b, node, i] = hidden[i]
    _widen_bounds(tree, b, value)
    return int(node)


@kernel
def add_chance_nodes(
    tree: Tree,
    rows: Int32,
    parents: Int32,
    actions: Int8,
    successor: Int8,
    afterstates: Float32,
    outcome_probabilities: Float32,
    q_values: Float32,
) -> bool:
    """Add the chance node of `actions[i]` below node `parents[i]` in tree `rows[i]` for each row i.

    Returns:
        Whether every probability and Q-value is finite.
    """
    finite = True
    for i in range(len(rows)):
        b = rows[i]
        node = _add_node(tree, b, parents[i], actions[i], q_values[i], afterstates[i])
        tree.phase[b, node] = successor[tree.phase[b, parents[i]], actions[i]]
        finite &= np.isfinite(q_values[i])
        for c in range(outcome_probabilities.shape[1]):
            tree.prior[b, node, c] = outcome_probabilities[i, c]
            finite &= np.isfinite(outcome_probabilities[i, c])
    return finite


@kernel
def add_decision_nodes(
    tree: Tree,
    rows: Int32,
    parents: Int32,
    outcomes: Int8,
    hidden: Float32,
    rewards: Float32,
    values: Float32,
) -> bool:
    """Add the decision node of `outcomes[i]` below node `parents[i]` in tree `rows[i]` for each row i.

    Returns:
        Whether every reward and value is finite.
    """
    finite = True
    for i in range(len(rows)):
        b = rows[i]
        node = _add_node(tree, b, parents[i], outcomes[i], values[i], hidden[i])
        tree.phase[b, node] = tree.phase[b, parents[i]]
        tree.reward[b, node] = rewards[i]
        finite &= np.isfinite(values[i]) and np.isfinite(rewards[i])
    return finite


@kernel
def back_up_newest(tree: Tree, rows: Int32, discount: float) -> None:
    """Back up the newest node of each tree in `rows`."""
    for b in rows:
        back_up(tree, b, tree.size[b] - 1, discount)


@kernel
def back_up(tree: Tree, b: int, leaf: int, discount: float) -> None:
    """Add a leaf's value and one visit to every node from the leaf to the root."""
    node = leaf
    value = tree.raw_value[b, node]
    while node != ABSENT:
        tree.value_sum[b, node] += value
        tree.visits[b, node] += 1
        if tree.is_chance[b, node]:
            _widen_bounds(tree, b, tree.value_sum[b, node] / tree.visits[b, node])
        else:
            value = tree.reward[b, node] + discount * value
        node = tree.parent[b, node]


@kernel
def _widen_bounds(tree: Tree, b: int, value: float) -> None:
    """Extend the Q bounds of one tree to include a value."""
    tree.q_bounds[b, 0] = min(tree.q_bounds[b, 0], value)
    tree.q_bounds[b, 1] = max(tree.q_bounds[b, 1], value)
