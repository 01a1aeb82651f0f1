"""Random but valid trajectories for tests."""

from uuid import UUID

import numpy as np

from shared.agent.trajectory import Trajectory
from shared.environment.action import LEGAL, NUM_ACTIONS, Action, Side
from shared.environment.outcome import NUM_OUTCOMES
from shared.environment.position import NUM_STATIC
from shared.environment.trade import Trade
from shared.numeric import Bool, Float32, Int8

FINGERPRINT = "5e" * 32


def random_trajectory(
    seed: int, num_steps: int = 12, *, start_bar: int = 200, dataset: str = FINGERPRINT, version: int = 3
) -> Trajectory:
    """A random trajectory, which depends only on the arguments.

    Positions are drawn independently per step. 85 % of the actions are HOLD, the others any legal ones.
    """
    rng = np.random.default_rng(seed)
    identity = UUID(bytes=rng.bytes(16))
    static = positions(rng, num_steps)
    legal = LEGAL[static[:, 0].astype(np.int8) + 1]
    return Trajectory(
        trajectory_id=identity,
        worker=f"worker-{seed % 3}",
        checkpoint_version=version,
        dataset=dataset,
        start_bar=start_bar,
        seed=seed,
        static=static,
        actions=legal_actions(rng, legal),
        rewards=(8.0 * rng.normal(size=num_steps)).astype(np.float32),
        policies=distributions(rng, num_steps, NUM_ACTIONS, legal),
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


def positions(rng: np.random.Generator, num_steps: int) -> Float32:
    """Static features `[T, 6]`: short, flat and long about equally often; all zero when flat."""
    static = rng.normal(size=(num_steps, NUM_STATIC))
    static[:, 0] = np.trunc(np.clip(2.3 * static[:, 0], -1.0, 1.0))
    static[:, 1:] = np.tanh(static[:, 1:]) * np.abs(static[:, :1])
    static[:, 2:] = np.abs(static[:, 2:])
    return static.astype(np.float32)


def legal_actions(rng: np.random.Generator, legal: Bool) -> Int8:
    """A legal action for each row of the mask `[T, 4]`."""
    actions = rng.choice(NUM_ACTIONS, len(legal), p=[0.85, 0.05, 0.05, 0.05])
    illegal = ~legal[np.arange(len(legal)), actions]
    instead = np.where(legal[:, Action.CLOSE], Action.CLOSE, Action.BUY + np.arange(len(legal)) % 2)
    return np.where(illegal, instead, actions).astype(np.int8)


def distributions(
    rng: np.random.Generator, num_rows: int, num_columns: int, allowed: Bool | None = None
) -> Float32:
    """Random rows that sum to 1, with zeros where the mask is false."""
    shares = rng.dirichlet(np.ones(num_columns), num_rows)
    if allowed is not None:
        shares *= allowed
        shares /= shares.sum(axis=1, keepdims=True)
    return shares.astype(np.float32)


def same(one: Trajectory, other: Trajectory) -> bool:
    """True when both are equal in every field, bit for bit."""
    for name, value in vars(one).items():
        other_value = getattr(other, name)
        if isinstance(value, np.ndarray):
            if value.dtype != other_value.dtype or not np.array_equal(value, other_value):
                return False
        elif value != other_value:
            return False
    return True
