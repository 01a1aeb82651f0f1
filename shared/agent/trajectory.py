"""The record of one session. It has no windows: these are rebuilt from the data set and the start bar."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

import numpy as np

from shared.environment.action import LEGAL, NUM_ACTIONS, Action, Side
from shared.environment.outcome import NUM_OUTCOMES
from shared.environment.position import NUM_STATIC, STATIC_NAMES
from shared.environment.trade import Trade
from shared.errors import DataError, ShapeError
from shared.numeric import Bool, Float32, Int8, require_shape

#: Largest accepted size of a reward, root value or trade, in pips. The highest quote on the market, a bitcoin
#: in yen with a pip of 0.01, is about 1.5e9 pips, and no session moves by that much. Returns, their squares
#: and sums over the longest trajectory stay far within the range of float32.
MAX_PIPS = 1e9

#: Largest accepted difference of a sum of probabilities from 1; that of a float32 softmax is about 1e-6.
SUM_TOLERANCE = 1e-3


class _Column(NamedTuple):
    """Type, shape and range of an array of a trajectory."""

    dtype: type[np.generic]
    width: int  # length of a row; 0 for a vector
    minimum: float
    maximum: float


_COLUMNS: Mapping[str, _Column] = {
    "static": _Column(np.float32, NUM_STATIC, -1.0, 1.0),  # the side, then tanh values
    "actions": _Column(np.int8, 0, 0, NUM_ACTIONS - 1),
    "rewards": _Column(np.float32, 0, -MAX_PIPS, MAX_PIPS),
    "policies": _Column(np.float32, NUM_ACTIONS, 0.0, 1.0 + SUM_TOLERANCE),
    "values": _Column(np.float32, 0, -MAX_PIPS, MAX_PIPS),
    "outcomes": _Column(np.int8, 0, 0, NUM_OUTCOMES - 1),
    "outcome_probabilities": _Column(np.float32, NUM_OUTCOMES, 0.0, 1.0 + SUM_TOLERANCE),
}

_SIDE = STATIC_NAMES.index("position_side")


@dataclass(frozen=True)
class Trajectory:
    """One session: step t is the decision at the close of bar `start_bar + t`."""

    trajectory_id: UUID
    worker: str
    checkpoint_version: int  # version that chose all actions
    dataset: str  # fingerprint
    start_bar: int
    seed: int  # seed of the exploration
    static: Float32  # [T, 6] before the action
    actions: Int8  # [T]
    rewards: Float32  # [T] pips, received at the end of the step
    policies: Float32  # [T, 4] policy of the search; 0 where illegal
    values: Float32  # [T] pips, root value of the search
    outcomes: Int8  # [T] `ChanceOutcome` after the action
    outcome_probabilities: Float32  # [T, 3] predicted by the model for the action
    trades: tuple[Trade, ...]

    def __post_init__(self) -> None:
        """Check shapes, types, ranges and legal actions, so that the trainer never learns from bad numbers.

        The message that carries a trajectory checks the other fields and the trades.

        Raises:
            ShapeError: the shape or type of an array is wrong.
            DataError: a number is impossible. The text names the array, the index and the expected range.
        """
        steps = len(self)
        if steps == 0:
            raise DataError(f"trajectory {self.trajectory_id}: no steps, expected at least 1")
        for name, (dtype, width, minimum, maximum) in _COLUMNS.items():
            array = getattr(self, name)
            require_shape(name, array, *((steps, width) if width else (steps,)))
            if array.dtype != dtype:
                raise ShapeError(name, array.dtype, np.dtype(dtype))
            if not (minimum <= array.min() and array.max() <= maximum):  # also true for NaN
                inside = (minimum <= array) & (array <= maximum)
                raise self._wrong(name, ~inside, f"{minimum:g} to {maximum:g}")
        self._check_legal()
        self._check_sums("policies")
        self._check_sums("outcome_probabilities")

    def __len__(self) -> int:
        return len(self.actions)

    def _check_legal(self) -> None:
        """Check that the side is -1, 0 or 1, and that it allows the action and the policy."""
        column = self.static[:, _SIDE]
        sides = column.astype(np.int8)
        if (sides != column).any():
            bad = np.zeros(self.static.shape, np.bool_)
            bad[:, _SIDE] = sides != column
            raise self._wrong("static", bad, "a side: -1, 0 or 1")
        legal: Bool = LEGAL.take(sides + 1, axis=0)
        allowed = legal[np.arange(len(self)), self.actions]
        if not allowed.all():
            row = int(allowed.argmin())
            raise self._wrong("actions", ~allowed, _allowed(sides[row]))
        illegal = (self.policies != 0.0) & ~legal
        if illegal.any():
            row = int(illegal.any(axis=1).argmax())
            raise self._wrong("policies", illegal, f"0 for an action that is not {_allowed(sides[row])}")

    def _check_sums(self, name: str) -> None:
        """Check that every row sums to 1."""
        rows = getattr(self, name)
        # A product is many times faster than NumPy's sum over short rows.
        sums = rows @ np.ones(rows.shape[1], rows.dtype)
        off = np.abs(sums - 1.0) > SUM_TOLERANCE
        if off.any():
            row = int(off.argmax())
            raise DataError(
                f"trajectory {self.trajectory_id}: {name}[{row}] sums to {sums[row]:g}, "
                f"expected 1 within {SUM_TOLERANCE:g}"
            )

    def _wrong(self, name: str, bad: Bool, expected: str) -> DataError:
        """An error about the array's first number at which `bad`, of the same shape, is true."""
        index = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        number = getattr(self, name)[index]
        return DataError(
            f"trajectory {self.trajectory_id}: {name}[{', '.join(map(str, index))}] is {number:g}, "
            f"expected {expected}"
        )


def _allowed(side: int) -> str:
    """The actions that a position allows, as text."""
    names = [f"{action:d} {action.name}" for action in Action if LEGAL[side + 1, action]]
    return f"{' or '.join(names)}, which a {Side(side).name} position allows"
