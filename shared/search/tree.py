"""The trees of all roots, as arrays, and the steps that change them.

Decision nodes hold a state, chance nodes an afterstate; they alternate along every path. Node 0 is the
root. A node is made when the model evaluates it; a chance node below the root is made together with
the root, before its first visit, because all legal afterstates of the roots are one call to the model.
A decision node gets its prior when a simulation first goes on from it: most never need one.

Values follow docs/algorithm.md. The edge from a decision to a chance node carries no reward and no
discount; the edge from a chance node to the next decision carries the bar's reward and γ:

    backup of G from a node upward:  W += G, N += 1;  G <- r + γ G when the node is a decision
    Q(s, a) = W(as) / N(as);  V(s) = W(s) / N(s)
"""

from typing import NamedTuple

import numpy as np

from shared.numeric import Bool, Float32, Float64, Int8, Int32, kernel
from shared.search.model import ActionRules, Roots

ROOT = 0
ABSENT = -1


class Tree(NamedTuple):
    """Trees of `B` roots with room for `N` nodes each; `W` is the larger of `A` and `C`."""

    size: Int32  # [B] nodes in use
    parent: Int32  # [B, N], ABSENT at the root
    branch: Int8  # [B, N] the action or outcome that leads here from the parent
    children: Int32  # [B, N, W], ABSENT where there is none
    is_chance: Bool  # [B, N]
    has_prior: Bool  # [B, N] at decision nodes: whether logits and prior are known yet
    phase: Int8  # [B, N] row of the action rules; at a chance node the one its successors have
    visits: Int32  # [B, N]
    value_sum: Float64  # [B, N] pips
    raw_value: Float64  # [B, N] pips, the model's own estimate
    reward: Float64  # [B, N] pips, on the edge from the parent; 0 at chance nodes
    logits: Float64  # [B, N, W] decision nodes: log of the prior, -inf where illegal
    prior: Float64  # [B, N, W] probabilities of the actions, or of the outcomes
    q_bounds: Float64  # [B, 2] least and greatest value seen in the tree, pips
    hidden: Float32  # [B, N, H]


def planted(roots: Roots, rules: ActionRules, num_outcomes: int, simulations: int) -> Tree:
    """Trees that hold their roots only, each visited once with its own value."""
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
    _plant(tree, rules.legal, roots.hidden, roots.policy_logits, roots.values, roots.phases)
    return tree


@kernel
def _plant(
    tree: Tree, legal: Bool, hidden: Float32, policy_logits: Float32, values: Float32, phases: Int8
) -> None:
    """Write the roots; their prior is the softmax of the logits over the legal actions."""
    for b in range(len(values)):
        for node in range(tree.parent.shape[1]):
            blank_node(tree, b, node)
        tree.size[b] = 1
        tree.phase[b, 0] = phases[b]
        tree.visits[b, 0] = 1
        tree.raw_value[b, 0] = tree.value_sum[b, 0] = values[b]
        tree.q_bounds[b, 0] = tree.q_bounds[b, 1] = values[b]
        for i in range(hidden.shape[1]):
            tree.hidden[b, 0, i] = hidden[b, i]
        set_prior(tree, b, 0, legal[phases[b]], policy_logits[b])


@kernel
def blank_node(tree: Tree, b: int, node: int) -> None:
    """A node that is not in use: no visits, no children, nothing known."""
    tree.parent[b, node] = -1
    tree.branch[b, node] = tree.phase[b, node] = tree.visits[b, node] = 0
    tree.is_chance[b, node] = tree.has_prior[b, node] = False
    tree.value_sum[b, node] = tree.raw_value[b, node] = tree.reward[b, node] = 0.0
    for branch in range(tree.children.shape[2]):
        tree.children[b, node, branch] = -1
        tree.logits[b, node, branch] = -np.inf
        tree.prior[b, node, branch] = 0.0


@kernel
def set_prior(tree: Tree, b: int, node: int, legal: Bool, policy_logits: Float32) -> None:
    """Give a decision node its prior; illegal actions get probability 0 and logit -inf."""
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
    """Give each row's decision node its prior; all arrays are by row.

    Returns whether every number was finite.
    """
    finite = True
    for i in range(len(rows)):
        set_prior(tree, rows[i], nodes[i], legal[tree.phase[rows[i], nodes[i]]], policy_logits[i])
        for a in range(policy_logits.shape[1]):
            finite &= np.isfinite(policy_logits[i, a])
    return finite


@kernel
def add_node(tree: Tree, b: int, parent: int, branch: int, value: float, hidden: Float32) -> int:
    """Hang a new node under `parent`; its visits are still zero."""
    node = tree.size[b]
    tree.size[b] += 1
    tree.parent[b, node] = parent
    tree.branch[b, node] = branch
    tree.children[b, parent, branch] = node
    tree.is_chance[b, node] = not tree.is_chance[b, parent]
    tree.raw_value[b, node] = value
    for i in range(len(hidden)):
        tree.hidden[b, node, i] = hidden[i]
    widen_bounds(tree, b, value)
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
    """Hang the chance node of each row's action under its parent; all arrays are by row.

    Returns whether every number was finite.
    """
    finite = True
    for i in range(len(rows)):
        b = rows[i]
        node = add_node(tree, b, parents[i], actions[i], q_values[i], afterstates[i])
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
    """Hang the decision node of each row's outcome under its parent; all arrays are by row.

    Returns whether every number was finite.
    """
    finite = True
    for i in range(len(rows)):
        b = rows[i]
        node = add_node(tree, b, parents[i], outcomes[i], values[i], hidden[i])
        tree.phase[b, node] = tree.phase[b, parents[i]]
        tree.reward[b, node] = rewards[i]
        finite &= np.isfinite(values[i]) and np.isfinite(rewards[i])
    return finite


@kernel
def back_up_newest(tree: Tree, rows: Int32, discount: float) -> None:
    """Back up the node that was added last to the tree of each row."""
    for b in rows:
        back_up(tree, b, tree.size[b] - 1, discount)


@kernel
def back_up(tree: Tree, b: int, leaf: int, discount: float) -> None:
    """Back up a leaf's value to its root."""
    node = leaf
    value = tree.raw_value[b, node]
    while node != -1:
        tree.value_sum[b, node] += value
        tree.visits[b, node] += 1
        if tree.is_chance[b, node]:
            widen_bounds(tree, b, tree.value_sum[b, node] / tree.visits[b, node])
        else:
            value = tree.reward[b, node] + discount * value
        node = tree.parent[b, node]


@kernel
def widen_bounds(tree: Tree, b: int, value: float) -> None:
    """Let the bounds of Q in one tree take in a value."""
    tree.q_bounds[b, 0] = min(tree.q_bounds[b, 0], value)
    tree.q_bounds[b, 1] = max(tree.q_bounds[b, 1], value)
