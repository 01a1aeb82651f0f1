"""The replay buffer: which steps are kept, evicted and drawn.

The buffer holds the last Q trade steps (Q is the quota of trade steps) and fills the rest of its capacity
with the newest other steps. When it is full, each new step evicts the oldest step that is not among the last
Q trade steps, in O(1). A separate success memory holds the last S steps with a large reward.

The contents depend only on the sequence of inserted steps. After a restart the trainer inserts the journal's
trajectories again, starting with the oldest one that still has a stored step. The rebuilt buffer draws the
same steps as the original. This is why older journal segments can be deleted.
"""

import math
from dataclasses import dataclass

import numpy as np

from services.trainer.config import ReplayConfig
from services.trainer.replay.steps import Steps, StoredSteps
from shared.numeric import Bool, Int64, kernel

#: Indices of `_counters`: head and size of the ring of trade steps, head and size of the ring of other steps,
#: and the number of all steps ever inserted.
_TRADE_HEAD, _TRADE_COUNT, _OTHER_HEAD, _OTHER_COUNT, _SEEN = range(5)


@dataclass(frozen=True)
class ReplayStatistics:
    """How many steps are stored, by kind, and how many were ever inserted (`num_seen`)."""

    num_steps: int
    num_trade_steps: int
    num_success_steps: int
    num_seen: int

    @property
    def trade_share(self) -> float:
        """Share of the stored steps that are trade steps."""
        return self.num_trade_steps / self.num_steps if self.num_steps else 0.0


