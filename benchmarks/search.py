"""Decisions per second of the search, against the same network calls alone.

One decision's calls to the networks are recorded, with their inputs, and made again without any tree: their
share of the search's time says how much the tree costs. Temporal embeddings are shared by all and not timed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from benchmarks.measure import Measurement, quickest
from shared.agent.agent import Agent
from shared.agent.decide import POSITION_RULES, decide
from shared.environment.position import static_features
from shared.model.config import ModelConfig
from shared.model.network import initial_network
from shared.numeric import Float32, Int8
from shared.search.config import SearchConfig
from shared.search.search import search

BATCHES = (1, 16, 64, 256)
SIMULATIONS = (5, 25, 50)

#: Goal, for so many simulations and at least so many roots.
GOAL_RATIO = 0.85
GOAL_SIMULATIONS = 5
GOAL_BATCH = 64


@dataclass(frozen=True)
class SearchSpeed:
    """One row of the table; of the quickest repetition, the one that was disturbed least."""

    batch: int
    simulations: int
    decisions_per_second: float
    bound_per_second: float  # of the same network calls alone

    @property
    def measurement(self) -> Measurement:
        """As a row; a ratio of 1 would be a tree that costs nothing."""
        has_goal = self.simulations == GOAL_SIMULATIONS and self.batch >= GOAL_BATCH
        return Measurement(
            name=f"search, {self.batch} roots, {self.simulations} simulations",
            value=self.decisions_per_second,
            unit="decisions/s",
            yardstick="the same network calls alone",
            yardstick_value=self.bound_per_second,
            smaller_is_better=False,
            goal_ratio=GOAL_RATIO if has_goal else None,
        )


def bench_search(
    agent: Agent | None = None,
    *,
    config: SearchConfig | None = None,
    batches: tuple[int, ...] = BATCHES,
    simulations: tuple[int, ...] = SIMULATIONS,
    seconds: float = 1.0,
    seed: int = 0,
) -> list[SearchSpeed]:
    """Measure every batch size with every number of simulations.

    Args:
        agent: the version that decides; None for a new network of the reference sizes.
        config: of the search; its number of simulations is not used.
        batches: numbers of roots, a third each flat, long and short.
        simulations: numbers of simulations.
        seconds: to spend on each pair, at least.
        seed: of the situations.
    """
    agent = agent or Agent(initial_network(ModelConfig(), seed), version=0)
    config = config or SearchConfig()
    rows = []
    for count in simulations:
        for batch in batches:
            numbered = replace(config, simulations=count)
            rows.append(_measure(agent, numbered, batch, seconds, seed))
    return rows


def _measure(agent: Agent, config: SearchConfig, batch: int, seconds: float, seed: int) -> SearchSpeed:
    temporal, static = _situations(agent, batch, seed)
    calls = _network_calls(agent, temporal, static, config)

    def networks_alone() -> None:
        for call in calls:
            call()

    decisions = partial(decide, agent, temporal, static, config)
    whole, alone = quickest((decisions, networks_alone), repeats=5, seconds=seconds)
    return SearchSpeed(batch, config.simulations, batch / whole, batch / alone)


def _situations(agent: Agent, batch: int, seed: int) -> tuple[Float32, Float32]:
    """Embeddings and static features of random situations."""
    rng = np.random.default_rng(seed)
    temporal = np.abs(rng.normal(size=(batch, agent.config.temporal_channels))).astype(np.float32)
    pnl = rng.normal(0.0, 10.0, batch)
    drawdown = np.abs(rng.normal(0.0, 10.0, batch))
    side = (np.arange(batch) % 3 - 1).astype(np.int8)
    held = rng.integers(1, 60, batch)
    return temporal, static_features(side, pnl, held, pnl + drawdown, drawdown, drawdown * held)


@dataclass
class _Recorder:
    """Passes calls on to an agent and keeps them, inputs and all."""

    agent: Agent
    calls: list[Callable[[], object]] = field(default_factory=list)

    def afterstates(self, hidden: Float32, actions: Int8) -> tuple[Float32, Float32, Float32]:
        call = partial(self.agent.afterstates, hidden, actions)
        self.calls.append(call)
        return call()

    def successors(
        self, afterstates: Float32, actions: Int8, outcomes: Int8
    ) -> tuple[Float32, Float32, Float32, Float32]:
        call = partial(self.agent.successors, afterstates, actions, outcomes)
        self.calls.append(call)
        return call()


def _network_calls(
    agent: Agent, temporal: Float32, static: Float32, config: SearchConfig
) -> list[Callable[[], object]]:
    phases = static[:, 0].astype(np.int8) + np.int8(1)
    root_call = partial(agent.roots, temporal, static, phases)
    recorder = _Recorder(agent)
    search(recorder, root_call(), POSITION_RULES, config)
    return [root_call, *recorder.calls]
