"""Agents out of the checkpoint store: sizes from the manifest, weights verified."""

from pydantic import JsonValue, TypeAdapter, ValidationError

from shared.adapters.versions.store import CheckpointStore, Manifest
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
        CheckpointError: the version is missing or damaged, or its weights do not fit its sizes.
    """
    config = model_config(store.manifest(version))
    weights = {name: array.astype("float32") for name, array in store.weights(version).items()}
    try:
        return Agent(StoredWeights(config, weights), version, precision)
    except (ShapeError, DataError) as other:
        raise CheckpointError(f"version {version}: weights do not fit its sizes: {other}") from other


def instrument_settings(instrument: Instrument | None) -> dict[str, JsonValue]:
    """What a manifest's settings say of the instrument that a version is trained on."""
    return (
        {"instrument": {"name": instrument.name, "pip_location": instrument.pip_location}}
        if instrument
        else {}
    )


def trained_instrument(manifest: Manifest) -> Instrument | None:
    """The instrument that a version was trained on; None where an older release made it.

    Raises:
        CheckpointError: the manifest names something else.
    """
    named = manifest.settings.get("instrument")
    if named is None:
        return None
    try:
        return _INSTRUMENT.validate_python(named)
    except ValidationError as other:
        raise CheckpointError(f"version {manifest.version}: instrument: {other}") from other


def model_config(manifest: Manifest) -> ModelConfig:
    """The sizes that a manifest records.

    Raises:
        CheckpointError: they are not those of a network that is known here.
    """
    try:
        return _SIZES.validate_python(manifest.model)
    except (ValidationError, SettingsError) as other:
        raise CheckpointError(f"version {manifest.version}: model sizes: {other}") from other
