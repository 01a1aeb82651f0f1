"""Promotion of the version that decides in trading, through a gate, and roll-back.

The validator promotes automatically; the gateway and the command line promote for a person. All of them call
these functions. Only the validator service's own report counts. It must judge the stored weights, on the
validation split of the data set that the version was trained on, under the service's present settings, and
the service must have recorded its SHA-256.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from shared.adapters.files import read_beneath
from shared.adapters.versions.manifest import WEIGHTS, Manifest, Pointed, Pointer, moved, stage_of
from shared.adapters.versions.store import CheckpointStore
from shared.errors import CheckpointError, DataError, PromotionError
from shared.market.session import Split
from shared.messages.schemas import Fingerprint, Stage, VersionPromoted
from shared.messages.validation import first_fault

#: A report on 3.6 years has a few megabytes.
MAX_REPORT_BYTES = 64_000_000

#: Stages with a gate. `unproven` has none, and only the validator promotes to it.
GatedStage = Literal["paper", "live"]

#: Remedy in error texts.
_JUDGE_AGAIN = "restart the validator to judge the version again"


class GateVerdict(BaseModel):
    """The part of a validation report that promotion reads: subject, settings, and passed gates."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[2]
    purpose: Literal["service", "on-demand"]
    version: int = Field(ge=0)
    dataset: Fingerprint
    split: str
    weights_sha256: Fingerprint
    first_bar_at: AwareDatetime  # of the validated sessions
    standards: dict[str, JsonValue]
    passed_gates: tuple[str, ...]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class RolledBack:
    """A roll-back: the message for mm:promotions, and the faults of the versions that were passed over."""

    promotion: VersionPromoted
    passed_over: tuple[str, ...]


def report_path(validation_root: Path, version: int) -> Path:
    """The JSON report of a version; its page and picture are beside it as `.html` and `.png`."""
    return validation_root / f"{version}.json"


def check_gate(validation_root: Path, manifest: Manifest, stage: GatedStage) -> GateVerdict:
    """The service's own report of a version, if the version passed a stage's gate.

    Raises:
        PromotionError: `require_record` rejects the report, or the version did not pass the gate; the text
            names the report's reasons.
    """
    verdict = require_record(validation_root, manifest)
    if stage not in verdict.passed_gates:
        # The live gate includes the paper gate, so paper's reasons apply to live, but not the reverse.
        reasons = [reason for reason in verdict.reasons if stage == "live" or not reason.startswith("live: ")]
        why = "; ".join(reasons) or "the report names no reason"
        raise PromotionError(f"version {manifest.version} did not pass the {stage} gate: {why}")
    return verdict


def require_record(validation_root: Path, manifest: Manifest) -> GateVerdict:
    """The report of a version, if the service made and recorded it for the stored weights.

    Args:
        validation_root: the validator's folder, with its reports and its database.
        manifest: verified manifest of the version.
    Raises:
        PromotionError: there is no report, or it does not count; the error text gives the reason.
        RecordsUnavailableError: the validator's database cannot be read now.
    """
    version, path = manifest.version, report_path(validation_root, manifest.version)
    document = _report(path, version)
    try:
        verdict = GateVerdict.model_validate_json(document)
    except ValidationError as invalid:
        fault = first_fault(invalid, document="document")
        raise PromotionError(f"validation report of version {version}: {fault}; {_JUDGE_AGAIN}") from invalid
    if verdict.version != version:
        raise PromotionError(f"{path.name} is the report of version {verdict.version}, not {version}")
    if problem := _mismatch(verdict, manifest) or _unrecorded(verdict, document, validation_root):
        raise PromotionError(f"validation report of version {version}: {problem}")
    return verdict


def _report(path: Path, version: int) -> bytes:
    try:
        return read_beneath(path.parent, path.name, limit=MAX_REPORT_BYTES)
    except FileNotFoundError as missing:
        raise PromotionError(
            f"version {version} has no validation report in {path.parent}; "
            "the validator must judge it before it is promoted"
        ) from missing
    except OSError as unreadable:
        raise PromotionError(
            f"validation report of version {version}: {path}: {unreadable.strerror}; {_JUDGE_AGAIN}"
        ) from unreadable


