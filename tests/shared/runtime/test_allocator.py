"""Memory that is freed and allocated again costs no page faults."""

import platform
import subprocess
import sys

import pytest

#: Page faults of a hundred blocks of 5 MB, each freed before the next.
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives it back")
def test_what_is_freed_is_allocated_again_without_page_faults() -> None:
    def faults(first: str) -> int:
        program = COUNT.format(first=first)
        return int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)

    assert faults("keep_freed_memory()") < 0.05 * faults("")
