"""Time to insert and sample steps in a large replay and its memory, compared with a small replay.

Both contain complete sessions, as the trainer inserts them. Memory is compared with the sum of the parts in
the docstring of the replay. The process grows by less than that sum, because a part of the ring of trade
steps is never written.

Single steps sampled from a large replay are never in the cache. To show the cost of memory itself, NumPy
takes the same number of rows of the same size from an array of the same size.
"""

import gc
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.measure import Measurement, quickest
from services.trainer.config import ReplayConfig
from services.trainer.replay.buffer import Replay
from services.trainer.replay.steps import Steps
from shared.environment.action import NUM_ACTIONS
from shared.market.session import SESSION_BARS
from shared.numeric import Int64

#: Goals in docs/benchmarks.md. A large replay is slower because it has more cache misses.
GOAL_INSERT, GOAL_STRETCHES, GOAL_MEMORY = 0.8, 0.8, 0.95

SMALL_STEPS = 10_000
UNROLL_STEPS = 5
BATCH_SIZE = 64
STRETCH_STEPS = 16

#: Minimum number of sessions inserted into each full replay, and draws per repetition.
MEASURED_SESSIONS, DRAWS = 200, 10

#: Bytes per step in addition to its row: its age, its positions in two rings, its two neighbours.
INDEX_BYTES = 40

#: Probabilities that a decision is a trade, and that it is a success.
_TRADES, _SUCCESSES = 0.05, 0.02


@dataclass(frozen=True)
class ReplayCosts:
    """The measurements of one full replay."""

    num_steps: int
    insert_seconds: float  # per step that evicts another
    draw_seconds: float  # per batch of single steps
    stretch_seconds: float  # per batch of stretches
    gather_seconds: float  # per batch of rows that NumPy takes from an array of the same size
    grown_bytes: int  # growth of the process while the replay was filled


