"""The rules that select the child a simulation descends to, and the policy targets at the root.

Every rule uses one *completed* Q per action (Danihelka et al. 2022). It is W/N if the action was visited,
else the model's value of the afterstate if the tree holds it, else v_mix: the node's value mixed with the
values of its visited children.

Arguments of the kernels: `b` is the tree, `node` a decision node in it, `q` `[A]` the completed Q-values of
that node, `gumbel` the Gumbel noise g at the root, `work` `[A]` scratch space.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from shared.numeric import Bool, Float64, Int32, kernel
from shared.search.config import SearchConfig, Selection
from shared.search.tree import ABSENT, ROOT, Tree


class Rule(NamedTuple):
    """The parameters of a `SearchConfig` that the kernels use."""

    gumbel: bool
    discount: float
    min_q_span: float
    pb_c_init: float
    pb_c_base: float
    c_visit: float
    c_scale: float

    @classmethod
    def of(cls, config: SearchConfig) -> "Rule":
        """Copy the parameters from the settings."""
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
def consider(tree: Tree, gumbel: Float64, max_actions: int, considered: Bool) -> None:
    """Mark the actions that enter sequential halving: the legal ones with the largest g + logits.

    Among equal actions the first one wins.
    """
    num_actions = gumbel.shape[1]
    for b in range(len(gumbel)):
        for a in range(num_actions):
            score, rank = gumbel[b, a] + tree.logits[b, ROOT, a], 0
            for other in range(num_actions):
                other_score = gumbel[b, other] + tree.logits[b, ROOT, other]
                rank += other_score > score or (other_score == score and other < a)
            considered[b, a] = rank < max_actions and tree.logits[b, ROOT, a] != -np.inf


@lru_cache(maxsize=64)
def considered_visits(num_actions: int, simulations: int) -> Int32:
    """The schedule of sequential halving: simulation t selects among actions with this many visits.

    Row m of the table `[num_actions + 1, simulations]` is the schedule for m considered actions. First every
    action is visited in turn, then the better half again, and so on until two are left. With 4 actions and
    5 simulations the row is 0, 0, 0, 0, 1.

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
    remaining = considered
    sequence: list[int] = []
    while len(sequence) < simulations:
        for _ in range(max(1, simulations // (rounds * remaining))):
            sequence += visits[:remaining]
            visits[:remaining] = [count + 1 for count in visits[:remaining]]
        remaining = max(2, remaining // 2)
    return sequence[:simulations]


@kernel
def completed_q(tree: Tree, b: int, node: int, num_actions: int, q: Float64) -> None:
    """Write the completed Q of every legal action into `q` `[A]`, NaN where illegal.

    v_mix = (v + ΣN · Σ_{N>0} p q / Σ_{N>0} p) / (1 + ΣN); the sums are over the visited actions.
    """
    visits, prior, weighted = 0, 0.0, 0.0
    unknown = False
    for a in range(num_actions):
        q[a] = np.nan
        if tree.logits[b, node, a] == -np.inf:
            continue
        child = tree.children[b, node, a]
        if child == ABSENT:
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
        if tree.logits[b, node, a] != -np.inf and tree.children[b, node, a] == ABSENT:
            q[a] = mixed


@kernel
def sigma(tree: Tree, b: int, node: int, q: Float64, rule: Rule, out: Float64) -> None:
    """Write σ(q) = (c_visit + max N) c_scale q' into `out`; q' is q scaled to [0, 1]. NaN where illegal."""
    least, greatest, most_visits = np.inf, -np.inf, 0
    for a in range(len(q)):
        if np.isnan(q[a]):
            continue
        least, greatest = min(least, q[a]), max(greatest, q[a])
        child = tree.children[b, node, a]
        if child != ABSENT:
            most_visits = max(most_visits, tree.visits[b, child])
    scale = (rule.c_visit + most_visits) * rule.c_scale / max(greatest - least, rule.min_q_span)
    for a in range(len(q)):
        out[a] = (q[a] - least) * scale


@kernel
def improved_policy(tree: Tree, b: int, node: int, q: Float64, rule: Rule, out: Float64) -> None:
    """Write the Gumbel policy target softmax(logits + σ(completed q)) into `out`; 0 where illegal."""
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
    """The visit count of a child, 0 if the child is not in the tree."""
    child = tree.children[b, node, branch]
    return 0 if child == ABSENT else int(tree.visits[b, child])


@kernel
def puct_action(tree: Tree, b: int, node: int, q: Float64, rule: Rule) -> int:
    """Select argmax Qn + p √N(s) / (1 + N(as)) (c1 + ln((N(s) + c2 + 1) / c2)). The first of equals wins.

    Qn is Q scaled by the bounds of all Q-values in the tree. Source: Schrittwieser et al. 2020, appendix B.
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
    """Select argmax g + logits + σ(completed q) over the considered actions with `visits` visits."""
    sigma(tree, b, ROOT, q, rule, work)
    best, best_score = -1, -np.inf
    for a in range(len(q)):
        if not considered[a] or visits_of(tree, b, ROOT, a) != visits:
            continue
        score = gumbel[a] + tree.logits[b, ROOT, a] + work[a]
        if best == -1 or score > best_score:
            best, best_score = a, score
    return best


@kernel
def gumbel_interior_action(tree: Tree, b: int, node: int, q: Float64, rule: Rule, work: Float64) -> int:
    """Select argmax π'(a) - N(as) / (1 + ΣN), so that visits stay proportional to the improved policy π'."""
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
    """Select argmax p(c) / (1 + n(c)), so that visits stay proportional to p (D'Hondt's method)."""
    best, best_score = 0, -np.inf
    for c in range(num_outcomes):
        score = tree.prior[b, node, c] / (1.0 + visits_of(tree, b, node, c))
        if score > best_score:
            best, best_score = c, score
    return best
