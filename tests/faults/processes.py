"""What a process takes of the machine, as the kernel counts it."""

import os
from pathlib import Path


def resident_kib(pid: int) -> int:
    """Memory that is the process's at this moment."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def cpu_seconds(pid: int) -> float:
    """Processor time that it used so far, in user and in kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
