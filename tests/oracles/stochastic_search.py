"""The search of one root, with node objects and recursion instead of arrays: slow and simple.

Written from docs/algorithm.md, for deterministic searches (without noise at the root) in one phase in
which every action is legal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from shared.search.config import SearchConfig, Selection
from shared.search.model import Model


@dataclass
class Node:
    """A decision node (state) or a chance node (afterstate)."""

    hidden: float
    raw_value: float
    prior: list[float]  # of actions, or of outcomes
    reward: float = 0.0
    visits: int = 0
    value_sum: float = 0.0
    children: dict[int, Node] = field(default_factory=dict)

    @property
    def q(self) -> float:
        return self.value_sum / self.visits if self.visits else self.raw_value


class Search:
    """One root's tree."""

    def __init__(
        self, model: Model, hidden: float, logits: list[float], value: float, config: SearchConfig
    ) -> None:
        self.model, self.config = model, config
        self.root = Node(hidden, value, _softmax(logits), visits=1, value_sum=value)
        self.seen = [value]  # every value within the bounds of Q
        for action in range(len(logits)):
            self._expand_action(self.root, action)
        for simulation in range(config.simulations):
            self._simulate_from_root(simulation)

    def _simulate_from_root(self, simulation: int) -> None:
        if self.config.selection is Selection.PUCT:
            self._simulate(self.root)
            return
        considered = _halving(len(self.root.prior), self.config.simulations)[simulation]
        scores = {
            action: math.log(self.root.prior[action]) + sigma
            for action, sigma in enumerate(self._sigma(self.root))
            if self.root.children[action].visits == considered
        }
        self._visit_decision(self.root, max(scores, key=lambda action: scores[action]))

    def _simulate(self, node: Node) -> float:
        """Visit a decision node once more; return the backed-up value of the node."""
        scores = self._puct(node) if self.config.selection is Selection.PUCT else self._interior(node)
        return self._visit_decision(node, scores.index(max(scores)))

    def _visit_decision(self, node: Node, action: int) -> float:
        if action not in node.children:
            self._expand_action(node, action)
        child = node.children[action]
        value = child.raw_value if child.visits == 0 else self._visit_outcome(child, action)
        self._add(child, value)
        self.seen.append(child.q)
        self._add(node, value)
        return value

    def _visit_outcome(self, node: Node, action: int) -> float:
        """Select an outcome at a chance node; return its backed-up value, with reward and discount."""
        visits = [node.children[c].visits if c in node.children else 0 for c in range(len(node.prior))]
        owed = [p / (1 + n) for p, n in zip(node.prior, visits, strict=True)]
        outcome = owed.index(max(owed))
        if outcome in node.children:
            value = self._simulate(node.children[outcome])
        else:
            hidden, rewards, values = self.model.successors(
                np.array([[node.hidden]], np.float32),
                np.array([action], np.int8),
                np.array([outcome], np.int8),
            )
            value, logits = float(values[0]), self.model.policies(hidden)
            child = Node(float(hidden[0, 0]), value, _softmax(logits[0].tolist()), float(rewards[0]))
            node.children[outcome] = child
            self.seen.append(value)
            self._add(child, value)
        return node.children[outcome].reward + self.config.discount * value

    def _expand_action(self, node: Node, action: int) -> None:
        afterstates, outcomes, q_values = self.model.afterstates(
            np.array([[node.hidden]], np.float32), np.array([action], np.int8)
        )
        node.children[action] = Node(float(afterstates[0, 0]), float(q_values[0]), outcomes[0].tolist())
        self.seen.append(float(q_values[0]))

    @staticmethod
    def _add(node: Node, value: float) -> None:
        node.visits += 1
        node.value_sum += value

    def _visits(self, node: Node) -> list[int]:
        return [node.children[a].visits if a in node.children else 0 for a in range(len(node.prior))]

    def completed(self, node: Node) -> list[float]:
        """Q of every action; v_mix for unexpanded ones."""
        visits = self._visits(node)
        visited = [a for a, count in enumerate(visits) if count]
        mixed = node.raw_value
        if visited:
            mass = sum(node.prior[a] for a in visited)
            mean = sum(node.prior[a] * node.children[a].q for a in visited) / mass
            mixed = (node.raw_value + sum(visits) * mean) / (1 + sum(visits))
        return [node.children[a].q if a in node.children else mixed for a in range(len(node.prior))]

    def _sigma(self, node: Node) -> list[float]:
        q = self.completed(node)
        span = max(max(q) - min(q), self.config.min_q_span)
        scale = (self.config.c_visit + max(self._visits(node))) * self.config.c_scale
        return [scale * (value - min(q)) / span for value in q]

    def improved(self, node: Node) -> list[float]:
        """Softmax(logits + σ(completed Q))."""
        return _softmax([math.log(p) + s for p, s in zip(node.prior, self._sigma(node), strict=True)])

    def _interior(self, node: Node) -> list[float]:
        visits = self._visits(node)
        policy = self.improved(node)
        return [p - n / (1 + sum(visits)) for p, n in zip(policy, visits, strict=True)]

    def _puct(self, node: Node) -> list[float]:
        config = self.config
        span = max(max(self.seen) - min(self.seen), config.min_q_span)
        weight = config.pb_c_init + math.log((node.visits + config.pb_c_base + 1) / config.pb_c_base)
        return [
            (q - min(self.seen)) / span + p * math.sqrt(node.visits) / (1 + n) * weight
            for q, p, n in zip(self.completed(node), node.prior, self._visits(node), strict=True)
        ]


def _softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(logit - max(logits)) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def _halving(considered: int, simulations: int) -> list[int]:
    """Visits that an action must have to be selected in each simulation, round by round."""
    if considered == 1:
        return list(range(simulations))
    rounds = math.ceil(math.log2(considered))
    order: list[int] = []
    left, visits = considered, 0
    while len(order) < simulations:
        for _ in range(max(1, simulations // (rounds * left))):
            order += [visits] * left
            visits += 1
        left = max(2, left // 2)
    return order[:simulations]
