"""Steps in columns: what the replay stores and what a batch is made of."""

from dataclasses import dataclass, fields

import numpy as np

from shared.environment.action import NUM_ACTIONS, Action
from shared.environment.position import NUM_STATIC
from shared.numeric import Bool, Float32, Int8, Int64


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

    def joined(self, others: "Steps") -> "Steps":
        """These steps, then the others."""
        return Steps(
            **{name: np.concatenate([getattr(self, name), getattr(others, name)]) for name in COLUMNS}
        )

    def put(self, rows: Int64, steps: "Steps") -> None:
        """Write steps over some rows, in place."""
        for name in COLUMNS:
            getattr(self, name)[rows] = getattr(steps, name)

    @classmethod
    def allocate(cls, rows: int, unroll_steps: int) -> "Steps":
        """Room for some steps, to be written; a row takes 73 + 30 K bytes (223 at K = 5)."""
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
