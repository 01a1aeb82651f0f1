"""What is kept, what is evicted, what is drawn.

What the replay holds is a function of the steps that came, not of when they came: the last Q trade
steps (Q being the quota), and the newest of all other steps up to the capacity. Adding one step
therefore evicts the oldest step that is not among the last Q trade steps, in O(1). The same holds for
the success memory, the last S steps with a large reward. So a replay that is filled from the oldest
trajectory it can draw a step of equals, draw for draw, the one that saw everything: this is what lets old
journal segments go.
"""

import math
from dataclasses import dataclass

import numpy as np

from services.trainer.config import ReplayConfig
from services.trainer.replay.steps import Steps, StoredSteps
from shared.numeric import Bool, Int64, kernel

#: Places in `_counters`: where the ring of trade steps begins, how many it holds; the same of all others.
_TRADE_HEAD, _TRADE_COUNT, _OTHER_HEAD, _OTHER_COUNT, _SEEN = range(5)


@dataclass(frozen=True)
class ReplayStatistics:
    """How full the replay is, and of what."""

    num_steps: int
    num_trade_steps: int
    num_success_steps: int
    num_seen: int

    @property
    def trade_share(self) -> float:
        """Share of the stored steps that are trade steps."""
        return self.num_trade_steps / self.num_steps if self.num_steps else 0.0


class Replay:
    """Stored steps in rows; two rings of row numbers tell their age.

    At 10,000 steps and K = 5 the rows take 2.2 MB; each step more costs 224 bytes, the 24 of its age and its
    places in the rings and the 16 of its neighbours.
    """

    def __init__(self, config: ReplayConfig, unroll_steps: int) -> None:
        self.config = config
        capacity = config.capacity_steps
        self._quota = min(math.ceil(config.trade_quota * capacity), capacity - 1)
        self._steps = StoredSteps(capacity, unroll_steps)
        self._born = np.zeros(capacity, np.int64)
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
        """How full it is now."""
        return ReplayStatistics(
            num_steps=len(self),
            num_trade_steps=int(self._counters[_TRADE_COUNT]),
            num_success_steps=self._success_count,
            num_seen=int(self._counters[_SEEN]),
        )

    @property
    def oldest_position(self) -> int | None:
        """Journal number of the oldest trajectory with a step that may be drawn; None while empty."""
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
        """Add steps, the oldest first, and evict as many as are too many."""
        rows = np.empty(len(steps), np.int64)
        _place(steps.is_trade, self._quota, self._born, self._trades, self._others, self._counters, rows)
        self._steps.put(rows, steps)
        joined = np.diff(steps.positions) == 0
        self._next[rows] = np.append(np.where(joined, rows[1:], -1), -1)
        self._previous[rows] = np.append(-1, np.where(joined, rows[:-1], -1))
        fresh = np.flatnonzero(steps.paid > self.config.success_reward_pips)
        places = (self._num_successes + np.arange(len(fresh))) % self.config.success_capacity
        self._successes.put(places, steps.take(fresh))
        self._num_successes += len(fresh)

    def sample(self, generator: np.random.Generator, batch_size: int, stretch_steps: int = 1) -> Steps:
        """Steps drawn with replacement: a share from the success memory, the others from all evenly.

        A trajectory's decisions k L to k L + L - 1 are a stretch. Each step drawn from all brings with it
        those of its stretch that are stored. So a step is as likely as the stored part of its stretch is
        long, and the more stretches have lost steps to eviction, the fewer steps are drawn: trade steps that
        only the quota keeps come alone.

        Args:
            generator: draws.
            batch_size: steps wanted; rounded up to whole stretches.
            stretch_steps: L; 1 draws single steps.
        Raises:
            ValueError: the replay is empty.
        """
        wanted = round(batch_size * self.config.success_share) if self._num_successes else 0
        anchors = self._rows(generator.integers(len(self), size=-(-(batch_size - wanted) // stretch_steps)))
        steps = self._steps
        drawn = steps.take(
            _stretches(anchors, stretch_steps, steps.positions, steps.decisions, self._next, self._previous)
        )
        if wanted:
            ranks = generator.integers(self._success_count, size=wanted)
            drawn = np.concatenate([drawn, self._successes.take(self._success_rows(ranks))])
        return steps.in_columns(drawn)

    def contents(self) -> tuple[Steps, Steps]:
        """All stored steps in the order that `sample` counts them in, and the successes, oldest first."""
        everything = self._steps.take(self._rows(np.arange(len(self))))
        successes = self._successes.take(self._success_rows(np.arange(self._success_count)))
        return self._steps.in_columns(everything), self._successes.in_columns(successes)

    @property
    def _success_count(self) -> int:
        return min(self._num_successes, self.config.success_capacity)

    def _rows(self, ranks: Int64) -> Int64:
        """Rows of steps counted by age: trade steps first, then all others."""
        return _by_age(ranks, self._trades, self._others, self._counters)

    def _success_rows(self, ranks: Int64) -> Int64:
        return (self._num_successes - self._success_count + ranks) % self.config.success_capacity


@kernel
def _place(
    is_trade: Bool,
    quota: int,
    born: Int64,
    trades: Int64,
    others: Int64,
    counters: Int64,
    rows: Int64,
) -> None:
    """Find a row for each new step, freeing the oldest unprotected one when all are taken.

    `born` is each row's age; `trades` and `others` are rings of rows, the oldest at their heads.
    """
    capacity = len(born)
    for step in range(len(is_trade)):
        num_trades, num_others = counters[_TRADE_COUNT], counters[_OTHER_COUNT]
        if num_trades + num_others < capacity:
            row = num_trades + num_others
        else:
            oldest_trade = trades[counters[_TRADE_HEAD]]
            oldest_other = others[counters[_OTHER_HEAD]]
            protected = num_trades + is_trade[step] <= quota
            if num_others and (protected or not num_trades or born[oldest_other] < born[oldest_trade]):
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
        born[row] = counters[_SEEN]
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
    """Rows of the stretches that the anchors are in, each from its first step to its last.

    A neighbour may be gone and its row another step's; then the stretch ends there.
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
