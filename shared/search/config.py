"""Settings of the search: the selection rule at decision nodes and its parameters."""

from dataclasses import dataclass
from enum import StrEnum

from shared.errors import SettingsError


class Selection(StrEnum):
    """The rule that selects actions and computes the policy target."""

    GUMBEL = "gumbel"
    PUCT = "puct"


@dataclass(frozen=True)
class SearchConfig:
    """Parameters of docs/algorithm.md; a comment names the selection rule if only one uses the field."""

    selection: Selection = Selection.GUMBEL
    simulations: int = 5
    discount: float = 0.997  # γ per bar, on the chance edge
    min_q_span: float = 0.01  # pips; a smaller range of Q-values is divided by this, not scaled up to [0, 1]
    pb_c_init: float = 1.25  # puct, c1
    pb_c_base: float = 19652.0  # puct, c2
    dirichlet_alpha: float = 1.0  # puct
    dirichlet_fraction: float = 0.5  # puct, share of noise in the root's prior
    max_considered_actions: int = 16  # gumbel, actions that enter sequential halving
    c_visit: float = 50.0  # gumbel
    c_scale: float = 0.1  # gumbel

    def __post_init__(self) -> None:
        """Check every number's range."""
        if self.selection not in list(Selection):
            raise SettingsError(
                f"search.selection is {self.selection!r}, expected one of {', '.join(Selection)}"
            )
        object.__setattr__(self, "selection", Selection(self.selection))
        for name in ("simulations", "max_considered_actions"):
            if getattr(self, name) < 1:
                raise SettingsError(f"search.{name} is {getattr(self, name)}, expected 1 or more")
        for name in ("discount", "dirichlet_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SettingsError(f"search.{name} is {getattr(self, name)}, expected 0 to 1")
        for name in ("min_q_span", "pb_c_base", "dirichlet_alpha", "c_scale"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise SettingsError(f"search.{name} is {getattr(self, name)}, expected a positive number")
        for name in ("pb_c_init", "c_visit"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise SettingsError(f"search.{name} is {getattr(self, name)}, expected 0 or more")
