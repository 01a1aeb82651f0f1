"""Trajectories for tests: valid, and different in every number."""

from uuid import UUID

import numpy as np

from shared.agent.trajectory import Trajectory
from shared.environment.action import NUM_ACTIONS, Side
from shared.environment.outcome import NUM_OUTCOMES
from shared.environment.position import NUM_STATIC
from shared.environment.trade import Trade
from shared.numeric import Float32

FINGERPRINT = "5e" * 32


def random_trajectory(
    seed: int, num_steps: int = 12, *, start_bar: int = 200, dataset: str = FINGERPRINT, version: int = 3
) -> Trajectory:
    """A trajectory of random numbers; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    return Trajectory(
        trajectory_id=UUID(bytes=rng.bytes(16)),
        worker=f"worker-{seed % 3}",
        checkpoint_version=version,
        dataset=dataset,
        start_bar=start_bar,
        seed=seed,
        static=rng.normal(size=(num_steps, NUM_STATIC)).astype(np.float32),
        actions=rng.choice(NUM_ACTIONS, num_steps, p=[0.85, 0.05, 0.05, 0.05]).astype(np.int8),
        rewards=(8.0 * rng.normal(size=num_steps)).astype(np.float32),
        policies=distributions(rng, num_steps, NUM_ACTIONS),
        values=(20.0 * rng.normal(size=num_steps)).astype(np.float32),
        outcomes=rng.integers(NUM_OUTCOMES, size=num_steps).astype(np.int8),
        outcome_probabilities=distributions(rng, num_steps, NUM_OUTCOMES),
        trades=tuple(
            Trade(
                entry_bar=start_bar + 1,
                exit_bar=start_bar + 4,
                side=Side.LONG if rng.random() < 0.5 else Side.SHORT,
                entry_price=185.0 + rng.random(),
                exit_price=185.0 + rng.random(),
                pips=float(rng.normal()),
                max_drawdown_pips=float(rng.random()),
                bars_held=3,
            )
            for _ in range(int(rng.integers(3)))
        ),
    )


def distributions(rng: np.random.Generator, num_rows: int, num_columns: int) -> Float32:
    """Rows that sum to 1."""
    return rng.dirichlet(np.ones(num_columns), num_rows).astype(np.float32)


def same(one: Trajectory, other: Trajectory) -> bool:
    """True when both are equal in every field, bit for bit."""
    for name, value in vars(one).items():
        theirs = getattr(other, name)
        if isinstance(value, np.ndarray):
            if value.dtype != theirs.dtype or not np.array_equal(value, theirs):
                return False
        elif value != theirs:
            return False
    return True
