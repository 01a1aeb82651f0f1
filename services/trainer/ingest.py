"""Which trajectories can be learned from, and why another cannot."""

from services.trainer.metrics import REFUSED
from services.trainer.place import Place
from shared.adapters.bus import Batch, Entry
from shared.adapters.dataset import Dataset
from shared.agent.trajectory import Trajectory
from shared.errors import MessageError
from shared.features.window import FIRST_WINDOW_BAR
from shared.messages.codec import decode_trajectory
from shared.messages.schemas import TrajectoryFinished
from shared.messages.streams import TRAINER_GROUP, TRAJECTORIES
from shared.runtime.lifecycle import Lifecycle


def consumer_name(place: Place) -> str:
    """A rank's name in the group; always the same, so that it finds what was delivered to it before."""
    return "trainer" if place.leads else f"trainer-{place.rank}"


async def take_in(
    batch: Batch[TrajectoryFinished], dataset: Dataset, lifecycle: Lifecycle
) -> list[Trajectory]:
    """The batch's trajectories that can be learned from; the others go to the dead letters."""
    trajectories = []
    for entry in batch.entries:
        try:
            trajectories.append(accepted(entry, dataset))
        except MessageError as refused:
            REFUSED.inc()
            await lifecycle.until_stopping(
                lifecycle.bus.dead_letter(TRAJECTORIES, TRAINER_GROUP, entry, str(refused))
            )
    return trajectories


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
