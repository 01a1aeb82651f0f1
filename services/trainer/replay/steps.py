"""Training steps: as columns for batches, and as rows in the replay buffer."""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from shared.environment.action import NUM_ACTIONS, Action
from shared.environment.position import NUM_STATIC
from shared.numeric import Bool, Float32, Int8, Int64

#: Steps as rows of bytes.
PlainRows = npt.NDArray[np.void]


@dataclass(frozen=True)
class Steps:
    """N steps, each with its K-step unroll.

    Decision k is taken k bars after the step, in state k. There are K decisions and K + 1 states.
    `lengths` counts the states before the trajectory's end. Decision k exists if state k does.
    """

    positions: Int64  # [N] journal number of the trajectory
    decisions: Int64  # [N] number of the step's decision in its trajectory
    bars: Int64  # [N] bar at whose close the decision was taken
    static: Float32  # [N, 6] position features at the step
    actions: Int8  # [N, K]
    outcomes: Int8  # [N, K] how the bar after decision k closed
    unshaped_rewards: Float32  # [N] pips, unshaped reward of the step's decision
    rewards: Float32  # [N, K] pips, shaped reward of decision k
    policies: Float32  # [N, K + 1, 4] the search's policy at state k
    returns: Float32  # [N, K + 1] pips, n-step return from state k
    decision_returns: Float32  # [N, K] pips, n-step return of decision k, also if it was an excursion
    lengths: Int8  # [N] states that exist, 1 to K + 1

    def __len__(self) -> int:
        return len(self.bars)

    @property
    def is_trade(self) -> Bool:
        """`[N]` True where the step's own decision is BUY, SELL or CLOSE."""
        trade: Bool = self.actions[:, 0] != Action.HOLD
        return trade

    def take(self, rows: Int64 | Bool) -> "Steps":
        """Copy some of the steps."""
        return Steps(**{name: getattr(self, name)[rows] for name in COLUMNS})

    @classmethod
    def allocate(cls, rows: int, unroll_steps: int) -> "Steps":
        """Allocate steps filled with zeros."""
        return cls(
            positions=np.zeros(rows, np.int64),
            decisions=np.zeros(rows, np.int64),
            bars=np.zeros(rows, np.int64),
            static=np.zeros((rows, NUM_STATIC), np.float32),
            actions=np.zeros((rows, unroll_steps), np.int8),
            outcomes=np.zeros((rows, unroll_steps), np.int8),
            unshaped_rewards=np.zeros(rows, np.float32),
            rewards=np.zeros((rows, unroll_steps), np.float32),
            policies=np.zeros((rows, unroll_steps + 1, NUM_ACTIONS), np.float32),
            returns=np.zeros((rows, unroll_steps + 1), np.float32),
            decision_returns=np.zeros((rows, unroll_steps), np.float32),
            lengths=np.zeros(rows, np.int8),
        )


COLUMNS = tuple(field.name for field in fields(Steps))


class StoredSteps:
    """Memory for N steps, each in one contiguous row.

    A step of a large buffer is seldom cached. Reading it from columns costs a cache miss per column; reading
    it from a row costs about one. A row takes 73 + 30 K bytes, rounded up to a multiple of 8 (224 at K = 5).
    """

    def __init__(self, rows: int, unroll_steps: int) -> None:
        # The widest types come first, so that no field needs padding before it.
        columns = sorted(vars(Steps.allocate(1, unroll_steps)).items(), key=lambda item: -item[1].itemsize)
        row = np.dtype([(name, column.dtype, column.shape[1:]) for name, column in columns], align=True)
        self._rows = np.zeros(rows, row)

    @property
    def positions(self) -> Int64:
        """View of all rows' positions, `[N]`."""
        positions: Int64 = self._rows["positions"]
        return positions

    @property
    def decisions(self) -> Int64:
        """View of all rows' decisions, `[N]`."""
        decisions: Int64 = self._rows["decisions"]
        return decisions

    def put(self, rows: Int64, steps: Steps) -> None:
        """Write steps to some rows."""
        written = np.empty(len(rows), self._rows.dtype)
        for name in COLUMNS:
            written[name] = getattr(steps, name)
        _plain(self._rows)[rows] = _plain(written)

    def take(self, rows: Int64) -> PlainRows:
        """Copy some rows as bytes; `to_steps` converts them."""
        return _plain(self._rows).take(rows)

    def to_steps(self, rows: PlainRows) -> Steps:
        """Convert rows from `take` to steps."""
        named = rows.view(self._rows.dtype)
        return Steps(**{name: named[name].copy() for name in COLUMNS})


def _plain(rows: npt.NDArray[np.void]) -> PlainRows:
    """The same memory without field names, so that NumPy copies rows at once and not field by field."""
    return rows.view(np.dtype((np.void, rows.itemsize)))
