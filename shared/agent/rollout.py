"""The interaction loop of agent and environment over B sessions in lockstep."""

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import NAMESPACE_OID, UUID, uuid5

import numpy as np

from shared.agent.agent import Agent
from shared.agent.decide import decide
from shared.agent.embeddings import EmbeddingCache
from shared.agent.exploration import Exploration, LaneDraws
from shared.agent.trajectory import Trajectory
from shared.environment.action import NUM_ACTIONS
from shared.environment.environment import EnvironmentConfig, Prices, reset, step
from shared.environment.outcome import NUM_OUTCOMES
from shared.environment.position import NUM_STATIC
from shared.environment.trade import TradeLog
from shared.errors import DataError
from shared.numeric import Float32, Int8, Int64, require_shape
from shared.search.config import SearchConfig


@dataclass(frozen=True)
class MarketView:
    """The columns of a data set that a rollout reads, each of length T."""

    features: Float32  # [T, 9], NaN before the first valid bar
    prices: Prices
    outcomes: Int8  # [T] `ChanceOutcome`, negative where undefined
    fingerprint: str

    def __post_init__(self) -> None:
        """Check that all columns have the same length."""
        require_shape("features", self.features, len(self.prices), None)
        require_shape("outcomes", self.outcomes, len(self.prices))


def play(
    agent: Agent,
    market: MarketView,
    start_bars: Int64,
    environment: EnvironmentConfig,
    search: SearchConfig,
    *,
    seeds: Int64,
    exploration: Exploration | None = None,
    worker: str = "",
    embeddings: EmbeddingCache | None = None,
) -> Iterator[tuple[Trajectory, ...]]:
    """Play one session per start bar, all in lockstep. The caller may stop between any two steps.

    Yields after every step: an empty tuple until the last step, then one trajectory per lane. The trajectory
    of a lane depends on its own start bar and seed, not on the other lanes.

    Args:
        agent: the version that plays all sessions.
        market: the bars, with at least one window before each start bar and a session after it.
        start_bars: `[B]` bars at whose close the first decisions are made.
        environment: costs, rewards and the length of a session.
        search: the settings of the search.
        seeds: `[B]` seed of each lane, 0 or more. Always recorded, but used only with exploration.
        exploration: None plays greedily.
        worker: name of the worker, recorded in each trajectory.
        embeddings: a cache to share with other sessions; it does not change the result. None uses no cache.
    Raises:
        DataError: a session extends beyond the bars, or over bars without features or outcomes.
        ShapeError: the number of seeds differs from the number of lanes.
    """
    require_shape("start_bars", start_bars, None)
    require_shape("seeds", seeds, len(start_bars))
    num_steps, batch = environment.session_bars, len(start_bars)
    temporal, row_of = _embedded(agent, market, start_bars, num_steps, embeddings or EmbeddingCache(0))
    outcomes = _outcomes(market, start_bars, num_steps)
    draws = (
        LaneDraws.draw(exploration, seeds, num_steps, NUM_ACTIONS, search.dirichlet_alpha)
        if exploration is not None
        else None
    )
    record = _Record.blank(num_steps, batch)
    closed: list[TradeLog] = []
    lanes = reset(start_bars)
    for t in range(num_steps):
        static = lanes.static()
        explored = draws.at(t) if draws is not None else None
        decisions = decide(agent, temporal[row_of[t]], static, search, explored)
        transition = step(lanes, decisions.actions, market.prices, environment)
        lanes = transition.lanes
        record.static[t], record.actions[t], record.rewards[t] = static, decisions.actions, transition.reward
        record.policies[t], record.values[t] = decisions.policies, decisions.values
        record.outcome_probabilities[t] = decisions.outcome_probabilities
        closed.append(transition.trades)
        if t < num_steps - 1:
            yield ()
    trades = TradeLog.joined(closed)
    yield tuple(
        Trajectory(
            trajectory_id=_identity(worker, agent.version, market.fingerprint, start_bar, seed),
            worker=worker,
            checkpoint_version=agent.version,
            dataset=market.fingerprint,
            start_bar=start_bar,
            seed=seed,
            static=record.static[:, lane].copy(),
            actions=record.actions[:, lane].copy(),
            rewards=record.rewards[:, lane].copy(),
            policies=record.policies[:, lane].copy(),
            values=record.values[:, lane].copy(),
            outcomes=outcomes[lane],
            outcome_probabilities=record.outcome_probabilities[:, lane].copy(),
            trades=trades.of_lane(lane),
        )
        for lane, (start_bar, seed) in enumerate(zip(start_bars.tolist(), seeds.tolist(), strict=True))
    )


@dataclass(frozen=True)
class _Record:
    """The columns of all lanes. Steps are the first axis, so that each step writes one contiguous block."""

    static: Float32  # [T, B, 6]
    actions: Int8  # [T, B]
    rewards: Float32  # [T, B]
    policies: Float32  # [T, B, 4]
    values: Float32  # [T, B]
    outcome_probabilities: Float32  # [T, B, 3]

    @classmethod
    def blank(cls, num_steps: int, batch: int) -> "_Record":
        shape = (num_steps, batch)
        return cls(
            np.empty((*shape, NUM_STATIC), np.float32),
            np.empty(shape, np.int8),
            np.empty(shape, np.float32),
            np.empty((*shape, NUM_ACTIONS), np.float32),
            np.empty(shape, np.float32),
            np.empty((*shape, NUM_OUTCOMES), np.float32),
        )


def _embedded(
    agent: Agent, market: MarketView, start_bars: Int64, num_steps: int, cache: EmbeddingCache
) -> tuple[Float32, Int64]:
    """Temporal embeddings `[U, E]` of all bars with a decision, and the row of each decision `[T, B]`."""
    before = agent.config.window_bars - 1
    for lane, start in enumerate(start_bars.tolist()):
        # The last decision is filled at the open of the bar after the session.
        if start < before or start + num_steps >= len(market.prices):
            raise DataError(
                f"lane {lane}: a session from bar {start} needs bars {start - before}..{start + num_steps},"
                f" but the data set has bars 0..{len(market.prices) - 1}"
            )
    bars, rows = np.unique(np.arange(num_steps)[:, None] + start_bars, return_inverse=True)
    return cache.rows(agent, market.features, bars), rows.reshape(num_steps, len(start_bars))


def _outcomes(market: MarketView, start_bars: Int64, num_steps: int) -> Int8:
    """The chance outcome after each decision, `[B, T]`."""
    outcomes: Int8 = market.outcomes[start_bars[:, None] + np.arange(num_steps)]
    defined = (outcomes >= 0).all(axis=1)
    if not defined.all():
        raise DataError(f"a session from bar {start_bars[defined.argmin()]} has bars without an outcome")
    return outcomes


def _identity(worker: str, version: int, dataset: str, start_bar: int, seed: int) -> UUID:
    """A deterministic id: the same session replayed by the same worker has the same trajectory id."""
    return uuid5(NAMESPACE_OID, f"{worker}/{version}/{dataset}/{start_bar}/{seed}")
