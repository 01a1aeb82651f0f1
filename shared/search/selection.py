"""Which child a simulation goes to, and what the visited root says in the end.

All rules see one Q per action, *completed* (Danihelka et al. 2022): W/N where visited, else the
afterstate's own value where it is known, else v_mix, the node's value mixed with its visited children's.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from shared.numeric import Bool, Float64, Int32, kernel
from shared.search.config import SearchConfig, Selection
from shared.search.tree import Tree


class Rule(NamedTuple):
    """The numbers of a `SearchConfig` that the kernels need."""

    gumbel: bool
    discount: float
    min_q_span: float
    pb_c_init: float
    pb_c_base: float
    c_visit: float
    c_scale: float

    @classmethod
    def of(cls, config: SearchConfig) -> "Rule":
        """Take them from the settings."""
        return cls(
            config.selection is Selection.GUMBEL,
            config.discount,
            config.min_q_span,
            config.pb_c_init,
            config.pb_c_base,
            config.c_visit,
            config.c_scale,
        )


@kernel
def consider(tree: Tree, gumbel: Float64, most: int, considered: Bool) -> None:
    """The legal actions of greatest g + logits enter sequential halving; of equals the first one."""
    num_actions = gumbel.shape[1]
    for b in range(len(gumbel)):
        for a in range(num_actions):
            strength, stronger = gumbel[b, a] + tree.logits[b, 0, a], 0
            for other in range(num_actions):
                rival = gumbel[b, other] + tree.logits[b, 0, other]
                stronger += rival > strength or (rival == strength and other < a)
            considered[b, a] = stronger < most and tree.logits[b, 0, a] != -np.inf


@lru_cache(maxsize=64)
def considered_visits(num_actions: int, simulations: int) -> Int32:
    """Sequential halving as a table: in simulation t, actions with this many visits are considered.

    Row m, `[num_actions + 1, simulations]`, is for m considered actions: all of them get visits in turn,
    then the better half more, until two are left. 4 actions and 5 simulations: 0, 0, 0, 0, 1.

    Source: Karnin et al. 2013; the table is mctx's `seq_halving.get_sequence_of_considered_visits`.
    """
    table = np.empty((num_actions + 1, simulations), np.int32)
    for considered in range(num_actions + 1):
        table[considered] = _halving(considered, simulations)
    return table


def _halving(considered: int, simulations: int) -> list[int]:
    if considered <= 1:
        return list(range(simulations))
    rounds = int(np.ceil(np.log2(considered)))
    visits = [0] * considered
    left = considered
    sequence: list[int] = []
    while len(sequence) < simulations:
        for _ in range(max(1, simulations // (rounds * left))):
            sequence += visits[:left]
            visits[:left] = [count + 1 for count in visits[:left]]
        left = max(2, left // 2)
    return sequence[:simulations]


@kernel
def completed_q(tree: Tree, b: int, node: int, num_actions: int, q: Float64) -> None:
    """Write the completed Q of every legal action into `q` `[A]`, NaN where illegal.

    v_mix = (v + ΣN · Σ_{N>0} p q / Σ_{N>0} p) / (1 + ΣN), sums over the visited actions.
    """
    visits, prior, weighted = 0, 0.0, 0.0
    unknown = False
    for a in range(num_actions):
        q[a] = np.nan
        if tree.logits[b, node, a] == -np.inf:
            continue
        child = tree.children[b, node, a]
        if child == -1:
            unknown = True
        elif tree.visits[b, child] == 0:
            q[a] = tree.raw_value[b, child]
        else:
            q[a] = tree.value_sum[b, child] / tree.visits[b, child]
            visits += tree.visits[b, child]
            prior += tree.prior[b, node, a]
            weighted += tree.prior[b, node, a] * q[a]
    if not unknown:
        return
    mixed = tree.raw_value[b, node]
    if prior > 0.0:
        mixed = (mixed + visits * weighted / prior) / (1 + visits)
    for a in range(num_actions):
        if tree.logits[b, node, a] != -np.inf and tree.children[b, node, a] == -1:
            q[a] = mixed


@kernel
def sigma(tree: Tree, b: int, node: int, q: Float64, rule: Rule, out: Float64) -> None:
    """σ(q) = (c_visit + max N) c_scale q', with q' this node's Qs scaled to [0, 1]; NaN where illegal."""
    least, greatest, most_visits = np.inf, -np.inf, 0
    for a in range(len(q)):
        if np.isnan(q[a]):
            continue
        least, greatest = min(least, q[a]), max(greatest, q[a])
        child = tree.children[b, node, a]
        if child != -1:
            most_visits = max(most_visits, tree.visits[b, child])
    scale = (rule.c_visit + most_visits) * rule.c_scale / max(greatest - least, rule.min_q_span)
    for a in range(len(q)):
        out[a] = (q[a] - least) * scale