def row_bytes(unroll_steps: int) -> int:
    """Bytes of a row with K unroll steps: 73 + 30 K, rounded up to a multiple of 8."""
    return -(-(73 + 30 * unroll_steps) // 8) * 8


def predicted_bytes(config: ReplayConfig, unroll_steps: int) -> int:
    """Memory of a full replay: a row and `INDEX_BYTES` per step, and the rows of the success memory."""
    row = row_bytes(unroll_steps)
    return config.capacity_steps * (row + INDEX_BYTES) + config.success_capacity * row


def bench_replay(num_steps: int = 10_000_000, *, seconds: float = 2.0, seed: int = 0) -> list[Measurement]:
    """Fill a small and a large replay, and measure both.

    Args:
        num_steps: capacity of the large replay.
        seconds: minimum duration of each measurement.
        seed: seed of steps and draws.
    """
    large, small = replay_costs((num_steps, SMALL_STEPS), seconds=seconds, seed=seed)
    predicted = predicted_bytes(_config(num_steps), UNROLL_STEPS)
    of, against = f"{num_steps:,} steps", f"{SMALL_STEPS:,} steps"
    rows = [
        Measurement(
            name=f"{what}, {of}",
            value=scale * getattr(large, field),
            unit=unit,
            yardstick=against,
            yardstick_value=scale * getattr(small, field),
            goal_ratio=goal,
        )
        for what, field, scale, unit, goal in (
            ("insert a step", "insert_seconds", 1e9, "ns", GOAL_INSERT),
            (f"draw {BATCH_SIZE} in stretches", "stretch_seconds", 1e6, "µs", GOAL_STRETCHES),
            (f"draw {BATCH_SIZE} one by one", "draw_seconds", 1e6, "µs", None),
            (f"NumPy takes {BATCH_SIZE} rows", "gather_seconds", 1e6, "µs", None),
        )
    ]
    gathered = Measurement(
        name=f"draw {BATCH_SIZE} one by one, {of}",
        value=1e6 * large.draw_seconds,
        unit="µs",
        yardstick=f"NumPy takes {BATCH_SIZE} rows, {of}",
        yardstick_value=1e6 * large.gather_seconds,
    )
    memory = Measurement(
        name=f"memory, {of}",
        value=large.grown_bytes / 1e6,
        unit="MB",
        yardstick="predicted by its arithmetic",
        yardstick_value=predicted / 1e6,
        goal_ratio=GOAL_MEMORY,
    )
    return [*rows, gathered, memory]


def replay_costs(sizes: Sequence[int], *, seconds: float, seed: int = 0) -> list[ReplayCosts]:
    """Fill replays, then measure inserts and draws in alternation. Each inserted step evicts another.

    Args:
        sizes: capacities, largest first, so that no replay reuses the memory of a smaller one.
        seconds: minimum duration of the inserts, and of the draws.
        seed: seed of steps and draws.
    """
    rng = np.random.default_rng(seed)
    session = _session(rng)
    full = [_FullReplay.of(num_steps, session, rng) for num_steps in sizes]
    inserts = quickest([one.insert for one in full], repeats=MEASURED_SESSIONS, seconds=seconds)
    ways = [way for one in full for way in (one.draw, one.draw_stretches, one.gather)]
    draws = [spent / DRAWS for spent in quickest(ways, repeats=20, seconds=seconds)]
    per_replay = zip(inserts, draws[::3], draws[1::3], draws[2::3], full, strict=True)
    return [
        ReplayCosts(len(one.replay), insert / SESSION_BARS, draw, stretches, gather, one.grown_bytes)
        for insert, draw, stretches, gather, one in per_replay
    ]


@dataclass
class _FullReplay:
    """A full replay, and a NumPy array of the same size."""

    replay: Replay
    session: Steps
    rng: np.random.Generator
    position: int = 0
    grown_bytes: int = 0
    plain: Int64 = field(default_factory=lambda: np.ones((1, row_bytes(UNROLL_STEPS) // 8), np.int64))

    @classmethod
    def of(cls, num_steps: int, session: Steps, rng: np.random.Generator) -> "_FullReplay":
        gc.collect()
        before = _resident_bytes()
        full = cls(Replay(_config(num_steps), UNROLL_STEPS), session, rng)
        while len(full.replay) < num_steps:
            full.insert()
        full.grown_bytes = _resident_bytes() - before
        full.plain = np.ones((num_steps, full.plain.shape[1]), np.int64)
        return full

    def insert(self) -> None:
        self.session.positions[:] = self.position
        self.position += 1
        self.replay.extend(self.session)

    def draw(self) -> None:
        for _ in range(DRAWS):
            self.replay.sample(self.rng, BATCH_SIZE)

    def draw_stretches(self) -> None:
        for _ in range(DRAWS):
            self.replay.sample(self.rng, BATCH_SIZE, STRETCH_STEPS)

    def gather(self) -> None:
        for _ in range(DRAWS):
            self.plain.take(self.rng.integers(len(self.plain), size=BATCH_SIZE), axis=0)


def _config(num_steps: int) -> ReplayConfig:
    return ReplayConfig(capacity_steps=num_steps)


def _session(rng: np.random.Generator) -> Steps:
    """Random steps of one session; some are trades, some earn enough to count as successes."""
    steps = Steps.allocate(SESSION_BARS, UNROLL_STEPS)
    steps.decisions[:] = np.arange(SESSION_BARS)
    steps.actions[:] = np.where(
        rng.random(steps.actions.shape) < _TRADES, rng.integers(1, NUM_ACTIONS, steps.actions.shape), 0
    )
    for column in (steps.static, steps.rewards, steps.policies, steps.returns, steps.decision_returns):
        column[:] = rng.normal(size=column.shape)
    steps.unshaped_rewards[:] = np.where(
        rng.random(SESSION_BARS) < _SUCCESSES, 2.0 * ReplayConfig.success_reward_pips, 0.0
    )
    steps.lengths[:] = UNROLL_STEPS + 1
    return steps


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
