"""The judgement of one published version, from its files to its report. It blocks, so it runs in a thread."""

import threading
import time
from pathlib import Path

import structlog

from services.validator.config import ValidationConfig
from services.validator.page import page
from services.validator.picture import picture
from services.validator.report import ValidationReport, write_report
from services.validator.storage import StoppedError, Storage
from services.validator.validation import Provenance, Validator
from shared.adapters.files import write_atomically
from shared.adapters.versions.agents import load_agent
from shared.adapters.versions.manifest import WEIGHTS, Manifest
from shared.adapters.versions.promotions import in_sample, report_path, require_record
from shared.errors import CheckpointError, ServiceError

log = structlog.get_logger()


class Judge:
    """Judges stored versions until it is asked to stop."""

    def __init__(self, validator: Validator, storage: Storage, config: ValidationConfig) -> None:
        self._validator, self._storage, self._config = validator, storage, config
        self._stop = threading.Event()

    def stop(self) -> None:
        """Abort the judgement in progress at its next step; called from the event loop."""
        self._stop.set()

    def begin(self) -> tuple[set[int], set[int]]:
        """Record the settings in force.

        Returns:
            The versions that need no judgement, and those to judge again because their report cannot promote.
        """
        records, scope = self._storage.records, self._validator.scope
        records.record_standards(scope, self._validator.standards.document())
        again = set()
        for version in records.judged(scope).intersection(self._storage.store.versions()):
            try:
                require_record(self._storage.reports, self._storage.store.manifest(version))
            except CheckpointError as unfit:
                log.info("judged_again", version=version, reason=str(unfit))
                again.add(version)
        return records.done(scope) - again, again

    def judge(
        self, version: int, best: int | None, superseded_by: int | None
    ) -> tuple[ValidationReport, str]:
        """Judge a version and write its report.

        Args:
            version: the version to judge.
            best: the version that this one must beat; None if there is no such version.
            superseded_by: a newer version that is already published.
        Returns:
            The report, and the SHA-256 of its file.
        Raises:
            StoppedError: the service was asked to stop.
            ServiceError: the judgement reached its time limit.
            CheckpointError: the version is missing or damaged, was trained on another data set, or was
                trained on the bars on which it would be judged.
        """
        deadline = time.monotonic() + self._config.time_limit_seconds

        def check_limits(done: int, total: int) -> None:
            if self._stop.is_set():
                raise StoppedError
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"validation of version {version} reached its limit of "
                    f"{self._config.time_limit_seconds:g} s after {done:,} of {total:,} decisions; "
                    "raise validation.time_limit_seconds or lower validation.max_sessions"
                )

        store = self._storage.store
        manifest = store.manifest(version)
        self._require_out_of_sample(manifest)
        report = self._validator.validate(
            load_agent(store, version, self._storage.precision),
            Provenance(manifest.files[WEIGHTS].sha256, "service", superseded_by),
            records=self._storage.records,
            best=best,
            progress=check_limits,
        )
        path = report_path(self._storage.reports, version)
        return report, write_all(report, path, with_page=self._config.page)

    def _require_out_of_sample(self, manifest: Manifest) -> None:
        """Refuse a version trained on another data set or on the judged sessions."""
        version, dataset = manifest.version, self._validator.scope.dataset
        if manifest.dataset != dataset:
            raise CheckpointError(
                f"version {version} was trained on data set {manifest.dataset[:12]}…, but the validator has "
                f"{dataset[:12]}…; give the trainer and the validator the same MM_DATASET"
            )
        if reason := in_sample(manifest, self._validator.first_bar_at):
            raise CheckpointError(f"version {version} cannot be judged: {reason}")


def write_all(report: ValidationReport, path: Path, *, with_page: bool) -> str:
    """Write a report and, beside it, its picture and page; return the SHA-256 of the JSON file.

    The JSON file is written last: its existence is what allows promotion.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if with_page:
        png = picture(report)
        write_atomically(path.with_suffix(".png"), png)
        write_atomically(path.with_suffix(".html"), page(report, png).encode())
    return write_report(report, path)
