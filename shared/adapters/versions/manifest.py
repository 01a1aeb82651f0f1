"""Records of the checkpoint store: the manifest of a version, and the pointers that name versions."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from importlib.metadata import version as installed_version
from typing import Literal, NamedTuple

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from shared.errors import CheckpointError
from shared.messages.schemas import Fingerprint, Stage, now

#: Files of a version.
WEIGHTS = "weights.safetensors"
TRAINING = "training.safetensors"
MANIFEST = "manifest.json"
MANIFEST_SHA256 = "manifest.sha256"

#: Key in a manifest's settings. It is not a field because older releases reject fields that they do not know.
TRAINED_UNTIL = "trained_until"

_LIBRARIES = ("torch", "numpy", "safetensors")
_TIME = TypeAdapter(AwareDatetime)

#: Largest number of earlier versions that a pointer remembers.
_MAX_HISTORY = 100

_STAGES: Mapping[str | None, Stage] = {"unproven": "unproven", "paper": "paper", "live": "live"}


class FileEntry(BaseModel):
    """Size and hash of one file of a version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int = Field(ge=0)
    sha256: Fingerprint


class Manifest(BaseModel):
    """Description of a version: its training progress, its settings, and the hashes of its files."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    version: int = Field(ge=0)
    episode: int = Field(ge=0)
    update: int = Field(ge=0)
    journal_position: int = Field(ge=0)  # trajectories of the journal that were learned from
    dataset: Fingerprint
    model: dict[str, JsonValue]  # sizes: the fields of ModelConfig
    settings: dict[str, JsonValue]
    metrics: dict[str, float]
    state: dict[str, JsonValue]  # counters and random state that are not arrays
    created_at: AwareDatetime = Field(default_factory=now)
    libraries: dict[str, str] = Field(default_factory=lambda: {n: installed_version(n) for n in _LIBRARIES})
    files: dict[str, FileEntry] = {}

    @property
    def trained_until(self) -> datetime | None:
        """Opening time of the last bar that the version may have learned from.

        Returns:
            None if an older release made the version.
        Raises:
            CheckpointError: the setting is not a time.
        """
        setting = self.settings.get(TRAINED_UNTIL)
        try:
            return None if setting is None else _TIME.validate_python(setting)
        except ValidationError as invalid:
            raise CheckpointError(
                f"version {self.version}: {TRAINED_UNTIL} is {setting!r}, expected a time"
            ) from invalid


class Pointer(StrEnum):
    """Names of the pointers."""

    LATEST = "latest"
    BEST = "best"
    PROMOTED = "promoted"

    @property
    def file(self) -> str:
        """Name of the pointer's file."""
        return f"{self.value}.json"


class PointerHistoryEntry(NamedTuple):
    """A version that a pointer named earlier."""

    version: int
    stage: Stage | None  # None: the pointer has no stages, or an older release moved it


@dataclass(frozen=True)
class Pointed:
    """The version that a pointer names, its stage, and the earlier versions, newest last."""

    version: int
    stage: Stage | None
    history: tuple[PointerHistoryEntry, ...]


class PointerFile(BaseModel):
    """A pointer on disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int | None = Field(ge=0)  # None: the pointer names no version any more
    stage: str | None = None
    history: tuple[tuple[int, str | None] | int, ...] = ()  # older releases kept version numbers only
    sha256: Fingerprint | None = None  # hash of the other fields as JSON; None in files of older releases

    @classmethod
    def of(cls, pointed: Pointed | None) -> "PointerFile":
        """The file of a pointer."""
        if pointed is None:
            return cls(version=None)
        return cls(version=pointed.version, stage=pointed.stage, history=pointed.history)

    def signed(self) -> bytes:
        """Contents of the file, with their hash."""
        return self.model_copy(update={"sha256": self._digest()}).model_dump_json().encode()

    def pointed(self) -> Pointed | None:
        """The record that the file holds. An unknown stage is read as None."""
        if self.version is None:
            return None
        entries = (entry if isinstance(entry, tuple) else (entry, None) for entry in self.history)
        history = (PointerHistoryEntry(version, _STAGES.get(stage)) for version, stage in entries)
        return Pointed(self.version, _STAGES.get(self.stage), tuple(history))

    @model_validator(mode="after")
    def _require_digest(self) -> "PointerFile":
        if self.sha256 not in (None, self._digest()):
            raise ValueError("its SHA-256 does not match its other fields")
        return self

    def _digest(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"sha256"}).encode()).hexdigest()


def moved(current: Pointed | None, version: int, stage: Stage | None) -> Pointed:
    """The pointer after it was moved to a version."""
    history = (*current.history, PointerHistoryEntry(current.version, current.stage)) if current else ()
    return Pointed(version, stage, history[-_MAX_HISTORY:])


def stage_of(promoted: Pointed) -> Stage:
    """The stage of the promoted version. A pointer without a stage comes from an older release: paper."""
    return promoted.stage or "paper"
