"""The replay benchmark measures a full replay."""

from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks import replay as benchmark
from benchmarks.replay import INDEX_BYTES, bench_replay, predicted_bytes, replay_costs, row_bytes
from services.trainer.config import ReplayConfig
from services.trainer.replay.buffer import Replay
from services.trainer.replay.steps import StoredSteps


def held_bytes(owner: object) -> int:
    """Total bytes of the arrays of a replay."""
    return sum(
        value.nbytes if isinstance(value, np.ndarray) else held_bytes(value)
        for value in vars(owner).values()
        if isinstance(value, np.ndarray | StoredSteps)
    )


@pytest.mark.parametrize("unroll_steps", [1, 2, 5, 8])
def test_the_predicted_memory_is_that_of_the_arrays_of_a_replay(unroll_steps: int) -> None:
    config = ReplayConfig(capacity_steps=500, success_capacity=30)
    held = held_bytes(Replay(config, unroll_steps))
    assert predicted_bytes(config, unroll_steps) == pytest.approx(held, abs=5 * 8)  # five counters
    stored = StoredSteps(10, unroll_steps)
    assert row_bytes(unroll_steps) * 10 == held_bytes(stored)


def test_the_measured_replay_is_full_and_evicts(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Replay] = []

    def replay(config: ReplayConfig, unroll_steps: int) -> Replay:
        made.append(Replay(config, unroll_steps))
        return made[-1]

    monkeypatch.setattr(benchmark, "Replay", replay)
    measured = replay_costs((700, 400), seconds=0.0)
    assert [costs.num_steps for costs in measured] == [700, 400]
    for costs, full in zip(measured, made, strict=True):
        assert (
            min(costs.insert_seconds, costs.draw_seconds, costs.stretch_seconds, costs.gather_seconds) > 0.0
        )
        statistics = full.statistics
        assert statistics.num_steps == costs.num_steps
        # Each insert evicted a step.
        assert statistics.num_seen >= costs.num_steps + 360 * benchmark.MEASURED_SESSIONS
        assert statistics.num_success_steps > 0  # draws are from both memories
        drawn = full.sample(np.random.default_rng(0), 64, benchmark.STRETCH_STEPS)
        joined = (np.diff(drawn.positions) == 0) & (np.diff(drawn.decisions) == 1)
        assert joined.sum() > 30  # consecutive steps


def test_every_value_has_its_yardstick(monkeypatch: pytest.MonkeyPatch) -> None:
    def costs(sizes: Sequence[int], *, seconds: float, seed: int) -> list[benchmark.ReplayCosts]:
        assert list(sizes) == [20_000, benchmark.SMALL_STEPS]
        return [
            benchmark.ReplayCosts(size, 1e-9 * times, 40e-6 * times, 20e-6 * times, 10e-6 * times, 5_000_000)
            for size, times in zip(sizes, (2.0, 1.0), strict=True)
        ]

    monkeypatch.setattr(benchmark, "replay_costs", costs)
    rows = {f"{row.name} | {row.yardstick}": row for row in bench_replay(20_000)}
    assert {name: row.ratio for name, row in rows.items() if "memory" not in name} == pytest.approx(
        {
            "insert a step, 20,000 steps | 10,000 steps": 0.5,
            "draw 64 in stretches, 20,000 steps | 10,000 steps": 0.5,
            "draw 64 one by one, 20,000 steps | 10,000 steps": 0.5,
            "NumPy takes 64 rows, 20,000 steps | 10,000 steps": 0.5,
            "draw 64 one by one, 20,000 steps | NumPy takes 64 rows, 20,000 steps": 0.25,
        }
    )
    memory = rows["memory, 20,000 steps | predicted by its arithmetic"]
    assert memory.yardstick_value == pytest.approx((20_000 * (224 + INDEX_BYTES) + 1_000 * 224) / 1e6)
    assert {name for name, row in rows.items() if row.goal} == {
        "insert a step, 20,000 steps | 10,000 steps",
        "draw 64 in stretches, 20,000 steps | 10,000 steps",
        "memory, 20,000 steps | predicted by its arithmetic",
    }
