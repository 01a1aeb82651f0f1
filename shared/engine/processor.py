"""What the processor that kernels are compiled for is good at."""

from numba.core.registry import cpu_target


def _features() -> frozenset[str]:
    """Of the processor that kernels are compiled for: this one, unless Numba was told of another."""
    flags = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    return frozenset(flag[1:] for flag in flags if flag.startswith("+"))


_FEATURES = _features()

#: Whether one instruction multiplies pairs of bfloat16 and adds them up in float32.
HAS_BFLOAT16 = {"avx512f", "avx512bf16"} <= _FEATURES

#: Float32 numbers in a vector register.
LANES = 16 if "avx512f" in _FEATURES else 8 if "avx" in _FEATURES else 4
