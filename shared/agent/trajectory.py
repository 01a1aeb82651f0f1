"""The record of one played session; windows are not in it but rebuilt from data set and start bar."""

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

#: Most pips that a reward, a root value, or a trade is taken to be, in size. The dearest quote there is, of a
#: bitcoin in yen by the hundredth, is some 1.5e9 pips in all; no session of it moves as far. Returns, their
#: squares and sums over the longest trajectory stay far within a float32.
MAX_PIPS = 1e9

#: How far a row of probabilities may be from 1; a float32 softmax is within a millionth.
SUM_TOLERANCE = 1e-3


class _Column(NamedTuple):
    """What an array of a trajectory is like."""

    dtype: type[np.generic]
    width: int  # 0: a vector
    least: float
    most: float


_COLUMNS: Mapping[str, _Column] = {
    "static": _Column(np.float32, NUM_STATIC, -1.0, 1.0),  # a side, and what tanh gives
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
    checkpoint_version: int  # the weights that acted throughout
    dataset: str  # fingerprint
    start_bar: int
    seed: int  # of the lane's exploration
    static: Float32  # [T, 6] before the action
    actions: Int8  # [T]
    rewards: Float32  # [T] pips, received on leaving the step
    policies: Float32  # [T, 4] the search's policy; 0 where illegal
    values: Float32  # [T] pips, the search's root value
    outcomes: Int8  # [T] what the market did next
    outcome_probabilities: Float32  # [T, 3] what the model expected it to do
    trades: tuple[Trade, ...]

    def __post_init__(self) -> None:
        """Check shapes, types, ranges and what a position allows: what is wrong here would be learned from.

        Header and trades are not looked at: their numbers are checked where they arrive, by the message.

        Raises:
            ShapeError: an array's shape or type.
            DataError: a number that no session gives; names the array, the place and what would be right.
        """
        steps = len(self)
        if steps == 0:
            raise DataError(f"trajectory {self.trajectory_id}: no steps, expected at least 1")
        for name, (dtype, width, least, most) in _COLUMNS.items():
            array = getattr(self, name)
            require_shape(name, array, *((steps, width) if width else (steps,)))
            if array.dtype != dtype:
                raise ShapeError(name, array.dtype, np.dtype(dtype))
            if not (least <= array.min() and array.max() <= most):  # nor where one of them is NaN
                inside = (least <= array) & (array <= most)
                raise self._wrong(name, ~inside, f"{least:g} to {most:g}")
        self._check_legal()
        self._check_sums("policies")
        self._check_sums("outcome_probabilities")

    def __len__(self) -> int:
        return len(self.actions)

    def _check_legal(self) -> None:
        """The side is one of three, and neither action nor policy is beyond what it allows."""
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
        barred = (self.policies != 0.0) & ~legal
        if barred.any():
            row = int(barred.any(axis=1).argmax())
            raise self._wrong("policies", barred, f"0 for an action that is not {_allowed(sides[row])}")

    def _check_sums(self, name: str) -> None:
        """Every row is a probability distribution."""
        rows = getattr(self, name)
        # A product, many times quicker than NumPy's sum over short rows.
        sums = rows @ np.ones(rows.shape[1], rows.dtype)
        off = np.abs(sums - 1.0) > SUM_TOLERANCE
        if off.any():
            row = int(off.argmax())
            raise DataError(
                f"trajectory {self.trajectory_id}: {name}[{row}] sums to {sums[row]:g}, "
                f"expected 1 within {SUM_TOLERANCE:g}"
            )

    def _wrong(self, name: str, bad: Bool, wanted: str) -> DataError:
        """An array's first number where `bad`, of the array's shape, is true."""
        place = tuple(int(index) for index in np.unravel_index(int(bad.argmax()), bad.shape))
        number = getattr(self, name)[place]
        return DataError(
            f"trajectory {self.trajectory_id}: {name}[{', '.join(map(str, place))}] is {number:g}, "
            f"expected {wanted}"
        )


def _allowed(side: int) -> str:
    """The actions of a position, in words."""
    names = [f"{action:d} {action.name}" for action in Action if LEGAL[side + 1, action]]
    return f"{' or '.join(names)}, which a {Side(side).name} position allows"
