"""Freed memory is allocated again without page faults."""

import platform
import subprocess
import sys

import pytest

#: Counts page faults of a hundred rounds that allocate and free eight blocks of 5 MB.
COUNT = """
import resource
import numpy as np
from shared.runtime.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        blocks = [np.ones(5_000_000, np.uint8) for _ in range(8)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

{first}
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc returns it to the system")
def test_freed_memory_is_allocated_again_without_page_faults() -> None:
    def faults(first: str) -> int:
        program = COUNT.format(first=first)
        return int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)

    assert faults("keep_freed_memory()") < 0.05 * faults("")
