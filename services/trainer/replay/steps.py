"""Steps in columns, what a batch is made of; and in rows, as the replay stores them."""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from shared.environment.action import NUM_ACTIONS, Action
from shared.environment.position import NUM_STATIC
from shared.numeric import Bool, Float32, Int8, Int64

#: Rows of bytes, each a step.
PlainRows = npt.NDArray[np.void]


@dataclass(frozen=True)
class Steps:
    """N steps, each with its K-step unroll.

    Decision k of a step is the one k bars after it. State k is where decision k is taken, so there are
    K + 1 states; `lengths` counts those that exist. Decision k exists where state k does.
    """

    positions: Int64  # [N] journal number of the trajectory
    decisions: Int64  # [N] number of the step's decision in its trajectory
    bars: Int64  # [N] bar at whose close the step's decision was taken
    static: Float32  # [N, 6] position features at the step
    actions: Int8  # [N, K]
    outcomes: Int8  # [N, K] how the bar after decision k closed
    paid: Float32  # [N] pips, reward of the step's decision as the environment paid it
    rewards: Float32  # [N, K] pips, of decision k as it is learned (shaped)
    policies: Float32  # [N, K + 1, 4] the search's policy at state k
    returns: Float32  # [N, K + 1] pips, n-step return from state k
    decision_returns: Float32  # [N, K] pips, the same of decision k, whoever made it
    lengths: Int8  # [N] states that exist, 1 to K + 1

    def __len__(self) -> int:
        return len(self.bars)

    @property
    def is_trade(self) -> Bool:
        """`[N]`: the step's own decision is BUY, SELL or CLOSE."""
        trade: Bool = self.actions[:, 0] != Action.HOLD
        return trade

    def take(self, rows: Int64 | Bool) -> "Steps":
        """Some of the steps, copied."""
        return Steps(**{name: getattr(self, name)[rows] for name in COLUMNS})

    @classmethod
    def allocate(cls, rows: int, unroll_steps: int) -> "Steps":
        """Room for some steps, to be written."""
        return cls(
            positions=np.zeros(rows, np.int64),
            decisions=np.zeros(rows, np.int64),
            bars=np.zeros(rows, np.int64),
            static=np.zeros((rows, NUM_STATIC), np.float32),
            actions=np.zeros((rows, unroll_steps), np.int8),
            outcomes=np.zeros((rows, unroll_steps), np.int8),
            paid=np.zeros(rows, np.float32),
            rewards=np.zeros((rows, unroll_steps), np.float32),
            policies=np.zeros((rows, unroll_steps + 1, NUM_ACTIONS), np.float32),
            returns=np.zeros((rows, unroll_steps + 1), np.float32),
            decision_returns=np.zeros((rows, unroll_steps), np.float32),
            lengths=np.zeros(rows, np.int8),
        )


COLUMNS = tuple(field.name for field in fields(Steps))


class StoredSteps:
    """Room for N steps, each in one piece of memory.

    A step drawn from a large memory is in no cache: in columns it is waited for once a column, in one piece
    about once. A row takes 73 + 30 K bytes, rounded up to words of 8 (224 at K = 5).
    """

    def __init__(self, rows: int, unroll_steps: int) -> None:
        # The widest numbers come first, so that none needs a gap before it.
        columns = sorted(vars(Steps.allocate(1, unroll_steps)).items(), key=lambda item: -item[1].itemsize)
        row = np.dtype([(name, column.dtype, column.shape[1:]) for name, column in columns], align=True)
        self._rows = np.zeros(rows, row)

    @property
    def positions(self) -> Int64:
        """`[N]` of all rows, where they are stored."""
        positions: Int64 = self._rows["positions"]
        return positions

    @property
    def decisions(self) -> Int64:
        """`[N]` of all rows, where they are stored."""
        decisions: Int64 = self._rows["decisions"]
        return decisions

    def put(self, rows: Int64, steps: Steps) -> None:
        """Write steps over some rows."""
        written = np.empty(len(rows), self._rows.dtype)
        for name in COLUMNS:
            written[name] = getattr(steps, name)
        _plain(self._rows)[rows] = _plain(written)

    def take(self, rows: Int64) -> PlainRows:
        """Some rows, copied; `in_columns` tells them apart."""
        return _plain(self._rows).take(rows)

    def in_columns(self, rows: PlainRows) -> Steps:
        """Rows that were taken, as steps."""
        named = rows.view(self._rows.dtype)
        return Steps(**{name: named[name].copy() for name in COLUMNS})


def _plain(rows: npt.NDArray[np.void]) -> PlainRows:
    """The same memory without names, whose rows NumPy copies whole and not number by number."""
    return rows.view(np.dtype((np.void, rows.itemsize)))
