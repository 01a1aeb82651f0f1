"""The situations that searches decide in, and the encoding of their windows."""

from dataclasses import dataclass
from enum import StrEnum

from shared.numeric import Bool, Float32


class Encoding(StrEnum):
    """How much of the temporal encoding is measured as part of a decision."""

    SHARED = "encoding shared"  # embeddings are given
    PLAIN = "each window encoded"
    THINNED = "each window encoded, needed steps only"


@dataclass(frozen=True)
class Situations:
    """The inputs of B decisions."""

    windows: Float32  # [B, window, F]
    temporal: Float32  # [B, E] embeddings, not those of the windows
    static: Float32  # [B, S]
    legal: Bool  # [B, A]
