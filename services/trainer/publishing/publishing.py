"""Writes checkpoint versions, announces them, deletes old ones, and resumes from the newest."""

import asyncio
import contextlib
from collections.abc import Iterator

import structlog

from services.trainer.intake.journal import Journal
from services.trainer.publishing.metrics import DISK_FAILURES, TrainerMetrics
from services.trainer.training import SavedState, Training
from shared.adapters.streams.bus import Bus
from shared.adapters.versions.agents import model_config
from shared.adapters.versions.manifest import WEIGHTS, Manifest, Pointer
from shared.adapters.versions.store import CheckpointStore
from shared.errors import CheckpointError, DataError, MessageError, SettingsError, StoreUnavailableError
from shared.messages.schemas import CheckpointPublished
from shared.messages.streams import CHECKPOINTS

log = structlog.get_logger()


class Publisher:
    """The only writer of a checkpoint store."""

    def __init__(
        self, store: CheckpointStore, journal: Journal, training: Training, bus: Bus, metrics: TrainerMetrics
    ) -> None:
        self._store, self._journal, self._training = store, journal, training
        self._bus, self._metrics = bus, metrics
        self._published: Manifest | None = None
        self._tried_at = 0  # episodes at the last attempt to publish
        self._rolled_back: tuple[int, int] | None = None  # version, and number of updates at that time

    @property
    def version(self) -> int | None:
        """The newest published version."""
        return self._published.version if self._published else None

    @property
    def is_due(self) -> bool:
        """True when enough new episodes were learned from and the last update succeeded."""
        training = self._training
        enough = training.position - self._tried_at >= training.config.trainer.publish_every_episodes
        return enough and training.learner.counters.skipped_in_a_row == 0

    def resume(self) -> None:
        """Resume from the newest valid version, or write version 0 if there is no version.

        Raises:
            SettingsError: the version has other model sizes than the settings.
            DataError: the version was trained on another data set.
            CheckpointError: all versions are damaged.
            JournalError: the journal lacks trajectories that the version needs.
            OSError: the disk fails; the training is unchanged.
            StoreUnavailableError: the store does not answer; the training is unchanged.
        """
        manifest, refused = self._store.newest_valid()
        for damaged in refused:
            log.error("checkpoint_refused", error=str(damaged))
        if manifest is None and refused:
            raise CheckpointError(f"{self._store.name}: every version is damaged; the newest: {refused[0]}")
        if manifest is None:
            with _counting_failures():
                self._write()
            return
        self._require_same_run(manifest)
        version = manifest.version
        weights, moments = self._store.weights(version), self._store.training(version)
        with _counting_failures():
            self._store.point(Pointer.LATEST, version)
        self._training.resume(manifest, weights, moments, self._journal.read)
        self._published, self._tried_at = manifest, manifest.episode
        self._metrics.published(manifest)

    async def write(self) -> None:
        """Write a version; if disk or store fails, retry only when the next version is due."""
        self._tried_at = self._training.position
        try:
            with _counting_failures():
                await asyncio.to_thread(self._write)
                await asyncio.to_thread(self._collect_garbage)
        except (OSError, StoreUnavailableError) as failure:
            log.error("checkpoint_write_failed", error=str(failure))  # noqa: TRY400  the error text suffices

    async def publish_last(self, *, patience_seconds: float) -> None:
        """Write a version if anything was learned since the last one, and announce the newest.

        Args:
            patience_seconds: longest wait for Redis.
        """
        published, training = self._published, self._training
        counters = training.learner.counters
        saved = (published.episode, published.update) if published else None
        if saved != (training.position, counters.updates) and counters.skipped_in_a_row == 0:
            await self.write()
        try:
            async with asyncio.timeout(patience_seconds):
                await self.announce_newest()
        except TimeoutError:  # the next start announces it
            log.warning("checkpoint_not_announced", version=self.version, reason="Redis does not answer")

    async def announce_newest(self) -> None:
        """Announce the newest version unless it was the last one announced."""
        manifest = self._published
        if manifest is None:
            return
        try:
            announced = await self._bus.newest(CHECKPOINTS)
        except MessageError as invalid:
            log.warning("announcement_unreadable", error=str(invalid))
            announced = None
        if announced is not None and announced.version == manifest.version:
            return
        await self._bus.announce(
            CHECKPOINTS,
            CheckpointPublished(
                version=manifest.version,
                episode=manifest.episode,
                update=manifest.update,
                weights_sha256=manifest.files[WEIGHTS].sha256,
                metrics=manifest.metrics,
            ),
        )
        log.info(
            "checkpoint_published", version=manifest.version, episode=manifest.episode, update=manifest.update
        )

    def roll_back(self) -> int:
        """Load the newest valid version's weights into the training and return its number.

        If no update succeeded since the last roll-back, load the version before that one. After the oldest
        version, start again with the newest.

        Raises:
            CheckpointError: there is no valid version.
            OSError: the store cannot be read.
            StoreUnavailableError: the store does not answer.
        """
        updates = self._training.learner.counters.updates
        failed = self._rolled_back[0] if self._rolled_back and self._rolled_back[1] == updates else None
        manifest, refused = self._store.newest_valid(before=failed)
        if manifest is None and failed is not None:
            manifest, refused = self._store.newest_valid()
        if manifest is None:
            raise CheckpointError(
                f"{self._store.name}: no valid version to roll back to ({len(refused)} damaged)"
            )
        self._training.roll_back(
            self._store.weights(manifest.version), self._store.training(manifest.version)
        )
        self._rolled_back = manifest.version, updates
        return manifest.version

    def _write(self) -> None:
        versions = self._store.versions()
        version = versions[-1] + 1 if versions else 0
        self._metrics.flush()  # first, so that a resumed run's record is complete up to the version
        self._published = self._store.save(*self._training.save(version))
        self._store.point(Pointer.LATEST, version)
        self._metrics.published(self._published)

    def _collect_garbage(self) -> None:
        """Delete old versions, and journal segments that neither a version nor the replay needs."""
        self._store.collect_garbage(keep=self._training.config.trainer.keep_checkpoints)
        needed = [self._training.replay_start]
        for version in self._store.versions():
            try:
                needed.append(SavedState.of(self._store.manifest(version)).replay_start)
            except CheckpointError as damaged:
                log.error("checkpoint_refused", error=str(damaged))  # noqa: TRY400  the error text suffices
        removed = self._journal.remove_before(min(needed))
        if removed:
            log.info("journal_segments_removed", trajectories=removed, first=self._journal.first)

    def _require_same_run(self, manifest: Manifest) -> None:
        """Refuse to resume from a version with other model sizes or another data set."""
        sizes, expected = model_config(manifest), self._training.config.model
        if sizes != expected:
            raise SettingsError(
                f"{self._store.name}: version {manifest.version} has {sizes}, "
                f"but the settings ask for {expected}; "
                "set the [model] group to the version's sizes, or begin in another home and store"
            )
        if manifest.dataset != self._training.dataset:
            raise DataError(
                f"{self._store.name}: version {manifest.version} was trained on data set "
                f"{manifest.dataset[:12]}…, but this run has {self._training.dataset[:12]}…; "
                "use that data set, or begin in another home and store"
            )


@contextlib.contextmanager
def _counting_failures() -> Iterator[None]:
    """Count failures of disk or store and re-raise them."""
    try:
        yield
    except (OSError, StoreUnavailableError):
        DISK_FAILURES.labels("checkpoint").inc()
        raise
