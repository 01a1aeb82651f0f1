"""Which version decides in trading: promotion through a gate, and the way back.

The validator promotes by itself; the gateway and the command line promote for a person. All of them come
through here. Only the validator service's own judgement counts: a report on the validation split of the
data set that the version was trained on, of the weights that the store holds, by the settings by which
the service judges now, with the SHA-256 that the service recorded in its database.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from shared.adapters.files import read_beneath
from shared.adapters.versions.store import (
    WEIGHTS,
    CheckpointStore,
    Manifest,
    Pointed,
    Pointer,
    moved,
    stage_of,
)
from shared.errors import CheckpointError, DataError, PromotionError
from shared.market.session import Split
from shared.messages.schemas import Fingerprint, Stage, VersionPromoted
from shared.messages.validation import first_fault

#: A report of 3.6 years is some megabytes.
MAX_REPORT_BYTES = 64_000_000

#: The stages that have a gate; `unproven` has none, and the validator alone promotes to it.
GatedStage = Literal["paper", "live"]

#: What makes a judgement count again.
_JUDGE_AGAIN = "the validator judges a stored version again when it starts"


class GateVerdict(BaseModel):
    """The part of a validation report that says what was judged, by what, and which gates were passed."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[2]
    purpose: Literal["service", "on-demand"]
    version: int = Field(ge=0)
    dataset: Fingerprint
    split: str
    weights_sha256: Fingerprint
    first_bar_at: AwareDatetime  # of the sessions that were walked
    standards: dict[str, JsonValue]
    passed_gates: tuple[str, ...]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class RolledBack:
    """A roll-back: the fact to announce on mm:promotions, and what was wrong with the versions between."""

    promotion: VersionPromoted
    passed_over: tuple[str, ...]


def report_path(validation_root: Path, version: int) -> Path:
    """The JSON report of a version; its page and picture lie beside it as `.html` and `.png`."""
    return validation_root / f"{version}.json"


def check_gate(validation_root: Path, manifest: Manifest, stage: GatedStage) -> GateVerdict:
    """The service's own judgement of a version that passed a stage's gate.

    Raises:
        PromotionError: `require_record` refuses the judgement, or the gate was not passed; the text names
            the report's reasons.
    """
    verdict = require_record(validation_root, manifest)
    if stage not in verdict.passed_gates:
        # Live asks for what paper asks for, so paper's reasons are live's too, but not the other way round.
        concern = [reason for reason in verdict.reasons if stage == "live" or not reason.startswith("live: ")]
        why = "; ".join(concern) or "the report names no reason"
        raise PromotionError(f"version {manifest.version} did not pass the {stage} gate: {why}")
    return verdict


def require_record(validation_root: Path, manifest: Manifest) -> GateVerdict:
    """The report of a version, if it is the service's own, untouched, and judges what the store holds.

    Args:
        validation_root: the validator's folder, with its reports and its database.
        manifest: of the version, verified.
    Raises:
        PromotionError: there is no report, or it proves nothing; the text says why.
        RecordsAwayError: the validator's database cannot be read now.
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
    """Why a report does not judge the stored version out of sample; empty where it does."""
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
    """Why sessions from a bar on are not out of sample for a version; empty where they are.

    The bars alone do not tell: another split of the same data set has the same fingerprint.

    Raises:
        CheckpointError: the manifest does not say, in a way that can be read, until when it was trained.
    """
    until = manifest.trained_until
    if until is None or first_bar_at > until:
        return ""
    return (
        f"the version was trained on bars up to {until:%Y-%m-%d %H:%M} UTC, the sessions judged begin at "
        f"{first_bar_at:%Y-%m-%d %H:%M} UTC; expected them to be later"
    )


def _unrecorded(verdict: GateVerdict, document: bytes, validation_root: Path) -> str:
    """Why a report is not the one that the service recorded, by today's settings; empty where it is."""
    from shared.adapters.tables.validations import (  # DuckDB, needed here alone
        DATABASE,
        Ground,
        ValidationStore,
    )

    records = ValidationStore(validation_root / DATABASE)
    try:
        record = records.recorded(Ground(verdict.dataset, verdict.split), verdict.version)
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


