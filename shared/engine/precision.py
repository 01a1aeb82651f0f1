"""The number format of matrix products in the networks."""

from enum import StrEnum


class Precision(StrEnum):
    """Format of weights and activations in a matrix product. Sums are always float32."""

    AUTO = "auto"  # bfloat16 if the processor has instructions for it, else float32
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"

    def resolved(self) -> "Precision":
        """The precision that `AUTO` selects on this processor."""
        if self is not Precision.AUTO:
            return self
        from shared.engine.processor import HAS_BFLOAT16  # imports Numba, too slow for --help

        return Precision.BFLOAT16 if HAS_BFLOAT16 else Precision.FLOAT32
