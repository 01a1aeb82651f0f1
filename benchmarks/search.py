"""Decisions per second of the search, compared with its network calls alone and with other searches.

**The same network calls alone.** The network calls of one decision are recorded with their inputs and
repeated without a tree. Their share of the search's time shows the cost of the tree.

**Peers** use the same weights and situations. They are compiled mctx (benchmarks/peers/mctx_search.py),
LightZero's tree and, at batch 1, a tree of node objects. The two trees call plain torch modules. Each peer is
measured twice: with given temporal embeddings, and with the window of every root encoded as part of the
decision.

All are measured in alternation on one core. The fastest repetition of each counts.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import TypeVar

import numpy as np

from benchmarks.measure import Measurement
from benchmarks.peers.lightzero import lightzero_missing, lightzero_visits
from benchmarks.peers.nodes import NodeSearch, PlainModel
from benchmarks.peers.process import MctxProcess, least_seconds, mctx_missing, on_one_core
from benchmarks.peers.situations import Encoding, Situations
from benchmarks.peers.weights import exported
from shared.agent.agent import Agent
from shared.agent.decide import POSITION_RULES, decide
from shared.engine.precision import Precision
from shared.engine.processor import HAS_BFLOAT16
from shared.environment.position import static_features
from shared.model.config import ModelConfig
from shared.model.network import Network, initial_network
from shared.numeric import Float32, Int8
from shared.search.config import SearchConfig, Selection
from shared.search.model import ActionRules, Roots
from shared.search.search import search

BATCHES = (1, 16, 64, 256)
SIMULATIONS = (5, 25, 50)

#: Goal relative to the network calls alone, with this many simulations and at least this many roots.
GOAL_RATIO = 0.85
GOAL_SIMULATIONS = 5
GOAL_BATCH = 64

#: Goals relative to mctx with shared encoding at those sizes; at other sizes the goal is 1.
GOAL_MCTX = {Precision.FLOAT32: 3.0, Precision.BFLOAT16: 5.0}

#: Each turn repeats its call for this long, and at least once.
TURN_SECONDS = 0.03
TURNS = 5

Turn = Callable[[float], float]
PlainSearch = Callable[[PlainModel, Roots, ActionRules, SearchConfig], object]
Key = TypeVar("Key")


@dataclass(frozen=True)
class PeerSpeed:
    """Decisions of a peer and of this project with the same temporal encoding."""

    peer: str
    encoding: Encoding
    decisions_per_second: float  # of this project
    peer_per_second: float
    goal_ratio: float | None = None


@dataclass(frozen=True)
class SearchSpeed:
    """The fastest repetition at one size."""

    batch: int
    simulations: int
    decisions_per_second: float
    bound_per_second: float  # rate of the network calls alone
    precision: Precision = Precision.FLOAT32
    peers: tuple[PeerSpeed, ...] = ()

    @property
    def measurement(self) -> Measurement:
        """The comparison with the network calls alone; a ratio of 1 means that the tree costs nothing."""
        has_goal = self.simulations == GOAL_SIMULATIONS and self.batch >= GOAL_BATCH
        return Measurement(
            name=self._name,
            value=self.decisions_per_second,
            unit="decisions/s",
            yardstick="the same network calls alone",
            yardstick_value=self.bound_per_second,
            smaller_is_better=False,
            goal_ratio=GOAL_RATIO if has_goal else None,
            label=self._label,
        )

    @property
    def measurements(self) -> list[Measurement]:
        """The comparisons with the network calls and with every peer."""
        return [
            self.measurement,
            *(
                Measurement(
                    name=self._name if peer.encoding is Encoding.SHARED else f"{self._name}, windows encoded",
                    value=peer.decisions_per_second,
                    unit="decisions/s",
                    yardstick=f"{peer.peer}, {peer.encoding}",
                    yardstick_value=peer.peer_per_second,
                    smaller_is_better=False,
                    goal_ratio=peer.goal_ratio,
                    label=self._label,
                )
                for peer in self.peers
            ),
        ]

    @property
    def _name(self) -> str:
        roots, simulations = _counted(self.batch, "root"), _counted(self.simulations, "simulation")
        return f"search, {roots}, {simulations}, {self.precision}"

    @property
    def _label(self) -> str:
        return f"{self.batch} × {self.simulations}, {self.precision}"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def bench_search(
    agent: Agent,
    *,
    config: SearchConfig | None = None,
    batches: Sequence[int] = BATCHES,
    simulations: Sequence[int] = SIMULATIONS,
    seconds: float = 1.0,
    seed: int = 0,
) -> list[SearchSpeed]:
    """Measure every batch size and number of simulations relative to the network calls alone.

    Args:
        agent: the networks.
        config: settings of the search; its number of simulations is not used.
        batches: numbers of roots. A third each is flat, long and short.
        simulations: numbers of simulations.
        seconds: minimum duration per pair of sizes.
        seed: seed of the situations.
    """
    config = config or SearchConfig()
    rows = []
    for count in simulations:
        for batch in batches:
            ours = _Ours(agent, replace(config, simulations=count), _situations(agent.config, batch, seed))
            full, alone = _in_turns({"full": ours.shared, "alone": ours.networks_alone}, seconds).values()
            rows.append(SearchSpeed(batch, count, batch / full, batch / alone, agent.precision))
    return rows


def compare_search(
    network: Network | None = None,
    *,
    config: SearchConfig | None = None,
    batches: Sequence[int] = BATCHES,
    simulations: Sequence[int] = SIMULATIONS,
    seconds: float = 1.0,
    seed: int = 0,
    peers: bool = True,
) -> list[SearchSpeed]:
    """Measure every size in every precision of this processor relative to all yardsticks.

    Args:
        network: the weights; None uses a new network of the reference sizes.
        config: settings of our search; its number of simulations is not used. Peers use those of puct.
        batches: numbers of roots. A third each is flat, long and short.
        simulations: numbers of simulations.
        seconds: minimum duration per size, without the seconds in which mctx compiles.
        seed: seed of the situations.
        peers: whether to measure peers. `mctx_missing` and `lightzero_missing` return why one is left out.
    Raises:
        ServiceError: the process that measures mctx exited.
    """
    network = network or initial_network(ModelConfig(), seed)
    config = config or SearchConfig()
    agents = _agents(network)
    rows = []
    with ExitStack() as stack:
        mctx = None
        if peers and mctx_missing() is None:
            core = stack.enter_context(on_one_core())
            mctx = stack.enter_context(MctxProcess(exported(network), network.config, config, core))
        for count in simulations:
            for batch in batches:
                numbered = replace(config, simulations=count)
                situations = _situations(network.config, batch, seed)
                plain = replace(numbered, selection=Selection.PUCT)
                nodes = (
                    _PlainPeer(network, plain, situations, _node_objects) if peers and batch == 1 else None
                )
                lightzero = (
                    _PlainPeer(network, plain, situations, lightzero_visits)
                    if peers and lightzero_missing() is None
                    else None
                )
                rows += _compare(agents, numbered, situations, mctx, lightzero, nodes, seconds)
    return rows


def _agents(network: Network) -> dict[Precision, Agent]:
    precisions = [Precision.FLOAT32, *([Precision.BFLOAT16] if HAS_BFLOAT16 else [])]
    return {precision: Agent(network, 0, precision) for precision in precisions}


def _compare(
    agents: Mapping[Precision, Agent],
    config: SearchConfig,
    situations: Situations,
    mctx: MctxProcess | None,
    lightzero: "_PlainPeer | None",
    nodes: "_PlainPeer | None",
    seconds: float,
) -> list[SearchSpeed]:
    """Measure one size in all precisions, in alternation."""
    batch, count = len(situations.static), config.simulations
    turns: dict[tuple[object, ...], Turn] = {}
    for precision, agent in agents.items():
        ours = _Ours(agent, config, situations)
        turns[precision, "alone"] = ours.networks_alone
        turns[precision, Encoding.SHARED] = ours.shared
        if mctx or nodes or lightzero:
            turns[precision, Encoding.THINNED] = ours.encoded
    if mctx:
        for encoding in Encoding:
            turns["mctx", encoding] = partial(mctx.least_seconds, situations, count, encoding)
    if lightzero:
        turns["LightZero's tree", Encoding.SHARED] = lightzero.shared
        turns["LightZero's tree", Encoding.PLAIN] = lightzero.encoded
    if nodes:
        turns["node objects", Encoding.SHARED] = nodes.shared
        turns["node objects", Encoding.PLAIN] = nodes.encoded
    per_second = {key: batch / taken for key, taken in _in_turns(turns, seconds).items()}

    def peer_speeds(precision: Precision) -> list[PeerSpeed]:
        speeds = []
        for peer in ("mctx", "LightZero's tree", "node objects"):
            for encoding in Encoding:
                if (peer, encoding) in per_second:
                    shared = encoding is Encoding.SHARED
                    ours = per_second[precision, Encoding.SHARED if shared else Encoding.THINNED]
                    goal = _peer_goal(peer, encoding, precision, batch, count)
                    speeds.append(PeerSpeed(peer, encoding, ours, per_second[peer, encoding], goal))
        return speeds

    return [
        SearchSpeed(
            batch,
            count,
            per_second[precision, Encoding.SHARED],
            per_second[precision, "alone"],
            precision,
            tuple(peer_speeds(precision)),
        )
        for precision in agents
    ]


def _peer_goal(
    peer: str, encoding: Encoding, precision: Precision, batch: int, simulations: int
) -> float | None:
    if peer == "node objects":
        return None
    if (
        peer == "mctx"
        and encoding is Encoding.SHARED
        and (batch, simulations) == (GOAL_BATCH, GOAL_SIMULATIONS)
    ):
        return GOAL_MCTX[precision]
    return 1.0


def _in_turns(turns: Mapping[Key, Turn], seconds: float) -> dict[Key, float]:
    """The shortest time of one call by key, in seconds. The first turn compiles and does not count."""
    for turn in turns.values():
        turn(0.0)
    least = dict.fromkeys(turns, float("inf"))
    end, done = perf_counter() + seconds, 0
    while done < TURNS or perf_counter() < end:
        for key, turn in turns.items():
            least[key] = min(least[key], turn(TURN_SECONDS))
        done += 1
    return least


class _Ours:
    """Repeats the decisions of an agent in the same situations; methods return the least seconds."""

    def __init__(self, agent: Agent, config: SearchConfig, situations: Situations) -> None:
        self._agent, self._config, self._situations = agent, config, situations
        self._calls = _network_calls(agent, situations.temporal, situations.static, config)

    def shared(self, seconds: float) -> float:
        """Decide from the given embeddings."""
        situations = self._situations
        return least_seconds(
            partial(decide, self._agent, situations.temporal, situations.static, self._config), seconds
        )

    def encoded(self, seconds: float) -> float:
        """Encode every window, then decide."""
        agent, situations = self._agent, self._situations

        def encode_and_decide() -> None:
            decide(agent, agent.embed_windows(situations.windows), situations.static, self._config)

        return least_seconds(encode_and_decide, seconds)

    def networks_alone(self, seconds: float) -> float:
        """Repeat the network calls alone."""

        def call_all() -> None:
            for call in self._calls:
                call()

        return least_seconds(call_all, seconds)


class _PlainPeer:
    """Repeats the decisions of a peer with plain modules; methods return the least seconds."""

    def __init__(
        self, network: Network, config: SearchConfig, situations: Situations, search_all: PlainSearch
    ) -> None:
        self._model, self._situations, self._config = PlainModel(network), situations, config
        self._search = search_all

    def shared(self, seconds: float) -> float:
        """Decide from the given embeddings."""
        return least_seconds(lambda: self._decide(self._situations.temporal), seconds)

    def encoded(self, seconds: float) -> float:
        """Encode every window by the plain pass, then decide."""
        windows = self._situations.windows
        return least_seconds(lambda: self._decide(self._model.embed_windows(windows)), seconds)

    def _decide(self, temporal: Float32) -> object:
        static = self._situations.static
        roots = self._model.roots(temporal, static, _phases(static))
        return self._search(self._model, roots, POSITION_RULES, self._config)


def _node_objects(model: PlainModel, roots: Roots, rules: ActionRules, config: SearchConfig) -> int:
    return NodeSearch(model, roots, rules, config).action


def _situations(model: ModelConfig, batch: int, seed: int) -> Situations:
    """Random situations. The embeddings are not those of the windows."""
    rng = np.random.default_rng(seed)
    windows = rng.normal(size=(batch, model.window_bars, model.temporal_features)).astype(np.float32)
    temporal = np.abs(rng.normal(size=(batch, model.temporal_channels))).astype(np.float32)
    pnl = rng.normal(0.0, 10.0, batch)
    drawdown = np.abs(rng.normal(0.0, 10.0, batch))
    side = (np.arange(batch) % 3 - 1).astype(np.int8)
    held = rng.integers(1, 60, batch)
    static = static_features(side, pnl, held, pnl + drawdown, drawdown, drawdown * held)
    return Situations(windows, temporal, static, POSITION_RULES.legal[_phases(static)])


def _phases(static: Float32) -> Int8:
    phases: Int8 = static[:, 0].astype(np.int8) + np.int8(1)
    return phases


@dataclass
class _Recorder:
    """Records the calls to an agent with their inputs."""

    agent: Agent
    calls: list[Callable[[], object]] = field(default_factory=list)

    def afterstates(self, hidden: Float32, actions: Int8) -> tuple[Float32, Float32, Float32]:
        call = partial(self.agent.afterstates, hidden, actions)
        self.calls.append(call)
        return call()

    def successors(
        self, afterstates: Float32, actions: Int8, outcomes: Int8
    ) -> tuple[Float32, Float32, Float32]:
        call = partial(self.agent.successors, afterstates, actions, outcomes)
        self.calls.append(call)
        return call()

    def policies(self, hidden: Float32) -> Float32:
        call = partial(self.agent.policies, hidden)
        self.calls.append(call)
        return call()


def _network_calls(
    agent: Agent, temporal: Float32, static: Float32, config: SearchConfig
) -> list[Callable[[], object]]:
    root_call = partial(agent.roots, temporal, static, _phases(static))
    recorder = _Recorder(agent)
    search(recorder, root_call(), POSITION_RULES, config)
    return [root_call, *recorder.calls]
