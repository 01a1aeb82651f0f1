"""Keeps freed memory for the next allocations.

By default, glibc returns two kinds of free memory to the system: blocks of at least 128 KiB (a threshold that
grows up to 32 MiB), and memory at the top of the heap. Each page of the next block then costs a page fault. A
training update allocates and frees the same hundred megabytes over and over.
"""

import ctypes
import platform

#: From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

#: Blocks of at least this many bytes are still mapped and returned one by one, since they are long-lived.
LARGE_BLOCK = 64 * 2**20

#: Free bytes to keep at the top of the heap.
KEPT = 512 * 2**20


def keep_freed_memory() -> None:
    """Let this process keep up to `KEPT` freed bytes for its next allocations; needs glibc."""
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT)
