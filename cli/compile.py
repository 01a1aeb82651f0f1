"""`compile`: fill the kernel cache before many processes need the kernels.

Kernels are compiled once per processor type and cached on disk. Eight services that start together would all
compile the same kernels. So the image build and the first `up` compile them beforehand: two processes compile
the kernels of the market and those of the networks side by side. Then a small agent plays, learns and is
validated, which compiles the rest and shows that the services will find what they call.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from rich.progress import Progress, TaskID

from cli.output import progress_bar, say
from services.trainer.config import LearnerConfig, ReplayConfig, TrainerConfig
from services.trainer.training import Training, TrainingConfig
from services.validator.config import ValidationConfig
from services.validator.validation import Provenance, Standards, Validator
from shared.adapters.tables.dataset import Dataset, build_dataset
from shared.agent.agent import Agent
from shared.agent.decide import POSITION_RULES
from shared.agent.exploration import Exploration
from shared.agent.rollout import MarketView, play
from shared.agent.trajectory import Trajectory
from shared.environment.action import Side
from shared.environment.environment import EnvironmentConfig, Prices
from shared.environment.outcome import ChanceOutcome
from shared.environment.position import Position
from shared.errors import ServiceError
from shared.features.window import FeatureStream
from shared.market.rows import rising
from shared.market.session import Split
from shared.market.synthetic import Market, synthesize
from shared.metrics.bootstrap import Resampling, resample, trade_intervals
from shared.metrics.monte_carlo import MonteCarloConfig, simulate
from shared.metrics.sizing import grow
from shared.model.config import ModelConfig
from shared.model.network import Network, initial_network
from shared.numeric import COMPILED_MARK, KERNEL_CACHE, KERNELS, PROCESSOR, SOURCES, Float32, Int8
from shared.runtime.child import child_command
from shared.search.config import SearchConfig, Selection
from shared.search.model import Roots
from shared.search.search import search

_NUM_BARS = 12_000
_MODEL = ModelConfig(temporal_channels=8, static_channels=4, value_bins=21)

#: Enough that a search reaches nodes below an action of the root.
_SIMULATIONS = 20

_POLL_SECONDS = 0.2

#: Seconds between two lines of progress where stderr is no terminal.
_LINE_SECONDS = 10.0


def compile_all() -> None:
    """Compile every kernel, with progress, and mark the cache as complete, unless it is.

    Raises:
        ServiceError: a process failed, or a kernel is still missing afterwards.
    """
    if COMPILED_MARK.is_file():
        return
    torch.set_num_threads(1)
    with progress_bar() as bars:
        _show(bars, bars.add_task("compiling kernels", total=len(KERNELS)))
    missing = KERNELS - _cached()
    if missing:
        raise ServiceError(f"`compile` never called these kernels: {', '.join(sorted(missing))}")
    COMPILED_MARK.write_text(_OWNER, encoding="utf-8")
    _remove_superseded()


def _show(bars: Progress, task: TaskID) -> None:
    """Run the steps and show how many kernels the cache has after each."""
    next_line = time.monotonic() + _LINE_SECONDS
    for _ in _steps():
        num_cached = len(KERNELS & _cached())
        bars.update(task, completed=num_cached)
        if bars.disable and time.monotonic() > next_line:
            next_line += _LINE_SECONDS
            say(f"compiling kernels: {num_cached} of {len(KERNELS)}")


def _steps() -> Iterator[None]:
    """Compile in two processes, then in this one; yields a few times a second and between its own parts."""
    command = [sys.executable, "-m", "cli.compile"]
    children = {part: subprocess.Popen(child_command([*command, part])) for part in PARTS}
    while any(child.poll() is None for child in children.values()):
        yield
        time.sleep(_POLL_SECONDS)
    for part, child in children.items():
        if child.returncode:
            raise ServiceError(f"compiling the kernels of the {part} failed with status {child.returncode}")
    dataset = _dataset()
    network = initial_network(_MODEL, 0)
    trajectories = [t for selection in Selection for t in _play(dataset, network, selection)]
    yield
    _learn(dataset, trajectories)
    yield
    standards = Standards(validation=ValidationConfig(max_sessions=2))
    Validator(dataset, Split.TRAIN, standards).validate(Agent(network, 0), Provenance("0" * 64))
    yield


def _cached() -> set[str]:
    """Names of the kernels that the cache has: files are called `module.function-line.python.nbi`."""
    return {path.name.partition("-")[0] for path in KERNEL_CACHE.rglob("*.nbi")}


def _compile_market() -> None:
    """Call the kernels of bars, features, environment, search and metrics; a search needs no network."""
    rising(np.array([1, 3, 2]))
    synthesize(Market.OU, 2, 0)
    dataset = _dataset()
    _follow_live(dataset)
    model = _UniformModel()
    batch = np.zeros((2, model.HIDDEN), np.float32)
    roots = Roots(batch, model.policies(batch), np.zeros(2, np.float32), np.array([0, 1], np.int8))
    for selection in Selection:
        search(model, roots, POSITION_RULES, SearchConfig(selection=selection, simulations=_SIMULATIONS))
    pips = np.array([3.0, -2.0, 1.0])
    simulate(pips, Resampling.BLOCK, MonteCarloConfig(runs=2))
    trade_intervals(pips, None, num_runs=2, seed=0)
    grow(resample(pips / 100.0, num_runs=2, num_steps=3, seed=0), 1.0)


def _compile_networks() -> None:
    """Call the kernels of an agent, on states that are all 0."""
    agent = Agent(initial_network(_MODEL, 0), 0)
    agent.embed_windows(np.zeros((1, _MODEL.window_bars, _MODEL.temporal_features), np.float32))
    temporal = agent.embed_span(np.zeros((_MODEL.window_bars, _MODEL.temporal_features), np.float32))
    roots = agent.roots(temporal, np.zeros((1, _MODEL.static_features), np.float32), np.zeros(1, np.int8))
    afterstates, _, _ = agent.afterstates(roots.hidden, np.zeros(1, np.int8))
    hidden, _, _ = agent.successors(afterstates, np.zeros(1, np.int8), np.zeros(1, np.int8))
    agent.policies(hidden)


PARTS: Mapping[str, Callable[[], None]] = {"market": _compile_market, "networks": _compile_networks}


class _UniformModel:
    """A `Model` that predicts the same for every state."""

    HIDDEN = 2

    def afterstates(self, hidden: Float32, actions: Int8) -> tuple[Float32, Float32, Float32]:
        outcomes = np.full((len(actions), len(ChanceOutcome)), 1.0 / len(ChanceOutcome), np.float32)
        return hidden, outcomes, np.zeros(len(actions), np.float32)

    def successors(
        self, afterstates: Float32, actions: Int8, outcomes: Int8
    ) -> tuple[Float32, Float32, Float32]:
        return afterstates, np.zeros(len(actions), np.float32), np.zeros(len(outcomes), np.float32)

    def policies(self, hidden: Float32) -> Float32:
        return np.zeros((len(hidden), POSITION_RULES.num_actions), np.float32)


def _dataset() -> Dataset:
    return build_dataset(synthesize(Market.REGIMES, _NUM_BARS, 0), "kernel compilation")


def _follow_live(dataset: Dataset) -> None:
    stream = FeatureStream(dataset.bars.instrument)
    for time_s, close in zip(
        dataset.bars.time_s[:200].tolist(), dataset.bars.close[:200].tolist(), strict=True
    ):
        stream.push(time_s, close)
    stream.window()
    entered = Position(dataset.bars.instrument.pip).after_entry(Side.LONG, float(dataset.bars.open[0]), 4.0)
    entered.at_close(float(dataset.bars.close[0])).static()


def _play(dataset: Dataset, network: Network, selection: Selection) -> tuple[Trajectory, ...]:
    market = MarketView(dataset.features, Prices.of(dataset.bars), dataset.outcomes, dataset.fingerprint)
    starts = dataset.sessions.every(Split.TRAIN)[:2]
    turns = play(
        Agent(network, 0),
        market,
        starts,
        EnvironmentConfig(),
        SearchConfig(selection=selection),
        seeds=np.arange(len(starts)),
        exploration=Exploration(),
    )
    return [finished for finished in turns if finished][-1]


def _learn(dataset: Dataset, trajectories: list[Trajectory]) -> None:
    config = TrainingConfig(_MODEL, ReplayConfig(), LearnerConfig(), TrainerConfig(), SearchConfig().discount)
    training = Training(config, dataset.features, dataset.fingerprint)
    for trajectory in trajectories:
        training.insert(trajectory)
    training.update()


#: Several checkouts, and machines with different processors, may share the folder of caches.
_OWNER = repr((str(SOURCES), PROCESSOR))


def _remove_superseded() -> None:
    """Remove complete caches of earlier sources in this checkout, for this processor."""
    for mark in KERNEL_CACHE.parent.glob(f"*/{COMPILED_MARK.name}"):
        if mark != COMPILED_MARK and mark.read_text(encoding="utf-8") == _OWNER:
            mark.unlink()  # first, since an incomplete cache must not look complete
            shutil.rmtree(mark.parent)


if __name__ == "__main__":
    torch.set_num_threads(1)
    PARTS[sys.argv[1]]()
