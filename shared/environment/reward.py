"""The reward schemes, in pips."""

from enum import StrEnum
from typing import NamedTuple

from shared.environment.action import Action
from shared.numeric import kernel

_HOLD = int(Action.HOLD)


class RewardScheme(StrEnum):
    """What a step is paid."""

    AMDDP1 = "amddp1"  # realised pips less 1 % of the largest drawdown, an entry bonus, a price on idling
    PNL = "pnl"  # realised pips only


class RewardWeights(NamedTuple):
    """The numbers of one scheme; `pnl` is `amddp1` with all of them zero."""

    entry_bonus: float  # paid for an entry
    idle_penalty: float  # taken for holding while flat
    drawdown_penalty: float  # taken at the exit per pip of the largest drawdown


@kernel
def decision_reward(weights: RewardWeights, flat: bool, action: int) -> float:
    """What a legal decision earns by itself: an entry its bonus, idling its price, all others nothing."""
    if not flat:
        return 0.0
    return -weights.idle_penalty if action == _HOLD else weights.entry_bonus


@kernel
def exit_reward(weights: RewardWeights, pips: float, max_drawdown: float) -> float:
    """What the end of a position earns: its net pips, less a share of its largest drawdown."""
    return pips - weights.drawdown_penalty * max_drawdown
