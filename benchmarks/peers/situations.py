"""What a peer decides about, and how its windows are encoded."""

from dataclasses import dataclass
from enum import StrEnum

from shared.numeric import Bool, Float32


class Encoding(StrEnum):
    """What a decision does about the temporal encoding."""

    SHARED = "encoding shared"  # embeddings are given
    PLAIN = "each window encoded"
    THINNED = "each window encoded, needed steps only"


@dataclass(frozen=True)
class Situations:
    """What B decisions are made about."""

    windows: Float32  # [B, window, F]
    temporal: Float32  # [B, E] embeddings, not those of the windows
    static: Float32  # [B, S]
    legal: Bool  # [B, A]
