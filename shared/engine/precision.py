"""Which numbers the networks are multiplied in, and what this processor is good at."""

from enum import StrEnum

from numba.core.registry import cpu_target


class Precision(StrEnum):
    """How weights and activations enter a matrix product; sums are always float32."""

    AUTO = "auto"  # bfloat16 where the processor multiplies it, else float32
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"

    def resolved(self) -> "Precision":
        """What it means on this processor."""
        if self is not Precision.AUTO:
            return self
        return Precision.BFLOAT16 if HAS_BFLOAT16 else Precision.FLOAT32


def _features() -> frozenset[str]:
    """Of the processor that kernels are compiled for: this one, unless Numba was told of another."""
    flags = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    return frozenset(flag[1:] for flag in flags if flag.startswith("+"))


_FEATURES = _features()

#: Whether one instruction multiplies pairs of bfloat16 and adds them up in float32.
HAS_BFLOAT16 = {"avx512f", "avx512bf16"} <= _FEATURES

#: Float32 numbers in a vector register.
LANES = 16 if "avx512f" in _FEATURES else 8 if "avx" in _FEATURES else 4
