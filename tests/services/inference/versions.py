"""Checkpoint versions with a small network that chooses every action."""

from dataclasses import asdict

from shared.adapters.versions.agents import instrument_settings
from shared.adapters.versions.manifest import Manifest, Pointer
from shared.adapters.versions.store import CheckpointStore
from shared.agent.agent import Agent
from shared.market.bar import Instrument
from shared.messages.schemas import Stage
from shared.model.network import Network
from tests.shared.model.networks import SMALL, randomized_network

#: With this seed version 1 often takes each of the four actions in greedy play of the small market.
FIRST_SEED = 24


def network_of(version: int) -> Network:
    return randomized_network(SMALL, seed=FIRST_SEED + version - 1)


def agent_of(version: int) -> Agent:
    return Agent(network_of(version), version)


def save_version(
    store: CheckpointStore,
    version: int,
    network: Network | None = None,
    *,
    instrument: Instrument | None = None,
) -> None:
    weights = (network or network_of(version)).state_dict()
    store.save(
        Manifest(
            version=version,
            episode=0,
            update=0,
            journal_position=0,
            dataset="ab" * 32,
            model=asdict(SMALL),
            settings=instrument_settings(instrument),
            metrics={},
            state={},
        ),
        {name: tensor.numpy() for name, tensor in weights.items()},
        {},
    )


def promote(store: CheckpointStore, version: int, stage: Stage = "paper") -> None:
    store.point(Pointer.PROMOTED, version, stage=stage)
