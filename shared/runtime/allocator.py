"""How freed memory is handled: kept for what is allocated next.

glibc gives a block of 128 KiB and more back to the system when it is freed (or, in time, of 32 MiB and more,
and whatever ends up on top of the heap), and every page of the next one costs a fault. A training update
allocates and frees the same hundred megabytes over and over.
"""

import ctypes
import platform

#: Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

#: Bytes of a block from which on it is mapped, and given back, alone: what is larger lives long.
LARGE_BLOCK = 64 * 2**20

#: Bytes that may lie free on top of the heap.
KEPT = 512 * 2**20


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to `KEPT` bytes, for its next allocations; glibc only."""
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT)
