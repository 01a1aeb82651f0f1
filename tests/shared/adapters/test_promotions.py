"""Promotion through a gate, and the way back."""

import json
from pathlib import Path

import pytest

from shared.adapters import promotions
from shared.adapters.checkpoints import CheckpointStore, Pointed, Pointer
from shared.adapters.promotions import Stage, check_gate, promote, report_path, roll_back
from shared.errors import CheckpointError, PromotionError
from tests.services.api.conftest import save_version, write_report
from tests.shared.adapters.checkpoint_versions import folder


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "checkpoints")
    for version in range(4):
        save_version(store, version)
    return store


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    folder = tmp_path / "validations"
    write_report(folder, 1, "paper")
    write_report(folder, 2, "paper", "live")
    write_report(folder, 3, reasons=("paper: 4 trades, needs 30",))
    return folder


def promoted(store: CheckpointStore) -> tuple[int, str | None] | None:
    pointed = store.pointer(Pointer.PROMOTED)
    return (pointed.version, pointed.stage) if pointed else None


def test_a_version_that_passed_is_promoted(store: CheckpointStore, reports: Path) -> None:
    fact = promote(store, reports, 1, "paper", by="test")
    assert (fact.version, fact.stage, fact.by, fact.rolled_back_from) == (1, "paper", "test", None)
    assert promoted(store) == (1, "paper")


@pytest.mark.parametrize(
    ("version", "stage", "says"),
    [
        (0, "paper", "no validation report"),
        (1, "live", "did not pass the live gate"),
        (3, "paper", "needs 30"),
    ],
)
def test_one_that_did_not_is_refused_with_the_reason(
    store: CheckpointStore, reports: Path, version: int, stage: str, says: str
) -> None:
    with pytest.raises(PromotionError, match=says):
        promote(store, reports, version, stage, by="test")  # type: ignore[arg-type]
    assert promoted(store) is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        json.dumps({"schema_version": 2, "version": 0, "passed_gates": ["paper"]}),
        json.dumps({"schema_version": 1, "version": 0}),
        json.dumps({"schema_version": 1, "version": 1, "passed_gates": ["paper"]}),
    ],
)
def test_a_report_that_is_not_this_versions_proves_nothing(reports: Path, content: str) -> None:
    path = report_path(reports, 0)
    path.write_text(content)
    with pytest.raises(PromotionError):
        check_gate(path, 0, "paper")