class Replay:
    """Stores each step in a row. Two rings of row numbers (trade steps, other steps) keep their order.

    At K = 5 a step takes 264 bytes: 224 for its row, 24 for its sequence number and its entries in the
    rings, and 16 for its neighbours. The rows of 10,000 steps take 2.2 MB.
    """

    def __init__(self, config: ReplayConfig, unroll_steps: int) -> None:
        self.config = config
        capacity = config.capacity_steps
        self._quota = min(math.ceil(config.trade_quota * capacity), capacity - 1)
        self._steps = StoredSteps(capacity, unroll_steps)
        self._sequence = np.zeros(capacity, np.int64)
        self._trades = np.zeros(capacity, np.int64)
        self._others = np.zeros(capacity, np.int64)
        self._counters = np.zeros(5, np.int64)
        self._next = np.full(capacity, -1, np.int64)
        self._previous = np.full(capacity, -1, np.int64)
        self._successes = StoredSteps(config.success_capacity, unroll_steps)
        self._num_successes = 0

    def __len__(self) -> int:
        return int(self._counters[_TRADE_COUNT] + self._counters[_OTHER_COUNT])

    @property
    def statistics(self) -> ReplayStatistics:
        """Current numbers of steps."""
        return ReplayStatistics(
            num_steps=len(self),
            num_trade_steps=int(self._counters[_TRADE_COUNT]),
            num_success_steps=self._success_count,
            num_seen=int(self._counters[_SEEN]),
        )

    @property
    def oldest_position(self) -> int | None:
        """Journal position of the oldest trajectory that a step can be drawn from; None while empty."""
        oldest = [
            int(self._steps.positions[ring[self._counters[head]]])
            for ring, head, count in (
                (self._trades, _TRADE_HEAD, _TRADE_COUNT),
                (self._others, _OTHER_HEAD, _OTHER_COUNT),
            )
            if self._counters[count]
        ]
        if self._num_successes and self.config.success_share:
            oldest.append(int(self._successes.positions[self._success_rows(np.zeros(1, np.int64))[0]]))
        return min(oldest, default=None)

    def extend(self, steps: Steps) -> None:
        """Insert steps, the oldest first, and evict steps beyond the capacity."""
        rows = np.empty(len(steps), np.int64)
        _assign_rows(
            steps.is_trade, self._quota, self._sequence, self._trades, self._others, self._counters, rows
        )
        self._steps.put(rows, steps)
        same_trajectory = np.diff(steps.positions) == 0
        self._next[rows] = np.append(np.where(same_trajectory, rows[1:], -1), -1)
        self._previous[rows] = np.append(-1, np.where(same_trajectory, rows[:-1], -1))
        successes = np.flatnonzero(steps.unshaped_rewards > self.config.success_reward_pips)
        success_rows = (self._num_successes + np.arange(len(successes))) % self.config.success_capacity
        self._successes.put(success_rows, steps.take(successes))
        self._num_successes += len(successes)

    def sample(self, generator: np.random.Generator, batch_size: int, stretch_steps: int = 1) -> Steps:
        """Draw steps with replacement: a share from the success memory, the others uniformly from all steps.

        A stretch is L consecutive decisions of a trajectory: numbers k L to k L + L - 1. A draw from all
        steps also returns the other stored steps of the drawn step's stretch. So a step's probability is
        proportional to the stored length of its stretch. A batch is smaller when stretches have lost steps to
        eviction. A trade step whose neighbours were evicted is drawn alone.

        Args:
            generator: source of random numbers.
            batch_size: steps wanted, rounded up to a multiple of L.
            stretch_steps: L; 1 draws single steps.
        Raises:
            ValueError: the replay is empty.
        """
        num_success_draws = round(batch_size * self.config.success_share) if self._num_successes else 0
        anchors = self._rows(
            generator.integers(len(self), size=-(-(batch_size - num_success_draws) // stretch_steps))
        )
        steps = self._steps
        drawn = steps.take(
            _stretches(anchors, stretch_steps, steps.positions, steps.decisions, self._next, self._previous)
        )
        if num_success_draws:
            ranks = generator.integers(self._success_count, size=num_success_draws)
            drawn = np.concatenate([drawn, self._successes.take(self._success_rows(ranks))])
        return steps.to_steps(drawn)

    def contents(self) -> tuple[Steps, Steps]:
        """All stored steps (trade steps, then the others, each oldest first), and the success memory."""
        everything = self._steps.take(self._rows(np.arange(len(self))))
        successes = self._successes.take(self._success_rows(np.arange(self._success_count)))
        return self._steps.to_steps(everything), self._successes.to_steps(successes)

    @property
    def _success_count(self) -> int:
        return min(self._num_successes, self.config.success_capacity)

    def _rows(self, ranks: Int64) -> Int64:
        """Rows of the steps at these ranks. Ranks count trade steps from the oldest, then the others."""
        return _by_age(ranks, self._trades, self._others, self._counters)

    def _success_rows(self, ranks: Int64) -> Int64:
        return (self._num_successes - self._success_count + ranks) % self.config.success_capacity


@kernel
def _assign_rows(
    is_trade: Bool,
    quota: int,
    sequence: Int64,
    trades: Int64,
    others: Int64,
    counters: Int64,
    rows: Int64,
) -> None:
    """Find a row for each new step; when all rows are taken, evict the oldest unprotected step.

    `sequence` holds the sequence number of each row's step. `trades` and `others` are rings of row numbers
    with the oldest step at the head.
    """
    capacity = len(sequence)
    for step in range(len(is_trade)):
        num_trades, num_others = counters[_TRADE_COUNT], counters[_OTHER_COUNT]
        if num_trades + num_others < capacity:
            row = num_trades + num_others
        else:
            oldest_trade = trades[counters[_TRADE_HEAD]]
            oldest_other = others[counters[_OTHER_HEAD]]
            protected = num_trades + is_trade[step] <= quota
            if num_others and (
                protected or not num_trades or sequence[oldest_other] < sequence[oldest_trade]
            ):
                row = oldest_other
                counters[_OTHER_HEAD] = (counters[_OTHER_HEAD] + 1) % capacity
                counters[_OTHER_COUNT] -= 1
            else:
                row = oldest_trade
                counters[_TRADE_HEAD] = (counters[_TRADE_HEAD] + 1) % capacity
                counters[_TRADE_COUNT] -= 1
        if is_trade[step]:
            trades[(counters[_TRADE_HEAD] + counters[_TRADE_COUNT]) % capacity] = row
            counters[_TRADE_COUNT] += 1
        else:
            others[(counters[_OTHER_HEAD] + counters[_OTHER_COUNT]) % capacity] = row
            counters[_OTHER_COUNT] += 1
        sequence[row] = counters[_SEEN]
        counters[_SEEN] += 1
        rows[step] = row


@kernel
def _by_age(ranks: Int64, trades: Int64, others: Int64, counters: Int64) -> Int64:
    rows = np.empty(len(ranks), np.int64)
    num_trades = counters[_TRADE_COUNT]
    for index, rank in enumerate(ranks):
        if rank < num_trades:
            rows[index] = trades[(counters[_TRADE_HEAD] + rank) % len(trades)]
        else:
            rows[index] = others[(counters[_OTHER_HEAD] + rank - num_trades) % len(others)]
    return rows


@kernel
def _stretches(
    anchors: Int64, length: int, positions: Int64, decisions: Int64, following: Int64, previous: Int64
) -> Int64:
    """Rows of the stretches that contain the anchors, each from its first stored step to its last.

    A stretch ends early where a neighbour was evicted, also if its row has been reused.
    """
    rows = np.empty(len(anchors) * length, np.int64)
    count = 0
    for anchor in anchors:
        row = anchor
        while decisions[row] % length and _are_neighbours(previous[row], row, positions, decisions):
            row = previous[row]
        rows[count] = row
        count += 1
        while (decisions[row] + 1) % length and _are_neighbours(row, following[row], positions, decisions):
            row = following[row]
            rows[count] = row
            count += 1
    return rows[:count]


@kernel
def _are_neighbours(row: int, after: int, positions: Int64, decisions: Int64) -> bool:
    return bool(
        row >= 0
        and after >= 0
        and positions[row] == positions[after]
        and decisions[row] + 1 == decisions[after]
    )
