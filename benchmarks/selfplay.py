"""Steps per second of a whole self-play worker, against its network evaluations alone.

The bound is what the same work would take if trees, environment, records and randomness cost nothing:
the encoder's pass over each lane's session, and the calls that one decision of all lanes makes, as
`bench_search` measures them, times the session's length.
"""

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from benchmarks.measure import Measurement
from benchmarks.search import bench_search
from services.selfplay.config import SelfPlayConfig
from services.selfplay.worker import SelfPlayWorker
from shared.agent.agent import Agent
from shared.agent.rollout import MarketView
from shared.environment.environment import EnvironmentConfig, Prices
from shared.environment.outcome import label_outcomes
from shared.features.window import temporal_features
from shared.market.session import SESSION_BARS, WARMUP_BARS
from shared.market.synthetic import Market, synthesize
from shared.messages.codec import encode, encode_trajectory
from shared.model.config import ModelConfig
from shared.model.network import initial_network
from shared.search.config import SearchConfig

#: The goal in docs/benchmarks.md.
GOAL_SHARE = 0.7
GOAL_SERIALISING_PERCENT = 2.0

NUM_BARS = 5_000


@dataclass(frozen=True)
class SelfPlaySpeed:
    """Of the quickest batch, the one that was disturbed least."""

    lanes: int
    simulations: int
    steps_per_second: float
    episodes_per_hour: float
    bound_steps_per_second: float  # of the network evaluations alone
    embedding_share: float  # of a batch's time that its sessions' embeddings take
    serialising_share: float  # what turning a batch into messages adds to its time

    @property
    def measurements(self) -> list[Measurement]:
        """As rows; an hour's episodes are at whole sessions' length."""
        of = f"{self.lanes} lanes, {self.simulations} simulations"
        playing = Measurement(
            name=f"self-play, {of}: {self.episodes_per_hour:,.0f} episodes/hour",
            value=self.steps_per_second,
            unit="steps/s",
            yardstick="its network evaluations alone",
            yardstick_value=self.bound_steps_per_second,
            smaller_is_better=False,
            goal_ratio=GOAL_SHARE,
        )
        serialising = Measurement(
            name=f"a batch made messages, {of}",
            value=100.0 * self.serialising_share,
            unit="% of playing",
            yardstick="playing it",
            yardstick_value=100.0,
            goal_value=GOAL_SERIALISING_PERCENT,
        )
        return [playing, serialising]


def bench_selfplay(
    *,
    model: ModelConfig | None = None,
    selfplay: SelfPlayConfig | None = None,
    search: SearchConfig | None = None,
    environment: EnvironmentConfig | None = None,
    seconds: float = 15.0,
    seed: int = 0,
) -> SelfPlaySpeed:
    """Measure a worker with random weights on a synthetic market.

    Args:
        model: sizes; the reference's where not given, as everywhere here.
        selfplay: lanes and exploration.
        search: of every decision.
        environment: length of a session and costs.
        seconds: to play for, at least.
        seed: of market, weights and draws.
    """
    config, search = selfplay or SelfPlayConfig(), search or SearchConfig()
    environment = environment or EnvironmentConfig()
    bars = synthesize(Market.REGIMES, NUM_BARS, seed)
    market = MarketView(
        temporal_features(bars), Prices.of(bars), label_outcomes(bars.close), bars.fingerprint
    )
    agent = Agent(initial_network(model or ModelConfig(), seed), version=0)
    starts = np.arange(WARMUP_BARS, NUM_BARS - SESSION_BARS - 1)
    worker = SelfPlayWorker(
        "benchmark", market, starts, config, environment, search, np.random.default_rng(seed)
    )
    batch_seconds, embed_seconds, serialise_seconds = _measure(
        worker, agent, market, config, environment, seconds
    )
    (decisions,) = bench_search(
        agent,
        config=search,
        batches=(config.lanes,),
        simulations=(search.simulations,),
        seconds=min(seconds, 3.0),
        seed=seed,
    )
    steps = worker.steps_per_batch
    bound_seconds = embed_seconds + steps / decisions.bound_per_second
    return SelfPlaySpeed(
        lanes=config.lanes,
        simulations=search.simulations,
        steps_per_second=steps / batch_seconds,
        episodes_per_hour=3600.0 * config.lanes / batch_seconds,
        bound_steps_per_second=steps / bound_seconds,
        embedding_share=embed_seconds / batch_seconds,
        serialising_share=serialise_seconds / batch_seconds,
    )


def _measure(
    worker: SelfPlayWorker,
    agent: Agent,
    market: MarketView,
    config: SelfPlayConfig,
    environment: EnvironmentConfig,
    seconds: float,
) -> tuple[float, float, float]:
    """Least seconds of playing a batch, of its embeddings alone, and of turning it into messages."""
    first = WARMUP_BARS - agent.config.window_bars + 1
    rows = market.features[first : WARMUP_BARS + environment.session_bars]
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    worker.play(agent, 0, lambda: False)  # compiles, and fills the caches
    end = perf_counter() + seconds
    while perf_counter() < end or len(times[0]) < 2:
        marks = [perf_counter()]
        finished = worker.play(agent, 0, lambda: False)
        marks.append(perf_counter())
        for _ in range(config.lanes):
            agent.embed_span(rows)
        marks.append(perf_counter())
        for trajectory in finished:
            encode(*encode_trajectory(trajectory))
        marks.append(perf_counter())
        for taken, duration in zip(times, np.diff(marks).tolist(), strict=True):
            taken.append(duration)
    played, embedded, serialised = (min(taken) for taken in times)
    return played, embedded, serialised
