"""Which trajectories can be learned from, and why another cannot."""

from shared.adapters.bus import Entry
from shared.adapters.dataset import Dataset
from shared.agent.trajectory import Trajectory
from shared.errors import MessageError
from shared.features.window import FIRST_WINDOW_BAR
from shared.messages.codec import decode_trajectory
from shared.messages.schemas import TrajectoryFinished


def accepted(entry: Entry[TrajectoryFinished], dataset: Dataset) -> Trajectory:
    """The trajectory of an entry, known to be of this data set and within its bars.

    Raises:
        MessageError: it is damaged, of another data set, or reaches where there are no windows.
    """
    header = entry.message
    where = f"trajectory {header.trajectory_id}"
    if header.dataset != dataset.fingerprint:
        raise MessageError(
            f"{where}: data set {header.dataset[:12]}…, the trainer has {dataset.fingerprint[:12]}…; "
            "start the worker with the trainer's data set"
        )
    trajectory = decode_trajectory(header, entry.arrays)
    last = trajectory.start_bar + len(trajectory) - 1
    if trajectory.start_bar < FIRST_WINDOW_BAR or last >= len(dataset.bars):
        raise MessageError(
            f"{where}: bars {trajectory.start_bar} to {last}, "
            f"the data set has windows for {FIRST_WINDOW_BAR} to {len(dataset.bars) - 1}"
        )
    return trajectory
