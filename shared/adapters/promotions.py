"""Which version decides in trading: promotion through a gate, and the way back.

The validator promotes to paper by itself; the gateway and the command line promote for a person. All of
them come through here, so that none can promote a version whose report did not pass the stage's gate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.adapters.checkpoints import CheckpointStore, Pointed, Pointer, moved
from shared.adapters.files import read_beneath
from shared.errors import CheckpointError, PromotionError
from shared.messages.schemas import VersionPromoted

Stage = Literal["paper", "live"]

#: A report of 3.6 years is some megabytes.
MAX_REPORT_BYTES = 64_000_000


class GateVerdict(BaseModel):
    """The part of a validation report that says which gates its version passed."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1]
    version: int = Field(ge=0)
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


def check_gate(report: Path, version: int, stage: Stage) -> GateVerdict:
    """What the report says of a version that passed a stage's gate.

    Raises:
        PromotionError: no report, one that cannot be read or is another version's, or the gate was not
            passed; the text names the report's reasons.
    """
    try:
        document = read_beneath(report.parent, report.name, limit=MAX_REPORT_BYTES)
        verdict = GateVerdict.model_validate_json(document)
    except FileNotFoundError as missing:
        raise PromotionError(
            f"version {version} has no validation report in {report.parent}; "
            "it must be validated before it is promoted"
        ) from missing
    except OSError as unreadable:
        raise PromotionError(
            f"validation report of version {version}: {report}: {unreadable.strerror}; validate it again"
        ) from unreadable
    except ValidationError as invalid:
        wrong = invalid.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in wrong["loc"]) or "document"
        raise PromotionError(
            f"validation report of version {version}: {where}: {wrong['msg']}; validate it again"
        ) from invalid
    if verdict.version != version:
        raise PromotionError(f"{report.name} is the report of version {verdict.version}, not {version}")
    if stage not in verdict.passed_gates:
        why = "; ".join(verdict.reasons) or "the report names no reason"
        raise PromotionError(f"version {version} did not pass the {stage} gate: {why}")
    return verdict


def promote(
    store: CheckpointStore,
    validation_root: Path,
    version: int,
    stage: Stage,
    *,
    by: str,
    replace_live: bool = True,
) -> VersionPromoted:
    """Make a version the one that decides, if its files are whole and its report passed the gate.

    A version that already stands promoted to the stage stays; the returned fact may be announced again.

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
    store.verify(version)
    check_gate(report_path(validation_root, version), version, stage)

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


def roll_back(store: CheckpointStore, validation_root: Path, *, by: str) -> RolledBack:
    """Make the version decide that did before the promoted one, or the newest before it that is still whole.

    It trades live only if the promoted one does, it did itself when it was promoted, and its report passed
    the live gate; else on paper. So a version that went from paper to live goes back to paper.

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
            live = stage == standing.stage == "live" and _passed(validation_root, version)
            to = Pointed(version, "live" if live else "paper", standing.history[:place])
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
    stage: Stage = "live" if after.stage == "live" else "paper"
    promotion = VersionPromoted(version=after.version, stage=stage, by=by, rolled_back_from=before.version)
    return RolledBack(promotion, tuple(passed_over.values()))


def _move(
    store: CheckpointStore, where: Callable[[Pointed | None], Pointed | None], *, mend: bool = False
) -> tuple[Pointed | None, Pointed]:
    """Move `promoted`, and back again where the version that it came to stand for was removed meanwhile."""
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


def _passed(validation_root: Path, version: int) -> bool:
    """Whether a version's report passed the live gate."""
    try:
        check_gate(report_path(validation_root, version), version, "live")
    except PromotionError:
        return False
    return True
