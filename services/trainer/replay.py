"""What is kept, what is evicted, what is drawn.

What the replay holds is a function of the steps that came, not of when they came: the last Q trade
steps (Q being the quota), and the newest of all other steps up to the capacity. Adding one step
therefore evicts the oldest step that is not among the last Q trade steps, in O(1). The same holds for
the success memory, the last S steps with a large reward. So a replay that is filled from the oldest
trajectory it holds a step of equals, draw for draw, the one that saw everything: this is what lets old
journal segments go.
"""

import math
from dataclasses import dataclass

import numpy as np

from services.trainer.config import ReplayConfig
from services.trainer.steps import Steps
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
    """Stored steps in contiguous columns; two rings of row numbers tell their age.

    At 10,000 steps and K = 5 the columns take 1.9 MB; each step more costs 191 bytes and the 24 of
    its places in the rings.
    """

    def __init__(self, config: ReplayConfig, unroll_steps: int) -> None:
        self.config = config
        capacity = config.capacity_steps
        self._quota = min(math.ceil(config.trade_quota * capacity), capacity - 1)
        self._steps = Steps.allocate(capacity, unroll_steps)
        self._born = np.zeros(capacity, np.int64)
        self._trades = np.zeros(capacity, np.int64)
        self._others = np.zeros(capacity, np.int64)
        self._counters = np.zeros(5, np.int64)
        self._successes = Steps.allocate(config.success_capacity, unroll_steps)
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
        """Journal number of the oldest trajectory with a step here; None while empty."""
        oldest = [
            int(self._steps.positions[ring[self._counters[head]]])
            for ring, head, count in (
                (self._trades, _TRADE_HEAD, _TRADE_COUNT),
                (self._others, _OTHER_HEAD, _OTHER_COUNT),
            )
            if self._counters[count]
        ]
        if self._num_successes:
            oldest.append(int(self._successes.positions[self._success_rows(np.zeros(1, np.int64))[0]]))
        return min(oldest, default=None)

    def extend(self, steps: Steps) -> None:
        """Add steps, the oldest first, and evict as many as are too many."""
        rows = np.empty(len(steps), np.int64)
        _place(steps.is_trade, self._quota, self._born, self._trades, self._others, self._counters, rows)
        self._steps.put(rows, steps)
        fresh = np.flatnonzero(steps.rewards[:, 0] > self.config.success_reward_pips)
        places = (self._num_successes + np.arange(len(fresh))) % self.config.success_capacity
        self._successes.put(places, steps.take(fresh))
        self._num_successes += len(fresh)

    def sample(self, generator: np.random.Generator, batch_size: int) -> Steps:
        """Steps drawn with replacement: a share from the success memory, the others from all evenly.

        Raises:
            ValueError: the replay is empty.
        """
        wanted = round(batch_size * self.config.success_share) if self._num_successes else 0
        drawn = self._steps.take(self._rows(generator.integers(len(self), size=batch_size - wanted)))
        if not wanted:
            return drawn
        ranks = generator.integers(self._success_count, size=wanted)
        return drawn.joined(self._successes.take(self._success_rows(ranks)))

    def contents(self) -> tuple[Steps, Steps]:
        """All stored steps in the order that `sample` counts them in, and the successes, oldest first."""
        everything = self._steps.take(self._rows(np.arange(len(self))))
        return everything, self._successes.take(self._success_rows(np.arange(self._success_count)))

    @property
    def _success_count(self) -> int:
        return min(self._num_successes, self.config.success_capacity)

    def _rows(self, ranks: Int64) -> Int64:
        """Rows of steps counted by age: trade steps first, then all others."""
        capacity, num_trades = self.config.capacity_steps, self._counters[_TRADE_COUNT]
        trades = self._trades[(self._counters[_TRADE_HEAD] + ranks) % capacity]
        others = self._others[(self._counters[_OTHER_HEAD] + ranks - num_trades) % capacity]
        rows: Int64 = np.where(ranks < num_trades, trades, others)
        return rows

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
