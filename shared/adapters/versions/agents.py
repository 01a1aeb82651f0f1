"""Builds agents from the checkpoint store: verified weights, in a network of the manifest's sizes."""

from pydantic import JsonValue, TypeAdapter, ValidationError

from shared.adapters.versions.manifest import Manifest
from shared.adapters.versions.store import CheckpointStore
from shared.agent.agent import Agent, StoredWeights
from shared.engine.precision import Precision
from shared.errors import CheckpointError, DataError, SettingsError, ShapeError
from shared.market.bar import Instrument
from shared.model.config import ModelConfig

_SIZES = TypeAdapter(ModelConfig)
_INSTRUMENT = TypeAdapter(Instrument)


def load_agent(store: CheckpointStore, version: int, precision: Precision = Precision.AUTO) -> Agent:
    """The agent of a version, ready to decide.

    Raises:
        CheckpointError: the version is missing or damaged, or its weights do not fit its manifest.
    """
    config = model_config(store.manifest(version))
    weights = {name: array.astype("float32") for name, array in store.weights(version).items()}
    try:
        return Agent(StoredWeights(config, weights), version, precision)
    except (ShapeError, DataError) as invalid:
        raise CheckpointError(
            f"version {version}: the weights do not fit the manifest's network: {invalid}"
        ) from invalid


def instrument_settings(instrument: Instrument | None) -> dict[str, JsonValue]:
    """The entry in a manifest's settings that records the trained instrument."""
    return (
        {"instrument": {"name": instrument.name, "pip_location": instrument.pip_location}}
        if instrument
        else {}
    )


def trained_instrument(manifest: Manifest) -> Instrument | None:
    """The instrument that a version was trained on; None if an older release did not record it.

    Raises:
        CheckpointError: the recorded setting is not a valid instrument.
    """
    recorded = manifest.settings.get("instrument")
    if recorded is None:
        return None
    try:
        return _INSTRUMENT.validate_python(recorded)
    except ValidationError as invalid:
        raise CheckpointError(f"version {manifest.version}: instrument: {invalid}") from invalid


def model_config(manifest: Manifest) -> ModelConfig:
    """The network sizes in a manifest.

    Raises:
        CheckpointError: the sizes do not describe a network that this release can build.
    """
    try:
        return _SIZES.validate_python(manifest.model)
    except (ValidationError, SettingsError) as invalid:
        raise CheckpointError(f"version {manifest.version}: model sizes: {invalid}") from invalid
