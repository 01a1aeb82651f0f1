"""Array aliases, shape checks and the one typed Numba decorator."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from shared.errors import ShapeError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


def _kernel_digest() -> str:
    """Changes with any source file that holds kernels."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parent.rglob("*.py")):
        source = path.read_bytes()
        if b"kernel" in source:
            digest.update(source)
    return digest.hexdigest()[:16]


# Numba looks at the file of a kernel only, not at those of the kernels that it calls: without this a
# changed inner formula would go on running as it was compiled before.
_config = vars(numba.config)
_cache_root = Path(_config["CACHE_DIR"] or Path.home() / ".cache" / "micro-muzero" / "kernels")
KERNEL_CACHE = _cache_root / _kernel_digest()
_config["CACHE_DIR"] = str(KERNEL_CACHE)

#: Stands in the cache once every kernel is in it.
COMPILED_MARK = KERNEL_CACHE / "complete"

_P = ParamSpec("_P")
_R = TypeVar("_R")


def kernel(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a function of arrays and numbers to machine code, cached on disk, releasing the GIL.

    Fast-math stays off: the same operations in the same order give the same bits, one value at a
    time or a million, which live trading relies on.
    """
    return cast("Callable[_P, _R]", numba.njit(cache=True, nogil=True)(function))


def reordering_kernel(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile as `kernel` does, but let sums be added in the order that suits vector registers.

    The order is fixed when it is compiled and depends on a sum's length only. For networks, whose rows
    still get the same bits in any batch; not for prices and features.
    """
    options = {"contract", "nsz", "reassoc"}
    return cast("Callable[_P, _R]", numba.njit(cache=True, nogil=True, fastmath=options)(function))


def parallel_kernel(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile as `kernel` does and spread `numba.prange` loops over the cores."""
    return cast("Callable[_P, _R]", numba.njit(cache=True, nogil=True, parallel=True)(function))


def require_shape(name: str, array: npt.NDArray[np.generic], *shape: int | None) -> None:
    """Check an array's shape; None stands for any length.

    Raises:
        ShapeError: the number of axes or a length differs.
    """
    matches = array.ndim == len(shape) and all(
        wanted is None or got == wanted for got, wanted in zip(array.shape, shape, strict=False)
    )
    if not matches:
        raise ShapeError(name, array.shape, tuple("any" if n is None else n for n in shape))