@kernel
def improved_policy(tree: Tree, b: int, node: int, q: Float64, rule: Rule, out: Float64) -> None:
    """Softmax(logits + σ(completed q)), 0 where illegal: the Gumbel policy target."""
    sigma(tree, b, node, q, rule, out)
    highest = -np.inf
    for a in range(len(q)):
        if not np.isnan(q[a]):
            out[a] += tree.logits[b, node, a]
            highest = max(highest, out[a])
    total = 0.0
    for a in range(len(q)):
        out[a] = 0.0 if np.isnan(q[a]) else np.exp(out[a] - highest)
        total += out[a]
    for a in range(len(q)):
        out[a] /= total


@kernel
def visits_of(tree: Tree, b: int, node: int, branch: int) -> int:
    """Visits of a child, 0 where there is none."""
    child = tree.children[b, node, branch]
    return 0 if child == -1 else int(tree.visits[b, child])


@kernel
def puct_action(tree: Tree, b: int, node: int, q: Float64, rule: Rule) -> int:
    """Argmax of Qn + p √N(s) / (1 + N(as)) (c1 + ln((N(s) + c2 + 1) / c2)); the first one of equals.

    Qn is Q scaled by the bounds of all Qs in the tree. Source: Schrittwieser et al. 2020, appendix B.
    """
    least = tree.q_bounds[b, 0]
    span = max(tree.q_bounds[b, 1] - least, rule.min_q_span)
    node_visits = tree.visits[b, node]
    weight = rule.pb_c_init + np.log((node_visits + rule.pb_c_base + 1.0) / rule.pb_c_base)
    best, best_score = -1, -np.inf
    for a in range(len(q)):
        if np.isnan(q[a]):
            continue
        bonus = tree.prior[b, node, a] * np.sqrt(node_visits) / (1 + visits_of(tree, b, node, a))
        score = (q[a] - least) / span + bonus * weight
        if score > best_score:
            best, best_score = a, score
    return best


@kernel
def gumbel_root_action(
    tree: Tree, b: int, q: Float64, gumbel: Float64, considered: Bool, visits: int, rule: Rule, work: Float64
) -> int:
    """Argmax of g + logits + σ(completed q) over the considered actions that were visited this often."""
    sigma(tree, b, 0, q, rule, work)
    best, best_score = -1, -np.inf
    for a in range(len(q)):
        if not considered[a] or visits_of(tree, b, 0, a) != visits:
            continue
        score = gumbel[a] + tree.logits[b, 0, a] + work[a]
        if best == -1 or score > best_score:
            best, best_score = a, score
    return best


@kernel
def gumbel_interior_action(tree: Tree, b: int, node: int, q: Float64, rule: Rule, work: Float64) -> int:
    """Argmax of π'(a) - N(as) / (1 + ΣN): visits are held in proportion to the improved policy π'."""
    improved_policy(tree, b, node, q, rule, work)
    total = 0
    for a in range(len(q)):
        total += visits_of(tree, b, node, a)
    best, best_score = -1, -np.inf
    for a in range(len(q)):
        if np.isnan(q[a]):
            continue
        score = work[a] - visits_of(tree, b, node, a) / (1.0 + total)
        if score > best_score:
            best, best_score = a, score
    return best


@kernel
def chance_outcome(tree: Tree, b: int, node: int, num_outcomes: int) -> int:
    """Argmax of p(c) / (1 + n(c)): the outcome whose share of the visits is still owed most (D'Hondt)."""
    best, best_score = 0, -np.inf
    for c in range(num_outcomes):
        score = tree.prior[b, node, c] / (1.0 + visits_of(tree, b, node, c))
        if score > best_score:
            best, best_score = c, score
    return best
