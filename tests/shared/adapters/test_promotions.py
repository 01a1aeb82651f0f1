"""Promotion through a gate, and the way back."""

import json
from pathlib import Path

import pytest

from shared.adapters.checkpoints import CheckpointStore, Pointer
from shared.adapters.promotions import check_gate, promote, report_path, roll_back
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


def test_rolling_back_a_live_version_never_makes_an_unfit_one_live(
    store: CheckpointStore, reports: Path
) -> None:
    promote(store, reports, 1, "paper", by="test")
    promote(store, reports, 2, "live", by="test")
    fact = roll_back(store, reports, by="test")
    assert (fact.version, fact.stage, fact.rolled_back_from) == (1, "paper", 2)
    assert promoted(store) == (1, "paper")


def test_rolling_back_from_live_to_one_that_passed_live_stays_live(
    store: CheckpointStore, reports: Path
) -> None:
    write_report(reports, 1, "paper", "live")
    promote(store, reports, 1, "live", by="test")
    promote(store, reports, 2, "live", by="test")
    assert roll_back(store, reports, by="test").stage == "live"


def test_there_must_be_something_to_roll_back_to(store: CheckpointStore, reports: Path) -> None:
    with pytest.raises(PromotionError, match="nothing to roll back"):
        roll_back(store, reports, by="test")
    promote(store, reports, 1, "paper", by="test")
    with pytest.raises(PromotionError, match="nothing to roll back"):
        roll_back(store, reports, by="test")
