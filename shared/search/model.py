"""What search asks of a model, and what it is given at the roots.

Search knows neither networks nor trading: an agent hands in a `Model` and the `ActionRules` of its
environment, and tests hand in tables whose best policy is known.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from shared.errors import DataError, ShapeError
from shared.numeric import Bool, Float32, Float64, Int8, require_shape


class Model(Protocol):
    """The learned model, one row per node to evaluate; a row's result may not depend on its neighbours."""

    def afterstates(self, hidden: Float32, actions: Int8) -> tuple[Float32, Float32, Float32]:
        """Take an action in each hidden state.

        Args:
            hidden: `[N, H]`.
            actions: `[N]`.
        Returns:
            afterstates `[N, H]`, outcome probabilities `[N, C]`, Q-values `[N]` pips.
        """
        ...

    def successors(
        self, afterstates: Float32, actions: Int8, outcomes: Int8
    ) -> tuple[Float32, Float32, Float32]:
        """Let the market move after each action.

        Args:
            afterstates: `[N, H]`.
            actions: `[N]`, the ones that led to the afterstates.
            outcomes: `[N]`.
        Returns:
            hidden states `[N, H]`, rewards `[N]` pips, values `[N]` pips.
        """
        ...

    def policies(self, hidden: Float32) -> Float32:
        """Policy logits `[N, A]` of hidden states `[N, H]`; asked for once a search goes on from them."""
        ...


@dataclass(frozen=True)
class ActionRules:
    """What is legal in each phase, and which phase an action leads to; known exactly, never learned."""

    legal: Bool  # [P, A]
    successor: Int8  # [P, A]; only read where legal

    def __post_init__(self) -> None:
        """Check that every phase has an action and every legal action leads to a phase."""
        num_phases = len(self.legal)
        require_shape("legal", self.legal, None, None)
        require_shape("successor", self.successor, *self.legal.shape)
        if not self.legal.any(axis=1).all():
            raise DataError(f"phase {int(self.legal.any(axis=1).argmin())} has no legal action")
        reached = self.successor[self.legal]
        if ((reached < 0) | (reached >= num_phases)).any():
            raise DataError(f"a legal action leads to a phase outside 0..{num_phases - 1}")

    @property
    def num_actions(self) -> int:
        """Length of the action axis."""
        return int(self.legal.shape[1])


@dataclass(frozen=True)
class Roots:
    """The states to decide in, as the networks see them."""

    hidden: Float32  # [B, H]
    policy_logits: Float32  # [B, A]
    values: Float32  # [B] pips
    phases: Int8  # [B], row of `ActionRules`

    def __post_init__(self) -> None:
        """Check that the arrays agree on the number of roots and that every number is finite."""
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
        """Check the roots against the rules that they are to be searched under.

        Raises:
            ShapeError: the policy has another number of actions, or a phase does not exist.
        """
        require_shape("policy_logits", self.policy_logits, len(self), rules.num_actions)
        if ((self.phases < 0) | (self.phases >= len(rules.legal))).any():
            raise ShapeError("phases", self.phases.tolist(), f"within 0..{len(rules.legal) - 1}")


@dataclass(frozen=True)
class RootNoise:
    """Random numbers for one decision at each root, drawn from that root's own stream.

    So a root's result does not depend on which others are searched beside it. Search uses `gumbel`
    or `gamma`, whichever its selection rule needs.
    """

    gumbel: Float64  # [B, A], Gumbel(0, 1)
    gamma: Float64  # [B, A], Gamma(α, 1); normalised over the legal actions they are Dirichlet(α)

    def __post_init__(self) -> None:
        """Check that both are equally large."""
        require_shape("gumbel", self.gumbel, None, None)
        require_shape("gamma", self.gamma, *self.gumbel.shape)
