"""Which numbers the networks are multiplied in."""

from enum import StrEnum


class Precision(StrEnum):
    """How weights and activations enter a matrix product; sums are always float32."""

    AUTO = "auto"  # bfloat16 where the processor multiplies it, else float32
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"

    def resolved(self) -> "Precision":
        """What it means on this processor."""
        if self is not Precision.AUTO:
            return self
        from shared.engine.processor import HAS_BFLOAT16  # Numba, which a --help can do without

        return Precision.BFLOAT16 if HAS_BFLOAT16 else Precision.FLOAT32
