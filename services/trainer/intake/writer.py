"""Appends trajectories to the journal, whichever rank read them."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

from services.trainer.intake.ingest import stale_among
from services.trainer.intake.journal import Journal
from services.trainer.publishing.metrics import DISK_FAILURES, DUPLICATES, REFUSED, VERSION_LAG, Refusal
from services.trainer.retry import wait_to_retry
from shared.agent.trajectory import Trajectory
from shared.runtime.lifecycle import Lifecycle


class JournalWriter:
    """Appends one batch of trajectories at a time and refuses those that are too old."""

    def __init__(
        self,
        journal: Journal,
        lifecycle: Lifecycle,
        *,
        max_version_lag: int | None,
        newest_version: Callable[[], int],
    ) -> None:
        """Write to a journal.

        Args:
            journal: journal to append to.
            lifecycle: lifecycle of the service.
            max_version_lag: most versions that a trajectory may be behind; None for no limit.
            newest_version: returns the newest published version.
        """
        self._journal, self._lifecycle = journal, lifecycle
        self._max_version_lag, self._newest_version = max_version_lag, newest_version
        self._appending = asyncio.Lock()  # makes the age check and the append atomic

    async def append(self, trajectories: Sequence[Trajectory]) -> Mapping[UUID, str] | None:
        """Append the trajectories that are not too old; retry while the disk fails.

        Age is checked only here. A journalled trajectory is always learned from, even if it is too old by
        then, for example after a restart.

        Returns:
            Why trajectories are too old, by id; None if the service was asked to stop before the write.
        """
        while True:
            try:
                async with self._appending:
                    newest = self._newest_version()
                    stale = stale_among(
                        trajectories,
                        newest=newest,
                        max_version_lag=self._max_version_lag,
                        journalled=self._journal,
                    )
                    recent = [one for one in trajectories if one.trajectory_id not in stale]
                    new = await asyncio.to_thread(self._journal.append, recent)
            except OSError as failure:
                DISK_FAILURES.labels("journal").inc()
                if not await wait_to_retry("journal_write_failed", failure, self._lifecycle):
                    return None
            else:
                DUPLICATES.inc(len(recent) - len(new))
                REFUSED.labels(Refusal.STALE).inc(len(trajectories) - len(recent))
                for trajectory in new:
                    VERSION_LAG.observe(max(newest - trajectory.checkpoint_version, 0))
                return stale