def _differences(judged: Mapping[str, object], standing: Mapping[str, object], prefix: str = "") -> str:
    """The settings in which two standards differ, the first three by name."""
    found = []
    for name in sorted({*judged, *standing}):
        was, now = judged.get(name), standing.get(name)
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
    """Make a version the one that decides, if its files are intact and its report passed the gate.

    A version that is already promoted to the stage stays so; the returned fact may be announced again.

    Args:
        store: where the version lies.
        validation_root: where the reports lie.
        version: the version to promote.
        stage: `paper` or `live`.
        by: who promotes, for the audit.
        replace_live: False keeps a version that trades live from being replaced by a paper promotion, and
            a damaged pointer, which may have named one.
    Returns:
        The fact to announce on mm:promotions.
    Raises:
        PromotionError: the gate was not passed, or a live version would be replaced.
        CheckpointError: the version is missing or damaged, or was removed meanwhile.
    """
    check_gate(validation_root, store.verify(version), stage)

    def where(standing: Pointed | None) -> Pointed | None:
        if standing and standing.stage == "live" and stage == "paper" and not replace_live:
            raise PromotionError(
                f"version {standing.version} is promoted live; "
                f"a paper promotion of {version} does not replace it"
            )
        if standing and (standing.version, standing.stage) == (version, stage):
            return None
        return moved(standing, version, stage)

    _move(store, where, mend=replace_live)
    return VersionPromoted(version=version, stage=stage, by=by)


def serve_unproven(
    store: CheckpointStore, validation_root: Path, version: int, *, by: str
) -> VersionPromoted | None:
    """Promote a version that passed no gate as `unproven`, if none is promoted: it is served, not traded.

    Args:
        store: where the version lies.
        validation_root: where the reports lie.
        version: judged by the service.
        by: who promotes, for the audit.
    Returns:
        The fact to announce on mm:promotions; None where another version is promoted, or the pointer is
        damaged and may name one.
    Raises:
        PromotionError: the report is not the service's own.
        CheckpointError: the version is missing or damaged, or was removed meanwhile.
    """
    try:
        pointed = store.pointer(Pointer.PROMOTED)
    except CheckpointError:
        return None
    if pointed is None:
        require_record(validation_root, store.verify(version))
        _, pointed = _move(store, lambda standing: None if standing else moved(None, version, "unproven"))
    if (pointed.version, pointed.stage) != (version, "unproven"):
        return None
    return VersionPromoted(version=version, stage="unproven", by=by)


def roll_back(store: CheckpointStore, validation_root: Path, *, by: str) -> RolledBack:
    """Promote the previous version again, or the newest one before it whose files are intact.

    It becomes live only if the promoted version is live, it was live itself, and its report passes the live
    gate. Otherwise it becomes paper, or unproven if it was. So a version that went from paper to live goes
    back to paper.

    Raises:
        PromotionError: nothing was promoted before.
        CheckpointError: all that was is missing or damaged, or the pointer is.
    """
    passed_over: dict[int, str] = {}

    def back(standing: Pointed | None) -> Pointed:
        passed_over.clear()
        if standing is None:
            raise PromotionError("no version is promoted; there is nothing to roll back")
        for place in reversed(range(len(standing.history))):
            version, stage = standing.history[place]
            to_stage: Stage = "unproven" if stage == "unproven" else "paper"
            if stage == standing.stage == "live" and _passed_live(store, validation_root, version):
                to_stage = "live"
            to = Pointed(version, to_stage, standing.history[:place])
            if version in passed_over or (to.version, to.stage) == (standing.version, standing.stage):
                continue
            try:
                store.verify(version)
            except CheckpointError as damaged:
                passed_over[version] = str(damaged)
                continue
            return to
        if passed_over:
            raise CheckpointError(f"no version promoted before is whole: {'; '.join(passed_over.values())}")
        raise PromotionError("no version was promoted before; there is nothing to roll back to")

    before, after = _move(store, back)
    assert before is not None
    promotion = VersionPromoted(
        version=after.version, stage=stage_of(after), by=by, rolled_back_from=before.version
    )
    return RolledBack(promotion, tuple(passed_over.values()))


def _move(
    store: CheckpointStore, where: Callable[[Pointed | None], Pointed | None], *, mend: bool = False
) -> tuple[Pointed | None, Pointed]:
    """Move `promoted`, and undo that if the version was removed meanwhile."""
    before, after = store.move(Pointer.PROMOTED, where, mend=mend)
    assert after is not None
    try:
        store.manifest(after.version)
    except CheckpointError as gone:
        store.move_back(Pointer.PROMOTED, before, after)
        raise CheckpointError(
            f"version {after.version} was removed while it was promoted, which is undone: {gone}"
        ) from gone
    return before, after


def _passed_live(store: CheckpointStore, validation_root: Path, version: int) -> bool:
    """Whether a version is still stored and passes the live gate."""
    try:
        check_gate(validation_root, store.manifest(version), "live")
    except CheckpointError:
        return False
    return True