def test_a_damaged_version_is_refused(store: CheckpointStore, reports: Path) -> None:
    (folder(store, 1) / "training.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="bytes, the manifest says"):
        promote(store, reports, 1, "paper", by="test")
    assert promoted(store) is None


def test_an_automatic_paper_promotion_leaves_a_live_version(store: CheckpointStore, reports: Path) -> None:
    promote(store, reports, 2, "live", by="test")
    with pytest.raises(PromotionError, match="promoted live"):
        promote(store, reports, 1, "paper", by="validator", replace_live=False)
    assert promoted(store) == (2, "live")
    promote(store, reports, 1, "paper", by="a person")
    assert promoted(store) == (1, "paper")


def test_a_report_that_is_a_link_or_too_large_proves_nothing(
    store: CheckpointStore, reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = report_path(reports, 1)
    monkeypatch.setattr(promotions, "MAX_REPORT_BYTES", 10)
    with pytest.raises(PromotionError, match=r"1\.json: \d+ bytes, at most 10 are expected"):
        promote(store, reports, 1, "paper", by="test")
    monkeypatch.undo()
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(PromotionError, match=r"1\.json: a link, which is not followed; validate it again"):
        promote(store, reports, 1, "paper", by="test")


def test_a_person_replaces_a_damaged_pointer_and_the_validator_does_not(
    store: CheckpointStore, reports: Path
) -> None:
    """It may have named a version that trades live."""
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
def test_a_promotion_of_a_version_that_is_removed_meanwhile_is_undone(
    store: CheckpointStore, reports: Path, monkeypatch: pytest.MonkeyPatch, before: int | None
) -> None:
    if before is not None:
        promote(store, reports, before, "live", by="test")
    standing, move = store.pointer(Pointer.PROMOTED), store.move

    def collect_first(*arguments: object, **options: object) -> object:
        CheckpointStore(store.name).collect_garbage(keep=1)
        return move(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "move", collect_first)
    with pytest.raises(CheckpointError, match="version 1 was removed while it was promoted, which is undone"):
        promote(store, reports, 1, "paper", by="test")
    assert store.pointer(Pointer.PROMOTED) == standing


def test_rolling_back_a_live_version_never_makes_an_unfit_one_live(
    store: CheckpointStore, reports: Path
) -> None:
    promote(store, reports, 1, "paper", by="test")
    promote(store, reports, 2, "live", by="test")
    fact = roll_back(store, reports, by="test").promotion
    assert (fact.version, fact.stage, fact.rolled_back_from) == (1, "paper", 2)
    assert promoted(store) == (1, "paper")


def test_rolling_back_from_live_to_one_that_passed_live_stays_live(
    store: CheckpointStore, reports: Path
) -> None:
    write_report(reports, 1, "paper", "live")
    promote(store, reports, 1, "live", by="test")
    promote(store, reports, 2, "live", by="test")
    assert roll_back(store, reports, by="test").promotion.stage == "live"
    assert promoted(store) == (1, "live")


def test_there_must_be_something_to_roll_back_to(store: CheckpointStore, reports: Path) -> None:
    with pytest.raises(PromotionError, match="nothing to roll back"):
        roll_back(store, reports, by="test")
    promote(store, reports, 1, "paper", by="test")
    with pytest.raises(PromotionError, match="nothing to roll back to"):
        roll_back(store, reports, by="test")


ROLL_BACKS: list[tuple[list[tuple[int, Stage]], list[tuple[int, Stage]]]] = [
    ([(2, "paper"), (2, "live")], [(2, "paper")]),
    ([(1, "paper"), (2, "paper"), (2, "live")], [(2, "paper"), (1, "paper")]),
    ([(2, "live"), (2, "paper")], []),
    ([(2, "live"), (2, "paper"), (2, "live")], [(2, "paper")]),
    ([(2, "paper"), (1, "live")], [(2, "paper")]),  # it passed live, but only ever traded on paper
    ([(1, "live"), (2, "live"), (2, "paper"), (2, "live")], [(2, "paper"), (1, "paper")]),
    ([(1, "live"), (2, "live"), (1, "live")], [(2, "live"), (1, "live")]),
]


@pytest.mark.parametrize(("acts", "back"), ROLL_BACKS)
def test_each_rollback_changes_what_trades_and_none_makes_anything_live(
    store: CheckpointStore,
    reports: Path,
    acts: list[tuple[int, Stage]],
    back: list[tuple[int, Stage]],
) -> None:
    write_report(reports, 1, "paper", "live")
    for version, stage in acts:
        promote(store, reports, version, stage, by="test")
    for expected in back:
        fact = roll_back(store, reports, by="test").promotion
        assert (fact.version, fact.stage) == expected == promoted(store)
    with pytest.raises(PromotionError, match="nothing to roll back to"):
        roll_back(store, reports, by="test")


def test_what_is_gone_or_damaged_is_passed_over_and_told(store: CheckpointStore, reports: Path) -> None:
    for version in range(4):
        write_report(reports, version, "paper")
        promote(store, reports, version, "paper", by="test")
    assert store.collect_garbage(keep=1).removed == (0, 1)
    first = roll_back(store, reports, by="test")
    assert (first.promotion.version, first.passed_over) == (2, ())
    with pytest.raises(
        CheckpointError, match=r"no version promoted before is whole: no version 1 .*version 0"
    ):
        roll_back(store, reports, by="test")
    assert promoted(store) == (2, "paper")
    save_version(store, 0)
    second = roll_back(store, reports, by="test")
    assert (second.promotion.version, second.promotion.rolled_back_from) == (0, 2)
    assert len(second.passed_over) == 1
    assert "no version 1" in second.passed_over[0]
