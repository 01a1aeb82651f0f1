"""The validator: judges every published version, the newest first, and promotes those that pass."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from services.validator.config import ValidationConfig
from services.validator.page import page, picture
from services.validator.report import ValidationReport, write_report
from services.validator.validation import Provenance, Validator, announcement_of, row_of
from shared.adapters.files import write_whole
from shared.adapters.tables.validations import DATABASE, ValidationStore
from shared.adapters.versions.agents import load_agent
from shared.adapters.versions.manifest import WEIGHTS, Pointed, Pointer
from shared.adapters.versions.promotions import (
    check_gate,
    in_sample,
    promote,
    report_path,
    require_record,
    serve_unproven,
)
from shared.adapters.versions.store import CheckpointStore
from shared.engine.precision import Precision
from shared.errors import (
    CheckpointError,
    MuZeroError,
    PromotionError,
    RecordsAwayError,
    ServiceError,
    StoreAwayError,
)
from shared.messages.entry_id import EntryId
from shared.messages.schemas import AlertRaised, ValidationReported, VersionPromoted
from shared.messages.streams import ALERTS, CHECKPOINTS, PROMOTIONS, VALIDATIONS
from shared.runtime.lifecycle import Lifecycle

log = structlog.get_logger()

_R = TypeVar("_R")

#: Pause between attempts while the checkpoint store or the database is away.
STORE_RETRY_SECONDS = 5.0


class _StoppedError(Exception):
    """The service was asked to stop; what was not done is done after the next start."""


@dataclass(frozen=True)
class Desk:
    """Where the validator reads versions and writes its reports."""

    store: CheckpointStore
    reports: Path
    precision: Precision = Precision.AUTO  # of the versions that it reads

    @property
    def records(self) -> ValidationStore:
        """The database of judgements."""
        return ValidationStore(self.reports / DATABASE)


class ValidatorService:
    """Follows the published versions.

    All its state is in its database. The row of a version is written after its report, and marks the
    version as judged. After a crash before that, the version is judged again. After a crash between the
    row and the promotion, announcement and promotion are repeated before any other version is judged, so
    that every later judgement sees their outcome. Versions published while the validator was down are
    still in the stream. At the start, a version is judged again if its report cannot promote: because it
    is damaged, of an earlier release, or judged by other settings. While the store or the database is away,
    the service waits.
    """

    def __init__(
        self, lifecycle: Lifecycle, validator: Validator, desk: Desk, config: ValidationConfig
    ) -> None:
        self._lifecycle, self._validator, self._desk, self._config = lifecycle, validator, desk, config
        self._waiting: set[int] = set()
        self._done: set[int] = set()
        self._arrived = asyncio.Event()
        self._stop = threading.Event()
        self._num_skipped = 0
        self._best_is_damaged = False

    async def run(self) -> None:
        """Judge versions until asked to stop. A failure of any task stops the service."""
        try:
            self._done, self._waiting = await self._persist(self._begin)
        except _StoppedError:
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass_on_stop())
                listening = tasks.create_task(self._listen())
                await self._judge_all()
                listening.cancel()
        except* MuZeroError as failures:
            raise failures.exceptions[0] from failures

    def _begin(self) -> tuple[set[int], set[int]]:
        """Record the settings in force, off the event loop.

        Returns:
            The versions that need no judgement, and those that are judged again.
        """
        records, ground = self._desk.records, self._validator.ground
        records.record_standards(ground, self._validator.standards.document())
        again = set()
        for version in records.judged(ground).intersection(self._desk.store.versions()):
            try:
                require_record(self._desk.reports, self._desk.store.manifest(version))
            except CheckpointError as unfit:
                log.info("judged_again", version=version, reason=str(unfit))
                again.add(version)
        return records.done(ground) - again, again

    async def _judge_all(self) -> None:
        """Judge the waiting versions, the newest first, until asked to stop."""
        ground = self._validator.ground
        with contextlib.suppress(_StoppedError):
            for announcement in await self._persist(lambda: self._desk.records.pending(ground)):
                await self._tell(announcement)
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
                if await self._judge(version):
                    self._waiting.discard(version)
                    self._done.add(version)

    async def _listen(self) -> None:
        """Collect published versions; those announced before the start are all read before any is judged."""
        last = EntryId.parse(await self._lifecycle.bus.last_id(CHECKPOINTS))
        async for published in self._lifecycle.bus.follow(CHECKPOINTS):
            self._waiting.update(entry.message.version for entry in published)
            self._waiting -= self._done
            if not published or EntryId.parse(published[-1].entry_id) >= last:
                last = EntryId(0, 0)
                if self._waiting:
                    self._arrived.set()

    async def _pass_on_stop(self) -> None:
        """Stop the judging thread, too, when the service stops or fails."""
        try:
            await self._lifecycle.stopping.wait()
        finally:
            self._stop.set()

    async def _judge(self, version: int) -> bool:
        """Validate, report and promote one version; False when it must be tried again.

        Raises:
            _StoppedError: the service was asked to stop before that was done.
        """
        try:
            best = await self._best()
            newest = max({*self._waiting, *self._done, version})
            superseded_by = newest if newest > version else None
            report, sha256 = await asyncio.to_thread(self._validate, version, best, superseded_by)
        except (StoreAwayError, RecordsAwayError) as away:
            await self._wait(away)
            return False
        except MuZeroError as failure:
            reason = str(failure)
            if not await self._lifecycle.until_stopping(self._tell_skipped(version, reason)):
                raise _StoppedError from failure
            await self._persist(lambda: self._desk.records.skip(self._validator.ground, version, reason))
            return True
        row, announcement = row_of(report, sha256), announcement_of(report)
        await self._persist(
            lambda: self._desk.records.record(row, report.days, report.daily_pips, announcement)
        )
        await self._tell(announcement)
        return True

    async def _tell(self, judged: ValidationReported) -> None:
        """Announce a judgement and promote accordingly.

        Raises:
            _StoppedError: the service was asked to stop before that was done.
        """
        if not await self._lifecycle.until_stopping(self._announce(judged)):
            raise _StoppedError
        await self._persist(lambda: self._desk.records.mark_announced(self._validator.ground, judged.version))

    async def _persist(self, call: Callable[[], _R]) -> _R:
        """The result of a call, which is repeated while the store or the database is away.

        Raises:
            _StoppedError: the service was asked to stop before that.
        """
        while True:
            try:
                return await asyncio.to_thread(call)
            except (StoreAwayError, RecordsAwayError) as away:
                await self._wait(away)
                if self._lifecycle.stopping.is_set():
                    raise _StoppedError from away

    async def _announce(self, judged: ValidationReported) -> bool:
        """Announce a judgement, and promote its version if it passed; may be repeated. True when done."""
        await self._lifecycle.bus.announce(VALIDATIONS, judged)
        log.info(
            "version_validated",
            version=judged.version,
            trades=judged.num_trades,
            expectancy_pips=judged.expectancy_pips,
            sqn100=judged.sqn,
            passed_gates=judged.passed_gates,
            seconds=round(judged.seconds, 2),
        )
        await self._promote(judged.version, passed="paper" in judged.passed_gates)
        return True

    async def _best(self) -> int | None:
        """The version to beat; None where there is none or the pointer is damaged, which raises one alert.

        Raises:
            StoreAwayError: the store does not answer.
        """
        try:
            best = await asyncio.to_thread(self._desk.store.pointer, Pointer.BEST)
        except CheckpointError as damaged:
            if not self._best_is_damaged:
                log.warning("best_damaged", error=str(damaged))
                await self._lifecycle.until_stopping(self._alert("best_damaged", str(damaged)))
            self._best_is_damaged = True
            return None
        self._best_is_damaged = False
        return best.version if best else None

    def _validate(
        self, version: int, best: int | None, superseded_by: int | None
    ) -> tuple[ValidationReport, str]:
        """Judge a version and write its report, off the event loop.

        Args:
            version: to be judged.
            best: the one to beat.
            superseded_by: a newer version that is published already.
        Returns:
            The report, and the SHA-256 of its file.
        Raises:
            _StoppedError: the service was asked to stop.
            ServiceError: the time limit was reached.
            CheckpointError: the version is gone, damaged, or was trained on other bars, or on these.
        """
        deadline = time.monotonic() + self._config.time_limit_seconds

        def look_around(done: int, total: int) -> None:
            if self._stop.is_set():
                raise _StoppedError
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"validation of version {version} reached its limit of "
                    f"{self._config.time_limit_seconds:g} s after {done:,} of {total:,} decisions"
                )

        store, dataset = self._desk.store, self._validator.ground.dataset
        manifest = store.manifest(version)
        if manifest.dataset != dataset:
            raise CheckpointError(
                f"version {version} was trained on data set {manifest.dataset[:12]}…, "
                f"this one is {dataset[:12]}…"
            )
        if reason := in_sample(manifest, self._validator.first_bar_at):
            raise CheckpointError(f"version {version} cannot be judged: {reason}")
        report = self._validator.validate(
            load_agent(store, version, self._desk.precision),
            Provenance(manifest.files[WEIGHTS].sha256, "service", superseded_by),
            records=self._desk.records,
            best=best,
            progress=look_around,
        )
        path = report_path(self._desk.reports, version)
        return report, write_all(report, path, with_page=self._config.page)

    async def _promote(self, version: int, *, passed: bool) -> None:
        """Promote a version that passed the paper gate, or the first of all as unproven."""
        try:
            message = await self._persist(
                lambda: self._point(version) if passed else self._point_unproven(version)
            )
        except PromotionError as withheld:
            log.info("promotion_withheld", version=version, reason=str(withheld))
            return
        except CheckpointError as gone:
            await self._alert("promotion_failed", str(gone))
            return
        if message is None:
            return
        await self._lifecycle.bus.announce(PROMOTIONS, message)
        log.info("version_promoted", version=version, stage=message.stage)

    def _point(self, version: int) -> VersionPromoted:
        """Point `best` and `promoted` at a version whose report passes the paper gate now.

        A pass by earlier settings, announced after a restart with others, moves neither.
        """
        check_gate(self._desk.reports, self._desk.store.manifest(version), "paper")
        best = self._desk.store.pointers()[Pointer.BEST]
        if not isinstance(best, Pointed) or best.version != version:
            self._desk.store.point(Pointer.BEST, version)
        return promote(
            self._desk.store, self._desk.reports, version, "paper", by="validator", replace_live=False
        )

    def _point_unproven(self, version: int) -> VersionPromoted | None:
        """Serve a version that passed no gate if no version is promoted."""
        return serve_unproven(self._desk.store, self._desk.reports, version, by="validator")

    async def _wait(self, away: StoreAwayError | RecordsAwayError) -> None:
        """Pause before the next attempt."""
        log.warning("store_away", error=str(away), retry_seconds=STORE_RETRY_SECONDS)
        await self._lifecycle.sleep(STORE_RETRY_SECONDS)

    async def _tell_skipped(self, version: int, reason: str) -> bool:
        """Raise an alert about a version that cannot be judged; True when it is sent."""
        self._num_skipped += 1
        log.warning("validation_skipped", version=version, reason=reason)
        await self._alert("validation_skipped", reason)
        return True

    async def _alert(self, name: str, detail: str) -> None:
        await self._lifecycle.bus.append(
            ALERTS, AlertRaised(source="validator", name=name, detail=detail[:2048])
        )

    def _report_state(self, version: int | None) -> None:
        self._lifecycle.report(
            validating=version,
            waiting=len(self._waiting),
            done=len(self._done),
            skipped=self._num_skipped,
            sessions=self._validator.num_sessions,
        )


def write_all(report: ValidationReport, path: Path, *, with_page: bool) -> str:
    """Write a report and, beside it, its picture and page; the SHA-256 of the JSON file.

    The JSON file is written last: its record is what allows promotion.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if with_page:
        png = picture(report)
        write_whole(path.with_suffix(".png"), png)
        write_whole(path.with_suffix(".html"), page(report, png).encode())
    return write_report(report, path)