def _mismatch(verdict: GateVerdict, manifest: Manifest) -> str:
    """Why a report is not an out-of-sample judgement of the stored version; empty if it is."""
    weights = manifest.files.get(WEIGHTS)
    if verdict.purpose != "service":
        return "it was made on demand; only the validator service's own judgement promotes"
    if verdict.split != Split.VALIDATION:
        return f"it judges the {verdict.split} split, expected the {Split.VALIDATION} split"
    if verdict.dataset != manifest.dataset:
        return (
            f"it judges on data set {verdict.dataset[:12]}…, the version was trained on "
            f"{manifest.dataset[:12]}…; expected the same"
        )
    if weights is None or verdict.weights_sha256 != weights.sha256:
        return f"it judges other weights than the store holds; {_JUDGE_AGAIN}"
    return in_sample(manifest, verdict.first_bar_at)


def in_sample(manifest: Manifest, first_bar_at: datetime) -> str:
    """Why sessions that begin at a bar are not out of sample for a version; empty if they are.

    The fingerprint alone does not show this: other splits of the same data set have the same fingerprint.

    Raises:
        CheckpointError: the manifest's training end cannot be read.
    """
    until = manifest.trained_until
    if until is None or first_bar_at > until:
        return ""
    return (
        f"the version was trained on bars up to {until:%Y-%m-%d %H:%M} UTC, the sessions judged begin at "
        f"{first_bar_at:%Y-%m-%d %H:%M} UTC; expected them to be later"
    )


def _unrecorded(verdict: GateVerdict, document: bytes, validation_root: Path) -> str:
    """Why a report is not the one that the service recorded under its present settings; empty if it is."""
    from shared.adapters.tables.validations import (  # imports DuckDB
        DATABASE,
        ValidationScope,
        ValidationStore,
    )

    records = ValidationStore(validation_root / DATABASE)
    try:
        record = records.recorded(ValidationScope(verdict.dataset, verdict.split), verdict.version)
    except DataError as damaged:
        return f"the validator's record cannot be read: {damaged}"
    if record is None or record.report_sha256 is None:
        return f"the validator has no record of it in {records.path}; {_JUDGE_AGAIN}"
    if record.report_sha256 != hashlib.sha256(document).hexdigest():
        return f"it is not the report that the validator recorded: its SHA-256 differs; {_JUDGE_AGAIN}"
    if record.standards is None:
        return f"the validator recorded no settings in {records.path}; {_JUDGE_AGAIN}"
    if differences := _differences(verdict.standards, record.standards):
        return f"it was judged by other settings than the validator's: {differences}; {_JUDGE_AGAIN}"
    return ""


def _differences(judged: Mapping[str, object], current: Mapping[str, object], prefix: str = "") -> str:
    """The first three settings in which the report and the service differ, with their values."""
    found = []
    for name in sorted({*judged, *current}):
        was, now = judged.get(name), current.get(name)
        if isinstance(was, dict) and isinstance(now, dict):
            found.append(_differences(was, now, f"{prefix}{name}."))
        elif was != now:
            found.append(f"{prefix}{name} was {was}, is {now}")
    return ", ".join([difference for difference in found if difference][:3])


def promote(
    store: CheckpointStore,
    validation_root: Path,
    version: int,
    stage: GatedStage,
    *,
    by: str,
    replace_live: bool = True,
) -> VersionPromoted:
    """Promote a version, if its files are intact and its report passed the gate.

    Promoting a version again to the same stage changes nothing; the message may be announced again.

    Args:
        store: the checkpoint store.
        validation_root: the validator's folder.
        version: the version to promote.
        stage: `paper` or `live`.
        by: name of the promoting person or service, for the audit.
        replace_live: False protects a live version from a paper promotion, and also a damaged pointer,
            because it may have named a live version.
    Returns:
        The message for mm:promotions.
    Raises:
        PromotionError: the version did not pass the gate, or would replace a live version.
        CheckpointError: the version is missing or damaged, or was removed in the meantime.
    """
    check_gate(validation_root, store.verify(version), stage)

    def where(current: Pointed | None) -> Pointed | None:
        if current and current.stage == "live" and stage == "paper" and not replace_live:
            raise PromotionError(
                f"version {current.version} is promoted live; "
                f"a paper promotion of {version} does not replace it"
            )
        if current and (current.version, current.stage) == (version, stage):
            return None
        return moved(current, version, stage)

    _move(store, where, repair=replace_live)
    return VersionPromoted(version=version, stage=stage, by=by)


