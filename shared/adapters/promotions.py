"""Which version decides in trading: promotion through a gate, and the way back.

The validator promotes to paper by itself; the gateway and the command line promote for a person. All of
them come through here, so that none can promote a version whose report did not pass the stage's gate.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.adapters.checkpoints import CheckpointStore, Pointed, Pointer, moved
from shared.errors import PromotionError
from shared.messages.schemas import VersionPromoted

Stage = Literal["paper", "live"]


class GateVerdict(BaseModel):
    """The part of a validation report that says which gates its version passed."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1]
    version: int = Field(ge=0)
    passed_gates: tuple[str, ...]
    reasons: tuple[str, ...] = ()


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
        verdict = GateVerdict.model_validate_json(report.read_bytes())
    except FileNotFoundError as missing:
        raise PromotionError(
            f"version {version} has no validation report; it must be validated before it is promoted"
        ) from missing
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
        replace_live: False keeps a version that trades live from being replaced by a paper promotion.
    Returns:
        The fact to announce on mm:promotions.
    Raises:
        PromotionError: the gate was not passed, or a live version would be replaced.
        CheckpointError: the version is missing or damaged.
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

    store.move(Pointer.PROMOTED, where)
    return VersionPromoted(version=version, stage=stage, by=by)


def roll_back(store: CheckpointStore, validation_root: Path, *, by: str) -> VersionPromoted:
    """Make the version decide that did before the promoted one.

    It trades live only if the promoted one did and its own report passed the live gate; else paper.

    Returns:
        The fact to announce on mm:promotions.
    Raises:
        PromotionError: nothing was promoted before.
        CheckpointError: the earlier version is missing or damaged.
    """

    def back(standing: Pointed | None) -> Pointed:
        if standing is None or not standing.history:
            raise PromotionError("no version was promoted before; there is nothing to roll back to")
        earlier = standing.history[-1]
        store.verify(earlier)
        live = standing.stage == "live" and _passed(validation_root, earlier, "live")
        return Pointed(earlier, "live" if live else "paper", standing.history[:-1])

    before, after = store.move(Pointer.PROMOTED, back)
    assert before is not None
    assert after is not None
    stage: Stage = "live" if after.stage == "live" else "paper"
    return VersionPromoted(version=after.version, stage=stage, by=by, rolled_back_from=before.version)


def _passed(validation_root: Path, version: int, stage: Stage) -> bool:
    try:
        check_gate(report_path(validation_root, version), version, stage)
    except PromotionError:
        return False
    return True
