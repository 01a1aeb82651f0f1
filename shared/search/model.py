"""The inputs of a search: a model, the rules of legal actions, the roots and their noise.

The search knows neither networks nor trading. An agent passes a `Model` and the `ActionRules` of its
environment; tests pass tables whose best policy is known.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from shared.errors import DataError, ShapeError
from shared.numeric import Bool, Float32, Float64, Int8, require_shape


class Model(Protocol):
    """The learned model. Each row of a call is one node; its result must not depend on the other rows."""

    def afterstates(self, hidden: Float32, actions: Int8) -> tuple[Float32, Float32, Float32]:
        """Compute the afterstate of an action in each hidden state.

        Args:
            hidden: `[N, H]`.
            actions: `[N]`, one per hidden state.
        Returns:
            afterstates `[N, H]`, outcome probabilities `[N, C]`, Q-values `[N]` in pips.
        """
        ...

    def successors(
        self, afterstates: Float32, actions: Int8, outcomes: Int8
    ) -> tuple[Float32, Float32, Float32]:
        """Compute the state that follows each afterstate under a chance outcome.

        Args:
            afterstates: `[N, H]`.
            actions: `[N]`, the actions that led to the afterstates.
            outcomes: `[N]`, one chance outcome per afterstate.
        Returns:
            hidden states `[N, H]`, rewards `[N]` in pips, values `[N]` in pips.
        """
        ...

    def policies(self, hidden: Float32) -> Float32:
        """Compute the policy logits `[N, A]` of hidden states `[N, H]`.

        The search calls this only for states that it expands.
        """
        ...


@dataclass(frozen=True)
class ActionRules:
    """The legal actions of each phase, and the phase that each action leads to. Exact, not learned."""

    legal: Bool  # [P, A]
    successor: Int8  # [P, A] next phase; read only where legal

    def __post_init__(self) -> None:
        """Check that every phase has a legal action and that every legal action leads to a phase."""
        num_phases = len(self.legal)
        require_shape("legal", self.legal, None, None)
        require_shape("successor", self.successor, *self.legal.shape)
        if not self.legal.any(axis=1).all():
            raise DataError(f"phase {int(self.legal.any(axis=1).argmin())} has no legal action")
        successors = self.successor[self.legal]
        if ((successors < 0) | (successors >= num_phases)).any():
            raise DataError(f"a legal action leads to a phase outside 0..{num_phases - 1}")

    @property
    def num_actions(self) -> int:
        """Length of the action axis."""
        return int(self.legal.shape[1])


@dataclass(frozen=True)
class Roots:
    """The states to search from, with the model's predictions for them."""

    hidden: Float32  # [B, H]
    policy_logits: Float32  # [B, A]
    values: Float32  # [B] pips
    phases: Int8  # [B] row of `ActionRules`

    def __post_init__(self) -> None:
        """Check that all arrays have one row per root and that every number is finite."""
        require_shape("hidden", self.hidden, None, None)
        if not len(self):
            raise ShapeError("hidden", self.hidden.shape, "at least one root")
        require_shape("policy_logits", self.policy_logits, len(self), None)
        require_shape("values", self.values, len(self))
        require_shape("phases", self.phases, len(self))
        for name in ("hidden", "policy_logits", "values"):
            finite = np.isfinite(getattr(self, name))
            if not finite.all():
                rows = finite.reshape(len(self), -1).all(axis=1)
                raise DataError(f"root {int(rows.argmin())}: {name} is not finite")

    def __len__(self) -> int:
        return len(self.hidden)

    def check(self, rules: ActionRules) -> None:
        """Check that the roots fit the rules.

        Raises:
            ShapeError: the number of actions differs, or a phase does not exist.
        """
        require_shape("policy_logits", self.policy_logits, len(self), rules.num_actions)
        if ((self.phases < 0) | (self.phases >= len(rules.legal))).any():
            raise ShapeError("phases", self.phases.tolist(), f"within 0..{len(rules.legal) - 1}")


@dataclass(frozen=True)
class RootNoise:
    """Random numbers for one decision at each root.

    Each root's numbers come from its own random stream, so its result does not depend on the other roots of
    the batch. The selection rule decides whether the search uses `gumbel` or `gamma`.
    """

    gumbel: Float64  # [B, A] Gumbel(0, 1)
    gamma: Float64  # [B, A] Gamma(α, 1); normalised over the legal actions this is Dirichlet(α)

    def __post_init__(self) -> None:
        """Check that both have the same shape."""
        require_shape("gumbel", self.gumbel, None, None)
        require_shape("gamma", self.gamma, *self.gumbel.shape)
