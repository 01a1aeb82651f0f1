"""Array aliases, shape checks and the one typed Numba decorator."""

from collections.abc import Callable
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

_P = ParamSpec("_P")
_R = TypeVar("_R")


def kernel(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a function of arrays and numbers to machine code, cached on disk, releasing the GIL.

    Fast-math stays off: the same operations in the same order give the same bits, one value at a
    time or a million, which live trading relies on.
    """
    return cast("Callable[_P, _R]", numba.njit(cache=True, nogil=True)(function))


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
