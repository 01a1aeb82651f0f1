"""Free disk space of a folder, and a text that warns when it is low."""

import shutil
from pathlib import Path


def free_megabytes(folder: Path) -> int:
    """Free disk space in MB (a million bytes); the folder need not exist yet.

    Raises:
        OSError: the disk cannot be read.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free // 1_000_000


def low_disk(free_mb: int, low_mb: int, folder: Path | str) -> str:
    """A warning that free disk space is low; empty if there is enough."""
    if free_mb >= low_mb:
        return ""
    return (
        f"only {free_mb:,} MB are free in {folder}, less than {low_mb:,} MB (MM_ALERTS__LOW_FREE_MB); a full "
        "disk stops learning, and stops Redis until there is room"
    )
