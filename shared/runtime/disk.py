"""Free disk for files below a folder, and whether it is low."""

import shutil
from pathlib import Path


def free_megabytes(folder: Path) -> int:
    """Free disk for files in a folder, in MB of a million bytes; of its parent where it does not exist yet.

    Raises:
        OSError: the disk does not answer.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free // 1_000_000


def low_disk(free_mb: int, low_mb: int, folder: Path | str) -> str:
    """Why free disk is low, in words; empty where there is enough."""
    if free_mb >= low_mb:
        return ""
    return (
        f"only {free_mb:,} MB are free in {folder}, less than {low_mb:,} MB (MM_ALERTS__LOW_FREE_MB); a full "
        "disk stops learning, and Redis until there is room"
    )
