"""Networks out of the checkpoint store: sizes from the manifest, weights verified."""

import torch
from pydantic import TypeAdapter, ValidationError

from shared.adapters.checkpoints import CheckpointStore, Manifest
from shared.agent.agent import Agent
from shared.errors import CheckpointError, SettingsError
from shared.model.config import ModelConfig
from shared.model.network import Network, initial_network

_SIZES = TypeAdapter(ModelConfig)


def load_agent(store: CheckpointStore, version: int) -> Agent:
    """The agent of a version, ready to decide.

    Raises:
        CheckpointError: the version is missing or damaged, or its weights do not fit its sizes.
    """
    return Agent(load_network(store, version), version)


def load_network(store: CheckpointStore, version: int) -> Network:
    """The networks of a version, with the sizes that its manifest records.

    Raises:
        CheckpointError: the version is missing or damaged, or its weights do not fit its sizes.
    """
    network = initial_network(model_config(store.manifest(version)), seed=0)
    try:
        network.load_state_dict({n: torch.from_numpy(array) for n, array in store.weights(version).items()})
    except RuntimeError as other:
        reason = str(other).splitlines()[-1].strip()
        raise CheckpointError(f"version {version}: weights do not fit its sizes: {reason}") from other
    return network


def model_config(manifest: Manifest) -> ModelConfig:
    """The sizes that a manifest records.

    Raises:
        CheckpointError: they are not those of a network that is known here.
    """
    try:
        return _SIZES.validate_python(manifest.model)
    except (ValidationError, SettingsError) as other:
        raise CheckpointError(f"version {manifest.version}: model sizes: {other}") from other
