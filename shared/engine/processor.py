"""Features of the processor that kernels are compiled for."""

from numba.core.registry import cpu_target


def _features() -> frozenset[str]:
    """Features of this processor, or of the one that is configured in Numba."""
    flags = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    return frozenset(flag[1:] for flag in flags if flag.startswith("+"))


_FEATURES = _features()

#: Whether the processor has an instruction that multiplies pairs of bfloat16 and sums them in float32.
HAS_BFLOAT16 = {"avx512f", "avx512bf16"} <= _FEATURES

#: Float32 lanes of a vector register.
LANES = 16 if "avx512f" in _FEATURES else 8 if "avx" in _FEATURES else 4
