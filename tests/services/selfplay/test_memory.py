"""A worker's memory does not grow with the number of batches that it plays."""

import gc
import resource
from pathlib import Path

import numpy as np

from services.selfplay.config import SelfPlayConfig
from services.selfplay.settings import SelfPlaySettings
from services.selfplay.worker import SelfPlayWorker
from shared.adapters.tables.dataset import build_dataset
from shared.agent.agent import Agent
from shared.environment.environment import EnvironmentConfig
from shared.market.synthetic import Market, synthesize
from shared.messages.codec import encode, encode_trajectory
from tests.shared.model.networks import SMALL, randomized_network

LANES = 16
STEPS = 20
WARM_UP, BATCHES = 50, 500


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    """It grows by less than a quarter of the size of the messages, the smallest objects of a batch."""
    settings = SelfPlaySettings(
        selfplay=SelfPlayConfig(lanes=LANES), environment=EnvironmentConfig(session_bars=STEPS)
    )
    dataset = build_dataset(synthesize(Market.OU, 5_000, seed=1), "synthetic ou")
    worker = SelfPlayWorker.of("tester", dataset, settings, np.random.default_rng(0))
    agents = [Agent(randomized_network(SMALL, seed=seed), seed) for seed in range(2)]
    sent = 0

    def play(batches: int) -> int:
        nonlocal sent
        for number in range(batches):
            # The version changes every five batches.
            finished = worker.play(agents[number // 5 % 2], 0, lambda: False)
            for trajectory in finished:
                sent += len(encode(*encode_trajectory(trajectory))["arrays"])
        gc.collect()
        return resident_bytes()

    settled = play(WARM_UP)
    sent = 0
    grown = play(BATCHES) - settled
    assert sent > 9_000_000
    assert grown < sent / 4
