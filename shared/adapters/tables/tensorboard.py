"""Curves for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path


class TensorBoard:
    """Event files in one folder, with one step counter."""

    def __init__(self, folder: Path, *, after_step: int) -> None:
        """Continue after a step; existing points of later steps are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=after_step + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add one point to each curve."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write every point to the file."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()
