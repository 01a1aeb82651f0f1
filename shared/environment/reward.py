"""The reward schemes, in pips."""

from enum import StrEnum
from typing import NamedTuple

from shared.environment.action import Action
from shared.numeric import kernel

_HOLD = int(Action.HOLD)


class RewardScheme(StrEnum):
    """How a step is rewarded."""

    AMDDP1 = "amddp1"  # realised pips - drawdown penalty + entry bonus - idle penalty
    PNL = "pnl"  # realised pips only


class RewardWeights(NamedTuple):
    """The weights of one scheme; `pnl` is `amddp1` with all of them zero."""

    entry_bonus: float  # added for an entry
    idle_penalty: float  # subtracted for HOLD while flat
    drawdown_penalty: float  # subtracted at the exit per pip of the largest drawdown


@kernel
def decision_reward(weights: RewardWeights, flat: bool, action: int) -> float:
    """Reward of a legal decision itself: the bonus of an entry, the penalty of idling, otherwise 0."""
    if not flat:
        return 0.0
    return -weights.idle_penalty if action == _HOLD else weights.entry_bonus


@kernel
def exit_reward(weights: RewardWeights, pips: float, max_drawdown: float) -> float:
    """Reward of closing a position: its net pips less a share of its largest drawdown."""
    return pips - weights.drawdown_penalty * max_drawdown
