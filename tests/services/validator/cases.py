"""A small data set, versions whose networks prefer some actions, and a store with these versions."""

from dataclasses import asdict
from datetime import datetime
from functools import cache
from pathlib import Path

import numpy as np

from services.validator.baselines import walk_rule
from services.validator.config import ValidationConfig
from services.validator.evaluate import Walk
from services.validator.gate import GateConfig
from services.validator.validation import Standards
from shared.adapters.tables.dataset import Dataset, build_dataset
from shared.adapters.versions.manifest import TRAINED_UNTIL, Manifest
from shared.adapters.versions.store import CheckpointStore
from shared.agent.agent import Agent
from shared.environment.environment import EnvironmentConfig, Prices
from shared.market.session import SessionConfig, Split, SplitConfig
from shared.market.synthetic import Market, synthesize
from shared.metrics.monte_carlo import MonteCarloConfig
from shared.metrics.sizing import SizingConfig
from shared.search.config import SearchConfig
from tests.shared.model.networks import SMALL, randomized_network

#: As many sessions as usual at a tenth of their length, so that a walk is fast.
ENVIRONMENT = EnvironmentConfig(session_bars=36)

#: Requires only a higher SQN than the best version; for tests of the effects of a verdict.
OPEN_GATE = GateConfig(
    paper_min_trades=0, paper_min_days=0, paper_max_p_value=1.0, paper_max_rule_p_value=1.0
)

STANDARDS = Standards(
    environment=ENVIRONMENT,
    search=SearchConfig(simulations=2),
    validation=ValidationConfig(lanes=8),
    monte_carlo=MonteCarloConfig(runs=40),
    sizing=SizingConfig(curves=40, repeats=2, horizon_days=60, min_periods=3),
    gate=OPEN_GATE,
)


@cache
def small_dataset() -> Dataset:
    bars = synthesize(Market.OU, 9_000, seed=3)
    return build_dataset(
        bars,
        "a synthetic market",
        SessionConfig(min_mean_range_pips=0.0),
        SplitConfig(train=0.2, validation=0.6, embargo_days=0),
    )


def starts() -> np.ndarray:
    return small_dataset().sessions.non_overlapping(Split.VALIDATION)


@cache
def prices() -> Prices:
    return Prices.of(small_dataset().bars)


@cache
def agent(version: int) -> Agent:
    return Agent(randomized_network(SMALL, seed=version), version)


def save_version(
    store: CheckpointStore,
    version: int,
    *,
    dataset: str | None = None,
    trained_until: datetime | None = None,
) -> None:
    weights = {
        name: tensor.numpy() for name, tensor in randomized_network(SMALL, seed=version).state_dict().items()
    }
    manifest = Manifest(
        version=version,
        episode=version * 50,
        update=version * 400,
        journal_position=version * 50,
        dataset=dataset or small_dataset().fingerprint,
        model=asdict(SMALL),
        settings={TRAINED_UNTIL: trained_until.isoformat()} if trained_until else {},
        metrics={},
        state={},
    )
    store.save(manifest, weights, {"step": np.array([version], np.int64)})


def store_with(folder: Path, *versions: int) -> CheckpointStore:
    store = CheckpointStore(folder / "checkpoints")
    for version in versions:
        save_version(store, version)
    return store


def walked(rule_name: str = "random") -> Walk:
    from services.validator import baselines

    rules = {
        "flat": baselines.flat,
        "random": baselines.random_legal(np.random.default_rng(0)),
        "long": baselines.always_long,
        "cross": baselines.moving_average_cross(small_dataset().bars.close),
    }
    return walk_rule(rules[rule_name], prices(), starts(), ENVIRONMENT)
