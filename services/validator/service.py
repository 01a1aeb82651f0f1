"""The validator: judges every published version, the newest first, and promotes those that pass."""

import asyncio
import contextlib

import structlog

from services.validator.config import ValidationConfig
from services.validator.judgement import Judge
from services.validator.promotion import BestPointer, announce_and_promote, raise_alert
from services.validator.storage import StoppedError, Storage, pause, retry_until_stored
from services.validator.validation import Validator, announcement_of, row_of
from shared.errors import MuZeroError, RecordsUnavailableError, StoreUnavailableError
from shared.messages.entry_id import EntryId
from shared.messages.schemas import ValidationReported
from shared.messages.streams import CHECKPOINTS
from shared.runtime.lifecycle import Lifecycle
from shared.runtime.tasks import service_tasks

log = structlog.get_logger()


class ValidatorService:
    """Follows the published versions.

    All its state is in its database. The row of a version is written after its report, and marks the
    version as judged. After a crash before that, the version is judged again. After a crash between the
    row and the promotion, announcement and promotion are repeated before any other version is judged, so
    that every later judgement sees their outcome. Versions published while the validator was down are
    still in the stream. At startup, a version is judged again if its report cannot promote it: the report is
    damaged, comes from an earlier release, or was made with other settings. While the store or the database
    is unavailable, the service waits.
    """

    def __init__(
        self, lifecycle: Lifecycle, validator: Validator, storage: Storage, config: ValidationConfig
    ) -> None:
        self._lifecycle, self._validator, self._storage = lifecycle, validator, storage
        self._judge = Judge(validator, storage, config)
        self._best = BestPointer(lifecycle, storage)
        self._waiting: set[int] = set()
        self._done: set[int] = set()
        self._arrived = asyncio.Event()
        self._num_skipped = 0

    async def run(self) -> None:
        """Judge versions until asked to stop. A failure of any task stops the service."""
        try:
            self._done, self._waiting = await retry_until_stored(self._lifecycle, self._judge.begin)
        except StoppedError:
            return
        async with service_tasks() as tasks:
            tasks.create_task(self._forward_stop())
            following = tasks.create_task(self._follow())
            await self._judge_all()
            following.cancel()

    async def _forward_stop(self) -> None:
        """Stop the judging thread as well when the service stops or fails."""
        try:
            await self._lifecycle.stopping.wait()
        finally:
            self._judge.stop()

    async def _follow(self) -> None:
        """Collect published versions. Read all earlier announcements before the first judgement starts."""
        last = EntryId.parse(await self._lifecycle.bus.last_id(CHECKPOINTS))
        async for published in self._lifecycle.bus.follow(CHECKPOINTS):
            self._waiting.update(entry.message.version for entry in published)
            self._waiting -= self._done
            if not published or EntryId.parse(published[-1].entry_id) >= last:
                last = EntryId(0, 0)
                if self._waiting:
                    self._arrived.set()

    async def _judge_all(self) -> None:
        """Judge the waiting versions, the newest first, until asked to stop."""
        records, scope = self._storage.records, self._validator.scope
        with contextlib.suppress(StoppedError):
            for unannounced in await retry_until_stored(self._lifecycle, lambda: records.pending(scope)):
                await self._announce(unannounced)
            self._report_state(None)
            await self._lifecycle.until_stopping(self._arrived.wait())
            while not self._lifecycle.stopping.is_set():
                if not self._waiting:
                    self._report_state(None)
                    self._arrived.clear()
                    await self._lifecycle.until_stopping(self._arrived.wait())
                    continue
                version = max(self._waiting)
                self._report_state(version)
                if await self._judge_one(version):
                    self._waiting.discard(version)
                    self._done.add(version)

    async def _judge_one(self, version: int) -> bool:
        """Judge, record, announce and promote one version; return False if it must be tried again.

        Raises:
            StoppedError: the service was asked to stop before this was complete.
        """
        records = self._storage.records
        try:
            best = await self._best.version()
            newest = max({*self._waiting, *self._done, version})
            superseded_by = newest if newest > version else None
            report, sha256 = await asyncio.to_thread(self._judge.judge, version, best, superseded_by)
        except (StoreUnavailableError, RecordsUnavailableError) as unavailable:
            await pause(self._lifecycle, unavailable)
            return False
        except MuZeroError as failure:
            reason = str(failure)
            if not await self._lifecycle.until_stopping(self._report_skipped(version, reason)):
                raise StoppedError from failure
            scope = self._validator.scope
            await retry_until_stored(self._lifecycle, lambda: records.skip(scope, version, reason))
            return True
        row, announcement = row_of(report, sha256), announcement_of(report)
        await retry_until_stored(
            self._lifecycle, lambda: records.record(row, report.days, report.daily_pips, announcement)
        )
        await self._announce(announcement)
        return True

    async def _announce(self, judged: ValidationReported) -> None:
        """Announce a judgement, promote the version if it passed, and record that both are done.

        Raises:
            StoppedError: the service was asked to stop before this was complete.
        """
        announcing = announce_and_promote(self._lifecycle, self._storage, judged)
        if not await self._lifecycle.until_stopping(announcing):
            raise StoppedError
        records, scope = self._storage.records, self._validator.scope
        await retry_until_stored(self._lifecycle, lambda: records.mark_announced(scope, judged.version))

    async def _report_skipped(self, version: int, reason: str) -> bool:
        """Raise an alert about a version that cannot be judged; return True once it is sent."""
        self._num_skipped += 1
        log.warning("validation_skipped", version=version, reason=reason)
        await raise_alert(self._lifecycle, "validation_skipped", reason)
        return True

    def _report_state(self, version: int | None) -> None:
        self._lifecycle.report(
            validating=version,
            waiting=len(self._waiting),
            done=len(self._done),
            skipped=self._num_skipped,
            sessions=self._validator.num_sessions,
        )
