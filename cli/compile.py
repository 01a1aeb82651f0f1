"""`compile`: fill the kernel cache from one process, before many processes need the kernels.

Kernels are compiled once per processor type and cached on disk. Eight services that start together would all
compile the same kernels. So the image build and the first `up` compile them beforehand: they play, learn from
and validate a few sessions of a small synthetic market with small networks.
"""

from collections.abc import Iterator

import numpy as np
import torch

from cli.output import progress_bar
from services.trainer.config import LearnerConfig, ReplayConfig, TrainerConfig
from services.trainer.training import Training, TrainingConfig
from services.validator.config import ValidationConfig
from services.validator.validation import Provenance, Standards, Validator
from shared.adapters.tables.dataset import Dataset, build_dataset
from shared.agent.agent import Agent
from shared.agent.exploration import Exploration
from shared.agent.rollout import MarketView, play
from shared.agent.trajectory import Trajectory
from shared.environment.action import Side
from shared.environment.environment import EnvironmentConfig, Prices
from shared.environment.position import Position
from shared.features.window import FeatureStream
from shared.market.session import Split
from shared.market.synthetic import Market, synthesize
from shared.model.config import ModelConfig
from shared.model.network import Network, initial_network
from shared.numeric import COMPILED_MARK
from shared.search.config import SearchConfig, Selection

_NUM_BARS = 12_000
_MODEL = ModelConfig(temporal_channels=8, static_channels=4, value_bins=21)


def compile_all() -> None:
    """Run every kernel once, with a progress bar, and mark the cache as complete."""
    torch.set_num_threads(1)
    with progress_bar() as bars:
        task = bars.add_task("compiling kernels", total=None)
        for done, part in enumerate(_parts()):
            bars.update(task, description=f"compiling kernels: {part}", completed=done)
    COMPILED_MARK.touch()


def _parts() -> Iterator[str]:
    """Run every kernel once; yields the name of each part before it runs."""
    yield "features"
    dataset = build_dataset(synthesize(Market.OU, _NUM_BARS, 0), "kernel compilation")
    yield "live features"
    _follow_live(dataset)
    network = initial_network(_MODEL, 0)
    yield "search"
    trajectories = [t for selection in Selection for t in _play(dataset, network, selection)]
    yield "learning"
    _learn(dataset, trajectories)
    yield "validation"
    standards = Standards(validation=ValidationConfig(max_sessions=2))
    Validator(dataset, Split.TRAIN, standards).validate(Agent(network, 0), Provenance("0" * 64))


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
