"""Array aliases, shape checks and the one typed Numba decorator."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from numba.core.registry import cpu_target

from shared.errors import ShapeError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


#: The folder of all packages.
SOURCES = Path(__file__).resolve().parent.parent

#: Target, name and features of the processor that kernels are compiled for.
PROCESSOR: tuple[str, str, str] = cpu_target.target_context.codegen().magic_tuple()

#: Packages with kernels that the services call.
_PACKAGES = ("services", "shared")


def kernel_digest(root: Path) -> str:
    """A digest of all that Numba's cached files depend on: compiler, processor, and sources with kernels.

    Args:
        root: folder of the packages; the paths, times and contents of the sources count.
    """
    digest = hashlib.sha256(repr((numba.__version__, sys.implementation.cache_tag, PROCESSOR)).encode())
    for path in sorted(path for package in _PACKAGES for path in (root / package).rglob("*.py")):
        source = path.read_bytes()
        if b"kernel" in source:
            digest.update(f"{path}\0{path.stat().st_mtime_ns}\0".encode())
            digest.update(source)
    return digest.hexdigest()[:16]


# Numba recompiles a cached kernel if compiler, processor, or the path or time of its file changes, but not if
# a kernel that it calls changes. Each digest has its own cache directory, so a kernel never runs an outdated
# copy of another, and a cache marked as complete has no kernel that Numba would recompile.
_config = vars(numba.config)
_cache_root = Path(_config["CACHE_DIR"] or Path.home() / ".cache" / "micro-muzero" / "kernels")
KERNEL_CACHE = _cache_root / kernel_digest(SOURCES)
_config["CACHE_DIR"] = str(KERNEL_CACHE)

#: This file exists once the cache contains every kernel. It names checkout and processor.
COMPILED_MARK = KERNEL_CACHE / "complete"

#: Every kernel of the modules imported so far, named as Numba names its files: `module.function`.
KERNELS: set[str] = set()

_P = ParamSpec("_P")
_R = TypeVar("_R")


def kernel(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a function of arrays and numbers. The code is cached on disk and runs without the GIL.

    Fast-math is off: the same operations in the same order give the same bits, for one value at a time
    or for a million. Live trading relies on this.
    """
    return _compiled(function)


def reordering_kernel(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile like `kernel`, but let the compiler reorder sums to suit vector registers.

    The order is fixed at compile time and depends only on the length of a sum, so each row of a network
    gets the same bits in any batch. Do not use it for prices or features.
    """
    return _compiled(function, fastmath={"contract", "nsz", "reassoc"})


def parallel_kernel(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile like `kernel` and distribute `numba.prange` loops over the cores."""
    return _compiled(function, parallel=True)


def _compiled(
    function: Callable[_P, _R], *, fastmath: bool | set[str] = False, parallel: bool = False
) -> Callable[_P, _R]:
    # Both options are always passed: a kernel would otherwise inherit them from the kernel that happens to be
    # compiled first with a call to it, and then use them for every caller.
    KERNELS.add(f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}")
    compiler = numba.njit(cache=True, nogil=True, fastmath=fastmath, parallel=parallel)
    return cast("Callable[_P, _R]", compiler(function))


def require_shape(name: str, array: npt.NDArray[np.generic], *shape: int | None) -> None:
    """Check an array's shape; None accepts any length.

    Raises:
        ShapeError: the number of axes or a length differs.
    """
    matches = array.ndim == len(shape) and all(
        wanted is None or got == wanted for got, wanted in zip(array.shape, shape, strict=False)
    )
    if not matches:
        raise ShapeError(name, array.shape, tuple("any" if n is None else n for n in shape))
