"""Settings of the search: the selection rule at decision nodes and its parameters."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from shared.setting import (
    Count,
    NonNegative,
    Positive,
    Range,
    Share,
    check_group,
    setting,
)


class Selection(StrEnum):
    """The rule that selects actions and computes the policy target."""

    GUMBEL = "gumbel"
    PUCT = "puct"


@dataclass(frozen=True)
class SearchConfig:
    """The `[search]` group: parameters of docs/algorithm.md.

    Raises:
        SettingsError: a value is out of range.
    """

    selection: Selection = setting(Selection.GUMBEL, "selection rule")
    simulations: Count = setting(5, "simulations per decision")
    discount: Share = setting(0.997, "discount per bar, from a chance node to the next decision")
    min_q_span: Positive = setting(0.01, "pips; a smaller range of Q-values is not scaled up to [0, 1]")
    pb_c_init: NonNegative = setting(1.25, "puct only: exploration constant c1")
    pb_c_base: Positive = setting(19652.0, "puct only: visit scale c2 of the exploration term")
    #: The gamma draws of a smaller concentration can all be 0, and noise is their share.
    dirichlet_alpha: Annotated[float, Range(low=0.01)] = setting(
        1.0, "puct only: concentration of the root noise"
    )
    dirichlet_fraction: Share = setting(0.5, "puct only: share of noise in the root's prior")
    max_considered_actions: Count = setting(16, "gumbel only: actions that enter sequential halving")
    c_visit: NonNegative = setting(50.0, "gumbel only: visits added to the highest visit count in sigma")
    c_scale: Positive = setting(0.1, "gumbel only: scale of the Q-values in sigma")

    def __post_init__(self) -> None:
        """Check every range."""
        check_group("search", self)
