"""A conventional tree search: one object per node, one root at a time, one model call per node.

The rules are those of `puct` in shared.search without noise, so both give the same visits. The implementation
differs: Python objects with dictionaries of children instead of arrays, and plain torch modules at batch 1
instead of one call for all roots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from shared.model.network import Network
from shared.numeric import Float32, Int8
from shared.search.config import SearchConfig
from shared.search.model import ActionRules, Model, Roots


@dataclass
class DecisionNode:
    """A state; `hidden` is `[1, H]`."""

    hidden: Float32
    phase: int
    value: float  # pips, estimate of the model
    prior: dict[int, float]  # probabilities of the legal actions
    reward: float = 0.0  # pips, on the edge from the parent
    visits: int = 0
    value_sum: float = 0.0
    children: dict[int, ChanceNode] = field(default_factory=dict)


@dataclass
class ChanceNode:
    """An afterstate; `hidden` is `[1, H]`."""

    hidden: Float32
    phase: int  # phase of the states that follow
    action: int  # action that leads here from the parent
    value: float  # pips, estimate of the model
    prior: list[float]  # probabilities of the outcomes
    visits: int = 0
    value_sum: float = 0.0
    children: dict[int, DecisionNode] = field(default_factory=dict)

    @property
    def q(self) -> float:
        """W/N, or the estimate of the model before the first visit."""
        return self.value_sum / self.visits if self.visits else self.value


class NodeSearch:
    """The search of one root; the tree starts at `root`."""

    def __init__(self, model: Model, roots: Roots, rules: ActionRules, config: SearchConfig) -> None:
        """Search the first of `roots`."""
        self._model, self._rules, self._config = model, rules, config
        phase, value = int(roots.phases[0]), float(roots.values[0])
        self._least = self._greatest = value
        self.root = DecisionNode(roots.hidden, phase, value, self._prior(phase, roots.policy_logits[0]))
        self.root.visits, self.root.value_sum = 1, value
        for action in self.root.prior:
            self._make_chance_node(self.root, action)
        for _ in range(config.simulations):
            self._simulate()

    @property
    def visits(self) -> list[int]:
        """Visits of every action at the root, 0 where illegal."""
        children = self.root.children
        return [
            children[action].visits if action in children else 0 for action in range(self._rules.num_actions)
        ]

    @property
    def action(self) -> int:
        """The most visited action; ties go to the larger Q."""
        children = self.root.children
        return max(children, key=lambda action: (children[action].visits, children[action].q))

    def _simulate(self) -> None:
        path: list[DecisionNode | ChanceNode] = [self.root]
        known = True
        while known:
            node = path[-1]
            if isinstance(node, DecisionNode):
                action = self._select_action(node)
                if action not in node.children:
                    self._make_chance_node(node, action)
                child = node.children[action]
                path.append(child)
                known = child.visits > 0
            else:
                outcome = _select_outcome(node)
                known = outcome in node.children
                if not known:
                    self._make_decision_node(node, outcome)
                path.append(node.children[outcome])
        self._back_up(path)

    def _back_up(self, path: list[DecisionNode | ChanceNode]) -> None:
        value = path[-1].value
        for node in reversed(path):
            node.visits += 1
            node.value_sum += value
            if isinstance(node, ChanceNode):
                self._widen(node.q)
            else:
                value = node.reward + self._config.discount * value

    def _select_action(self, node: DecisionNode) -> int:
        config = self._config
        span = max(self._greatest - self._least, config.min_q_span)
        weight = config.pb_c_init + math.log((node.visits + config.pb_c_base + 1.0) / config.pb_c_base)
        mixed = _mixed_value(node)

        def score(action: int) -> float:
            child = node.children.get(action)
            q, visits = (mixed, 0) if child is None else (child.q, child.visits)
            bonus = node.prior[action] * math.sqrt(node.visits) / (1 + visits)
            return (q - self._least) / span + bonus * weight

        return max(node.prior, key=score)

    def _make_chance_node(self, parent: DecisionNode, action: int) -> None:
        hidden, probabilities, q_values = self._model.afterstates(parent.hidden, np.array([action], np.int8))
        phase, value = int(self._rules.successor[parent.phase, action]), float(q_values[0])
        self._widen(value)
        parent.children[action] = ChanceNode(hidden, phase, action, value, probabilities[0].tolist())

    def _make_decision_node(self, parent: ChanceNode, outcome: int) -> None:
        hidden, rewards, values = self._model.successors(
            parent.hidden, np.array([parent.action], np.int8), np.array([outcome], np.int8)
        )
        value = float(values[0])
        self._widen(value)
        prior = self._prior(parent.phase, self._model.policies(hidden)[0])
        parent.children[outcome] = DecisionNode(hidden, parent.phase, value, prior, float(rewards[0]))

    def _prior(self, phase: int, policy_logits: Float32) -> dict[int, float]:
        legal = self._rules.legal[phase].nonzero()[0].tolist()
        highest = max(float(policy_logits[action]) for action in legal)
        weights = {action: math.exp(float(policy_logits[action]) - highest) for action in legal}
        total = sum(weights.values())
        return {action: weight / total for action, weight in weights.items()}

    def _widen(self, value: float) -> None:
        self._least, self._greatest = min(self._least, value), max(self._greatest, value)


def _select_outcome(node: ChanceNode) -> int:
    """Select argmax p(c) / (1 + n(c)) as `chance_outcome` does."""

    def score(outcome: int) -> float:
        child = node.children.get(outcome)
        return node.prior[outcome] / (1.0 + (child.visits if child else 0))

    return max(range(len(node.prior)), key=score)


def _mixed_value(node: DecisionNode) -> float:
    """v_mix, the completed Q of actions without a child; see `completed_q`."""
    visited = {action: child for action, child in node.children.items() if child.visits}
    mass = sum(node.prior[action] for action in visited)
    if mass == 0.0:
        return node.value
    weighted = sum(node.prior[action] * child.q for action, child in visited.items())
    visits = sum(child.visits for child in visited.values())
    return (node.value + visits * weighted / mass) / (1 + visits)


class PlainModel:
    """A network in evaluation mode, run by eager torch."""

    def __init__(self, network: Network) -> None:
        self._network = network.eval()

    @property
    def num_outcomes(self) -> int:
        """Number of chance outcomes."""
        return self._network.config.num_outcomes

    @torch.inference_mode()
    def embed_windows(self, windows: Float32) -> Float32:
        """The plain pass: `[N, window, F]` -> `[N, E]`."""
        embeddings: Float32 = self._network.encoder(torch.from_numpy(windows)).numpy()
        return embeddings

    @torch.inference_mode()
    def roots(self, temporal: Float32, static: Float32, phases: Int8) -> Roots:
        """See `Agent.roots`."""
        hidden = self._network.combine(torch.from_numpy(temporal), torch.from_numpy(static))
        policy_logits, value_logits = self._network.prediction(hidden)
        values = self._network.support.decode(value_logits)
        return Roots(hidden.numpy(), policy_logits.numpy(), values.numpy(), phases)

    @torch.inference_mode()
    def afterstates(self, hidden: Float32, actions: Int8) -> tuple[Float32, Float32, Float32]:
        """See `Model.afterstates`."""
        afterstates = self._network.afterstate(torch.from_numpy(hidden), torch.from_numpy(actions).long())
        outcome_logits, q_logits = self._network.afterstate_heads(afterstates)
        probabilities = torch.softmax(outcome_logits, dim=-1)
        return afterstates.numpy(), probabilities.numpy(), self._network.support.decode(q_logits).numpy()

    @torch.inference_mode()
    def successors(
        self, afterstates: Float32, actions: Int8, outcomes: Int8
    ) -> tuple[Float32, Float32, Float32]:
        """See `Model.successors`."""
        hidden, reward_logits = self._network.dynamics(
            torch.from_numpy(afterstates),
            torch.from_numpy(actions).long(),
            torch.from_numpy(outcomes).long(),
        )
        decode, value_logits = self._network.support.decode, self._network.value_head(hidden)
        return hidden.numpy(), decode(reward_logits).numpy(), decode(value_logits).numpy()

    @torch.inference_mode()
    def policies(self, hidden: Float32) -> Float32:
        """See `Model.policies`."""
        policy_logits: Float32 = self._network.policy_head(torch.from_numpy(hidden)).numpy()
        return policy_logits
