"""Promotion through a gate, and roll-back."""

import json
import shutil
from pathlib import Path

import pytest

from shared.adapters.tables.validations import DATABASE
from shared.adapters.versions import promotions
from shared.adapters.versions.manifest import Pointed, Pointer
from shared.adapters.versions.promotions import GatedStage, promote, report_path, roll_back, serve_unproven
from shared.adapters.versions.store import CheckpointStore
from shared.errors import CheckpointError, PromotionError
from tests.services.api.conftest import report_of, save_version, write_report
from tests.shared.adapters.judgements import STANDARDS, keep_report
from tests.shared.adapters.versions.checkpoint_versions import folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions and reports, written once and copied for each test."""
    home = tmp_path_factory.mktemp("made")
    store, reports = CheckpointStore(home / "checkpoints"), home / "validations"
    for version in range(4):
        save_version(store, version)
    write_report(reports, 1, "paper")
    write_report(reports, 2, "paper", "live")
    write_report(reports, 3, reasons=("paper: 4 trades, needs 30", "live: no edge"))
    return home


@pytest.fixture
def store(made: Path, tmp_path: Path) -> CheckpointStore:
    shutil.copytree(made / "checkpoints", tmp_path / "checkpoints")
    return CheckpointStore(tmp_path / "checkpoints")


@pytest.fixture
def reports(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "validations", tmp_path / "validations")
    return tmp_path / "validations"


def promoted(store: CheckpointStore) -> tuple[int, str | None] | None:
    pointed = store.pointer(Pointer.PROMOTED)
    return (pointed.version, pointed.stage) if pointed else None


def test_a_version_that_passed_the_gate_is_promoted(store: CheckpointStore, reports: Path) -> None:
    fact = promote(store, reports, 1, "paper", by="test")
    assert (fact.version, fact.stage, fact.by, fact.rolled_back_from) == (1, "paper", "test", None)
    assert promoted(store) == (1, "paper")


@pytest.mark.parametrize(
    ("version", "stage", "says"),
    [
        (0, "paper", "no validation report"),
        (1, "live", "did not pass the live gate"),
        (3, "paper", "gate: paper: 4 trades, needs 30$"),
        (3, "live", "gate: paper: 4 trades, needs 30; live: no edge$"),
    ],
)
def test_a_version_that_did_not_pass_is_refused_with_the_reason(
    store: CheckpointStore, reports: Path, version: int, stage: str, says: str
) -> None:
    with pytest.raises(PromotionError, match=says):
        promote(store, reports, version, stage, by="test")  # type: ignore[arg-type]
    assert promoted(store) is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "Invalid JSON"),
        ("{}", "Field required"),
        ("[]", "Input should be an object"),
        (json.dumps({"schema_version": 1, "version": 0, "passed_gates": ["paper"]}), "schema_version"),
        (json.dumps({**report_of(0, "paper"), "schema_version": 3}), "schema_version"),
        (json.dumps({**report_of(0), "passed_gates": None}), "passed_gates"),
        (json.dumps(report_of(1, "paper")), r"0\.json is the report of version 1, not 0"),
    ],
)
def test_an_invalid_report_does_not_promote(
    store: CheckpointStore, reports: Path, content: str, says: str
) -> None:
    report_path(reports, 0).write_text(content)
    with pytest.raises(PromotionError, match=says):
        promote(store, reports, 0, "paper", by="test")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"purpose": "on-demand"}, "made on demand; only the validator service's own judgement promotes"),
        ({"split": "train"}, "judges the train split, expected the validation split"),
        ({"split": "test"}, "judges the test split, expected the validation split"),
        ({"dataset": "00" * 32}, "on data set 000000000000…, the version was trained on abababababab…"),
        ({"weights_sha256": "00" * 32}, "judges other weights than the store holds"),
        (
            {"first_bar_at": "2025-03-02T00:00:00+00:00"},
            "trained on bars up to 2025-03-02 00:00 UTC, the sessions judged begin at 2025-03-02 00:00 UTC",
        ),
        (
            {"standards": {**STANDARDS, "gate": {"live_min_years": 0.0}}},
            r"by other settings than the validator's: gate\.live_min_years was 0\.0, is 3\.0",
        ),
        (
            {"standards": {"environment": {"spread_pips": 0.0}, "gate": STANDARDS["gate"]}},
            r"environment\.spread_pips was 0\.0, is 4\.0",
        ),
        ({"standards": {"gate": STANDARDS["gate"]}}, "environment was None"),
    ],
)
def test_a_report_with_one_wrong_property_does_not_promote(
    store: CheckpointStore, reports: Path, changed: dict[str, object], says: str
) -> None:
    """Each is a complete report of this version, recorded with its hash, except for one property."""
    keep_report(reports, {**report_of(1, "paper", "live"), **changed})
    for stage in ("paper", "live"):
        with pytest.raises(PromotionError, match=says):
            promote(store, reports, 1, stage, by="test")
    assert promoted(store) is None


@pytest.mark.parametrize("recorded_before", [True, False])
def test_an_unrecorded_report_does_not_promote(
    store: CheckpointStore, tmp_path: Path, recorded_before: bool
) -> None:
    """An edited report, and a forged one."""
    reports = tmp_path / "validations"
    if recorded_before:
        write_report(reports, 1)
    keep_report(reports, report_of(1, "paper", "live"), recorded=False)
    says = "its SHA-256 differs" if recorded_before else "has no record of it"
    for stage in ("paper", "live"):
        with pytest.raises(PromotionError, match=says):
            promote(store, reports, 1, stage, by="test")
    assert serve_unproven_says(store, reports, 1) == says
    assert promoted(store) is None


def serve_unproven_says(store: CheckpointStore, reports: Path, version: int) -> str:
    with pytest.raises(PromotionError) as refused:
        serve_unproven(store, reports, version, by="test")
    return next(text for text in ("its SHA-256 differs", "has no record of it") if text in str(refused.value))


def test_a_report_copied_from_another_version_or_home_does_not_promote(
    store: CheckpointStore, reports: Path, tmp_path: Path
) -> None:
    shutil.copy(report_path(reports, 2), report_path(reports, 0))
    with pytest.raises(PromotionError, match="is the report of version 2"):
        promote(store, reports, 0, "live", by="test")
    elsewhere = tmp_path / "elsewhere"
    write_report(elsewhere, 3, reasons=("paper: 4 trades, needs 30",))
    shutil.copy(report_path(reports, 2), report_path(elsewhere, 2))
    with pytest.raises(PromotionError, match="has no record of it"):
        promote(store, elsewhere, 2, "live", by="test")


def test_an_unreadable_record_does_not_promote(store: CheckpointStore, reports: Path) -> None:
    (reports / DATABASE).write_bytes(b"no database")
    with pytest.raises(PromotionError, match=r"record cannot be read: .*validations\.duckdb"):
        promote(store, reports, 1, "paper", by="test")


def test_a_version_is_served_unproven_only_if_none_is_promoted(store: CheckpointStore, reports: Path) -> None:
    fact = serve_unproven(store, reports, 3, by="test")
    assert fact is not None
    assert (fact.version, fact.stage, promoted(store)) == (3, "unproven", (3, "unproven"))
    again = serve_unproven(store, reports, 3, by="test")  # may be announced again
    assert again is not None
    assert again.version == 3
    assert serve_unproven(store, reports, 1, by="test") is None
    promote(store, reports, 1, "paper", by="test")
    assert serve_unproven(store, reports, 3, by="test") is None
    assert promoted(store) == (1, "paper")
    back = roll_back(store, reports, by="test").promotion
    assert (back.version, back.stage, promoted(store)) == (3, "unproven", (3, "unproven"))


def test_no_version_is_served_unproven_while_the_pointer_is_damaged(
    store: CheckpointStore, reports: Path
) -> None:
    assert store.root is not None
    (store.root / "promoted.json").write_text("{")
    assert serve_unproven(store, reports, 3, by="test") is None
    assert (store.root / "promoted.json").read_text() == "{"


def test_a_pointer_without_a_stage_means_paper(store: CheckpointStore, reports: Path) -> None:
    """Older releases did not keep the stage."""
    store.point(Pointer.PROMOTED, 1)
    promote(store, reports, 2, "paper", by="test")
    assert roll_back(store, reports, by="test").promotion.stage == "paper"
    assert promoted(store) == (1, "paper")


def test_a_damaged_version_is_refused(store: CheckpointStore, reports: Path) -> None:
    (folder(store, 1) / "training.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="bytes, the manifest says"):
        promote(store, reports, 1, "paper", by="test")
    assert promoted(store) is None


def test_an_automatic_paper_promotion_does_not_replace_a_live_version(
    store: CheckpointStore, reports: Path
) -> None:
    promote(store, reports, 2, "live", by="test")
    with pytest.raises(PromotionError, match="promoted live"):
        promote(store, reports, 1, "paper", by="validator", replace_live=False)
    assert promoted(store) == (2, "live")
    promote(store, reports, 1, "paper", by="a person")
    assert promoted(store) == (1, "paper")


def test_a_report_that_is_a_link_or_too_large_does_not_promote(
    store: CheckpointStore, reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = report_path(reports, 1)
    monkeypatch.setattr(promotions, "MAX_REPORT_BYTES", 10)
    with pytest.raises(PromotionError, match=r"1\.json: \d+ bytes, expected at most 10"):
        promote(store, reports, 1, "paper", by="test")
    monkeypatch.undo()
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(
        PromotionError, match=r"1\.json: a symbolic link, which is not followed; restart the validator"
    ):
        promote(store, reports, 1, "paper", by="test")


def test_only_a_person_may_replace_a_damaged_pointer(store: CheckpointStore, reports: Path) -> None:
    """It may have named a live version."""
    promote(store, reports, 2, "live", by="test")
    assert store.root is not None
    (store.root / "promoted.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"damaged pointer: .*; promoting a version sets it"):
        promote(store, reports, 1, "paper", by="validator", replace_live=False)
    with pytest.raises(CheckpointError, match="damaged pointer"):
        roll_back(store, reports, by="a person")
    promote(store, reports, 1, "paper", by="a person")
    assert store.pointer(Pointer.PROMOTED) == Pointed(1, "paper", ())


@pytest.mark.parametrize("before", [None, 2])
def test_a_promotion_is_undone_if_the_version_is_removed_meanwhile(
    store: CheckpointStore, reports: Path, monkeypatch: pytest.MonkeyPatch, before: int | None
) -> None:
    if before is not None:
        promote(store, reports, before, "live", by="test")
    pointed, move = store.pointer(Pointer.PROMOTED), store.move

    def collect_first(*arguments: object, **options: object) -> object:
        CheckpointStore(store.name).collect_garbage(keep=1)
        return move(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "move", collect_first)
    with pytest.raises(
        CheckpointError, match="version 1 was removed while it was promoted; the promotion is"
    ):
        promote(store, reports, 1, "paper", by="test")
    assert store.pointer(Pointer.PROMOTED) == pointed


def test_a_roll_back_never_makes_a_version_live_that_did_not_pass_live(
    store: CheckpointStore, reports: Path
) -> None:
    promote(store, reports, 1, "paper", by="test")
    promote(store, reports, 2, "live", by="test")
    fact = roll_back(store, reports, by="test").promotion
    assert (fact.version, fact.stage, fact.rolled_back_from) == (1, "paper", 2)
    assert promoted(store) == (1, "paper")


def test_a_roll_back_from_live_to_an_earlier_live_version_stays_live(
    store: CheckpointStore, reports: Path
) -> None:
    write_report(reports, 1, "paper", "live")
    promote(store, reports, 1, "live", by="test")
    promote(store, reports, 2, "live", by="test")
    assert roll_back(store, reports, by="test").promotion.stage == "live"
    assert promoted(store) == (1, "live")


def test_a_roll_back_needs_an_earlier_promotion(store: CheckpointStore, reports: Path) -> None:
    with pytest.raises(PromotionError, match="nothing to roll back"):
        roll_back(store, reports, by="test")
    promote(store, reports, 1, "paper", by="test")
    with pytest.raises(PromotionError, match="nothing to roll back to"):
        roll_back(store, reports, by="test")


ROLL_BACKS: list[tuple[list[tuple[int, GatedStage]], list[tuple[int, GatedStage]]]] = [
    ([(2, "paper"), (2, "live")], [(2, "paper")]),
    ([(1, "paper"), (2, "paper"), (2, "live")], [(2, "paper"), (1, "paper")]),
    ([(2, "live"), (2, "paper")], []),
    ([(2, "live"), (2, "paper"), (2, "live")], [(2, "paper")]),
    ([(2, "paper"), (1, "live")], [(2, "paper")]),  # version 2 passed live, but was only promoted to paper
    ([(1, "live"), (2, "live"), (2, "paper"), (2, "live")], [(2, "paper"), (1, "paper")]),
    ([(1, "live"), (2, "live"), (1, "live")], [(2, "live"), (1, "live")]),
]


@pytest.mark.parametrize(("acts", "back"), ROLL_BACKS)
def test_each_roll_back_changes_version_or_stage_and_none_promotes_to_live(
    store: CheckpointStore,
    reports: Path,
    acts: list[tuple[int, GatedStage]],
    back: list[tuple[int, GatedStage]],
) -> None:
    write_report(reports, 1, "paper", "live")
    for version, stage in acts:
        promote(store, reports, version, stage, by="test")
    for expected in back:
        fact = roll_back(store, reports, by="test").promotion
        assert (fact.version, fact.stage) == expected == promoted(store)
    with pytest.raises(PromotionError, match="nothing to roll back to"):
        roll_back(store, reports, by="test")


def test_missing_and_damaged_versions_are_passed_over_and_reported(
    store: CheckpointStore, reports: Path
) -> None:
    for version in range(4):
        write_report(reports, version, "paper")
        promote(store, reports, version, "paper", by="test")
    assert store.collect_garbage(keep=1).removed == (0, 1)
    first = roll_back(store, reports, by="test")
    assert (first.promotion.version, first.passed_over) == (2, ())
    with pytest.raises(
        CheckpointError, match=r"no version promoted before is intact: no version 1 .*version 0"
    ):
        roll_back(store, reports, by="test")
    assert promoted(store) == (2, "paper")
    save_version(store, 0)
    second = roll_back(store, reports, by="test")
    assert (second.promotion.version, second.promotion.rolled_back_from) == (0, 2)
    assert len(second.passed_over) == 1
    assert "no version 1" in second.passed_over[0]