def serve_unproven(
    store: CheckpointStore, validation_root: Path, version: int, *, by: str
) -> VersionPromoted | None:
    """Promote a version to `unproven` if no version is promoted. It is served but does not trade.

    Args:
        store: the checkpoint store.
        validation_root: the validator's folder.
        version: a version that the service judged; it need not have passed a gate.
        by: name of the promoting person or service, for the audit.
    Returns:
        The message for mm:promotions. None if another version is promoted, or the pointer is damaged and
        may name one.
    Raises:
        PromotionError: the report is not the service's own.
        CheckpointError: the version is missing or damaged, or was removed in the meantime.
    """
    try:
        pointed = store.pointer(Pointer.PROMOTED)
    except CheckpointError:
        return None
    if pointed is None:
        require_record(validation_root, store.verify(version))
        _, pointed = _move(store, lambda current: None if current else moved(None, version, "unproven"))
    if (pointed.version, pointed.stage) != (version, "unproven"):
        return None
    return VersionPromoted(version=version, stage="unproven", by=by)


def roll_back(store: CheckpointStore, validation_root: Path, *, by: str) -> RolledBack:
    """Promote the previous version again, or the newest one before it whose files are intact.

    The earlier version becomes live only if the promoted version is live, the earlier one was live too, and
    its report passes the live gate. Otherwise it becomes paper, or unproven if it was unproven. So rolling
    back a version that went from paper to live returns it to paper.

    Raises:
        PromotionError: no version was promoted before.
        CheckpointError: every earlier version is missing or damaged, or the pointer is damaged.
    """
    passed_over: dict[int, str] = {}

    def previous(current: Pointed | None) -> Pointed:
        passed_over.clear()
        if current is None:
            raise PromotionError("no version is promoted; there is nothing to roll back")
        for index in reversed(range(len(current.history))):
            version, stage = current.history[index]
            to_stage: Stage = "unproven" if stage == "unproven" else "paper"
            if stage == current.stage == "live" and _passed_live(store, validation_root, version):
                to_stage = "live"
            to = Pointed(version, to_stage, current.history[:index])
            if version in passed_over or (to.version, to.stage) == (current.version, current.stage):
                continue
            try:
                store.verify(version)
            except CheckpointError as damaged:
                passed_over[version] = str(damaged)
                continue
            return to
        if passed_over:
            raise CheckpointError(f"no version promoted before is intact: {'; '.join(passed_over.values())}")
        raise PromotionError("no version was promoted before; there is nothing to roll back to")

    before, after = _move(store, previous)
    assert before is not None
    promotion = VersionPromoted(
        version=after.version, stage=stage_of(after), by=by, rolled_back_from=before.version
    )
    return RolledBack(promotion, tuple(passed_over.values()))


def _move(
    store: CheckpointStore, where: Callable[[Pointed | None], Pointed | None], *, repair: bool = False
) -> tuple[Pointed | None, Pointed]:
    """Move `promoted`, and undo the move if the version was removed in the meantime."""
    before, after = store.move(Pointer.PROMOTED, where, repair=repair)
    assert after is not None
    try:
        store.manifest(after.version)
    except CheckpointError as gone:
        store.move_back(Pointer.PROMOTED, before, after)
        raise CheckpointError(
            f"version {after.version} was removed while it was promoted; the promotion is undone: {gone}"
        ) from gone
    return before, after


def _passed_live(store: CheckpointStore, validation_root: Path, version: int) -> bool:
    """Whether a version is still stored and passes the live gate."""
    try:
        check_gate(validation_root, store.manifest(version), "live")
    except CheckpointError:
        return False
    return True
