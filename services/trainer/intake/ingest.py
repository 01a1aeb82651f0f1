"""Decides which trajectories can be learned from, and gives a reason for each refusal.

Any rank can check an entry by itself. Only the leader can decide whether a trajectory is too old: it knows
the newest version, and its journal shows which old trajectories are redeliveries of accepted ones.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from services.trainer.place import Rank
from shared.adapters.streams.entries import Batch, Entry
from shared.adapters.tables.dataset import Dataset
from shared.agent.trajectory import Trajectory
from shared.errors import MessageError
from shared.features.window import FIRST_WINDOW_BAR
from shared.messages.codec import decode_trajectory
from shared.messages.schemas import TrajectoryFinished
from shared.messages.streams import TRAINER_GROUP, TRAJECTORIES
from shared.runtime.lifecycle import Lifecycle


def consumer_name(rank: Rank) -> str:
    """A rank's name in the consumer group; constant, so a restarted rank finds its pending entries."""
    return "trainer" if rank.is_leader else f"trainer-{rank.rank}"


@dataclass(frozen=True)
class CheckedBatch:
    """A batch of entries, each of them checked."""

    batch: Batch[TrajectoryFinished]
    usable: Mapping[str, Trajectory]  # by entry id
    unusable: Mapping[str, str]  # reason by entry id

    @classmethod
    def of(cls, batch: Batch[TrajectoryFinished], dataset: Dataset) -> "CheckedBatch":
        """Check every entry."""
        usable, unusable = {}, {}
        for entry in batch.entries:
            try:
                usable[entry.entry_id] = usable_trajectory(entry, dataset)
            except MessageError as invalid:
                unusable[entry.entry_id] = str(invalid)
        return cls(batch, usable, unusable)

    @property
    def trajectories(self) -> list[Trajectory]:
        """The trajectories that can be learned from."""
        return list(self.usable.values())

    async def acknowledge(
        self, stale: Mapping[UUID, str], lifecycle: Lifecycle, count_unusable: Callable[[], None]
    ) -> None:
        """Dead-letter the refused entries, then acknowledge the others, which are already journalled.

        If the service is asked to stop meanwhile, the rest of the batch stays pending and is redelivered.

        Args:
            stale: why trajectories are too old, by id.
            lifecycle: lifecycle of the service.
            count_unusable: called for each dead-lettered unusable entry; the leader counts the stale ones.
        """
        await lifecycle.until_stopping(self._dead_letter_then_ack(stale, lifecycle, count_unusable))

    async def _dead_letter_then_ack(
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


def usable_trajectory(entry: Entry[TrajectoryFinished], dataset: Dataset) -> Trajectory:
    """Decode an entry's trajectory; check its data set and that every bar has a window.

    Raises:
        MessageError: the trajectory is damaged, of another data set, or includes bars that have no window.
    """
    header = entry.message
    where = f"trajectory {header.trajectory_id}"
    if header.dataset != dataset.fingerprint:
        raise MessageError(
            f"{where}: data set {header.dataset[:12]}…, but the trainer has {dataset.fingerprint[:12]}…; "
            "start the worker with the trainer's data set"
        )
    trajectory = decode_trajectory(header, entry.arrays)
    last = trajectory.start_bar + len(trajectory) - 1
    if trajectory.start_bar < FIRST_WINDOW_BAR or last >= len(dataset.bars):
        raise MessageError(
            f"{where}: bars {trajectory.start_bar} to {last}, "
            f"but the data set has windows only for {FIRST_WINDOW_BAR} to {len(dataset.bars) - 1}"
        )
    return trajectory


def stale_among(
    trajectories: Sequence[Trajectory],
    *,
    newest: int,
    max_version_lag: int | None,
    journalled: Container[UUID],
) -> dict[UUID, str]:
    """Find the trajectories that are too old to be learned from; return the reasons by id.

    Args:
        trajectories: usable trajectories.
        newest: newest published version. After a resume from an earlier version, trajectories of later
            versions may arrive; they are never too old.
        max_version_lag: maximum lag of a trajectory in versions; None for no limit.
        journalled: ids of journalled trajectories, which are never too old.
    """
    if max_version_lag is None:
        return {}
    return {
        trajectory.trajectory_id: (
            f"trajectory {trajectory.trajectory_id}: played by version {trajectory.checkpoint_version}, "
            f"newest {newest}: a lag of {newest - trajectory.checkpoint_version}; "
            f"trainer.max_version_lag allows {max_version_lag}"
        )
        for trajectory in trajectories
        if newest - trajectory.checkpoint_version > max_version_lag
        and trajectory.trajectory_id not in journalled
    }
