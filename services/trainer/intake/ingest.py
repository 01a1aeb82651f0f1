"""Which trajectories can be learned from, and why another cannot.

What an entry is by itself any rank sees. Whether a trajectory is too old the leader alone can say: it has
the versions, and the journal, which tells a second delivery of what was taken in when it was young.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from services.trainer.place import Place
from shared.adapters.streams.entries import Batch, Entry
from shared.adapters.tables.dataset import Dataset
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


@dataclass(frozen=True)
class Intake:
    """A batch's trajectories, and why its other entries are none, both by entry id."""

    batch: Batch[TrajectoryFinished]
    accepted: Mapping[str, Trajectory]
    unusable: Mapping[str, str]

    @classmethod
    def of(cls, batch: Batch[TrajectoryFinished], dataset: Dataset) -> "Intake":
        """Look at every entry."""
        accepted_entries, unusable = {}, {}
        for entry in batch.entries:
            try:
                accepted_entries[entry.entry_id] = accepted(entry, dataset)
            except MessageError as refused:
                unusable[entry.entry_id] = str(refused)
        return cls(batch, accepted_entries, unusable)

    @property
    def trajectories(self) -> list[Trajectory]:
        """Those that can be learned from."""
        return list(self.accepted.values())

    async def settle(
        self, stale: Mapping[UUID, str], lifecycle: Lifecycle, count_unusable: Callable[[], None]
    ) -> None:
        """Put what was refused with the dead letters, then acknowledge the rest, which is in the journal.

        Asked to stop in the midst of it, nothing is acknowledged that lacks its letter: it comes again.

        Args:
            stale: why trajectories were found too old, by id.
            lifecycle: of the service.
            count_unusable: called for each that has its letter; those found stale the leader counted.
        """
        await lifecycle.until_stopping(self._letters_then_ack(stale, lifecycle, count_unusable))

    async def _letters_then_ack(
        self, stale: Mapping[UUID, str], lifecycle: Lifecycle, count_unusable: Callable[[], None]
    ) -> None:
        for entry in self.batch.entries:
            unusable = self.unusable.get(entry.entry_id)
            reason = unusable or stale.get(entry.message.trajectory_id)
            if reason is not None:
                await lifecycle.bus.dead_letter(TRAJECTORIES, TRAINER_GROUP, entry, reason)
            if unusable is not None:
                count_unusable()
        await self.batch.ack()


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


def stale_among(
    trajectories: Sequence[Trajectory],
    *,
    newest: int,
    max_version_lag: int | None,
    journalled: Container[UUID],
) -> dict[UUID, str]:
    """Why trajectories are too old to be learned from, by id; those that are not are left out.

    Args:
        trajectories: that can be learned from otherwise.
        newest: version published. A trainer that went back to an earlier one meets later ones: no lag.
        max_version_lag: most versions that one may be behind; None refuses none.
        journalled: ids taken in before; a second delivery is no new trajectory, however old.
    """
    if max_version_lag is None:
        return {}
    return {
        trajectory.trajectory_id: (
            f"trajectory {trajectory.trajectory_id}: played by version {trajectory.checkpoint_version}, "
            f"{newest - trajectory.checkpoint_version} behind the newest, {newest}; "
            f"trainer.max_version_lag allows {max_version_lag}"
        )
        for trajectory in trajectories
        if newest - trajectory.checkpoint_version > max_version_lag
        and trajectory.trajectory_id not in journalled
    }
