"""Judgements as the validator service stores them: a report and its row in the database."""

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from shared.adapters.tables.validations import DATABASE, ValidationRow, ValidationScope, ValidationStore
from shared.adapters.versions.promotions import report_path
from shared.messages.schemas import ValidationReported

STANDARDS: dict[str, object] = {"gate": {"live_min_years": 3.0}, "environment": {"spread_pips": 4.0}}


def weights_sha256(weights: dict[str, npt.NDArray[np.generic]]) -> str:
    """SHA-256 of the weights, as in the manifest."""
    return hashlib.sha256(save(weights)).hexdigest()


def report_document(
    version: int,
    *passed: str,
    dataset: str,
    weights: dict[str, npt.NDArray[np.generic]],
    reasons: tuple[str, ...] = (),
) -> dict[str, object]:
    """The part of a service's report that promotion reads."""
    return {
        "schema_version": 2,
        "purpose": "service",
        "version": version,
        "dataset": dataset,
        "split": "validation",
        "weights_sha256": weights_sha256(weights),
        "first_bar_at": "2025-03-03T00:00:00+00:00",
        "standards": STANDARDS,
        "passed_gates": passed,
        "reasons": reasons,
    }


def keep_report(root: Path, document: dict[str, object], *, recorded: bool = True) -> None:
    """Write a report and, by default, record it as the service does."""
    root.mkdir(parents=True, exist_ok=True)
    version, dataset, split = document["version"], document["dataset"], document["split"]
    assert isinstance(version, int)
    text = json.dumps(document).encode()
    report_path(root, version).write_bytes(text)
    if not recorded:
        return
    records, scope = ValidationStore(root / DATABASE), ValidationScope(str(dataset), str(split))
    records.record_standards(scope, STANDARDS)
    row = row_of(scope, version, sha256=hashlib.sha256(text).hexdigest())
    records.record(row, np.array([1], np.int64), np.array([4.0]), announcement_of(version, scope))


def row_of(scope: ValidationScope, version: int, *, sha256: str = "ab" * 32) -> ValidationRow:
    """A row with example figures."""
    return ValidationRow(
        version=version,
        dataset=scope.dataset,
        split=scope.split,
        created_at="2024-03-08T21:58:00+00:00",
        num_sessions=3,
        num_trades=40,
        net_pips=4.0,
        expectancy_pips=0.1,
        win_rate=0.5,
        profit_factor=1.1,
        sqn=None,
        sqn100=None,
        sharpe=None,
        sortino=None,
        max_drawdown_pips=2.5,
        max_drawdown=0.01,
        safe_f=None,
        car25_percent=None,
        deflated_sharpe=None,
        overfitting=None,
        passed_gates="paper",
        seconds=1.5,
        report_sha256=sha256,
        instrument="EUR_USD",
        weights_sha256=hashlib.sha256(str(version).encode()).hexdigest(),
    )


def announcement_of(version: int, scope: ValidationScope) -> ValidationReported:
    """The announcement of a judgement with example figures."""
    return ValidationReported(
        version=version,
        split=scope.split,
        num_sessions=3,
        num_trades=40,
        expectancy_pips=0.1,
        sqn=None,
        net_pips=4.0,
        max_drawdown_pips=2.5,
        passed_gates=("paper",),
        reasons=("live: 0.10 years of data, needs 3",),
        seconds=1.5,
    )
