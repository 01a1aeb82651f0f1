"""The record of one played session; windows are not in it but rebuilt from data set and start bar."""

from dataclasses import dataclass
from uuid import UUID

import numpy as np

from shared.environment.action import NUM_ACTIONS
from shared.environment.outcome import NUM_OUTCOMES
from shared.environment.position import NUM_STATIC
from shared.environment.trade import Trade
from shared.errors import DataError, ShapeError
from shared.numeric import Float32, Int8, require_shape


@dataclass(frozen=True)
class Trajectory:
    """One session: step t is the decision at the close of bar `start_bar + t`."""

    trajectory_id: UUID
    worker: str
    checkpoint_version: int  # the weights that acted throughout
    dataset: str  # fingerprint
    start_bar: int
    seed: int  # of the lane's exploration
    static: Float32  # [T, 6] before the action
    actions: Int8  # [T]
    rewards: Float32  # [T] pips, received on leaving the step
    policies: Float32  # [T, 4] the search's policy
    values: Float32  # [T] pips, the search's root value
    outcomes: Int8  # [T] what the market did next
    outcome_probabilities: Float32  # [T, 3] what the model expected it to do
    trades: tuple[Trade, ...]

    def __post_init__(self) -> None:
        """Check shapes, types and ranges: what is wrong here would be learned from.

        Raises:
            ShapeError: an array's shape or type.
            DataError: an unknown action or outcome, or a number that is not finite.
        """
        steps = len(self)
        shapes: dict[str, tuple[int, ...]] = {
            "static": (steps, NUM_STATIC),
            "actions": (steps,),
            "rewards": (steps,),
            "policies": (steps, NUM_ACTIONS),
            "values": (steps,),
            "outcomes": (steps,),
            "outcome_probabilities": (steps, NUM_OUTCOMES),
        }
        for name, shape in shapes.items():
            array = getattr(self, name)
            wanted = np.int8 if name in {"actions", "outcomes"} else np.float32
            require_shape(name, array, *shape)
            if array.dtype != wanted:
                raise ShapeError(name, array.dtype, np.dtype(wanted))
            if not np.isfinite(array).all():
                raise DataError(f"trajectory {self.trajectory_id}: {name} holds a number that is not finite")
        for name, count in (("actions", NUM_ACTIONS), ("outcomes", NUM_OUTCOMES)):
            array = getattr(self, name)
            if ((array < 0) | (array >= count)).any():
                raise DataError(f"trajectory {self.trajectory_id}: {name} outside 0..{count - 1}")

    def __len__(self) -> int:
        return len(self.actions)
