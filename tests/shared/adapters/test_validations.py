"""Judgements, and which of them are still to be announced."""

import contextlib
from pathlib import Path

import duckdb
import numpy as np
import pytest

from shared.adapters.validations import Ground, ValidationRow, ValidationStore
from shared.errors import DataError
from shared.messages.schemas import ValidationReported

GROUND = Ground("5e" * 32, "validation")


def record(records: ValidationStore, version: int, ground: Ground = GROUND) -> ValidationReported:
    """What is still to be announced of a judgement."""
    announcement = ValidationReported(
        version=version,
        split=ground.split,
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
    row = ValidationRow(
        version=version,
        dataset=ground.dataset,
        split=ground.split,
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
    )
    records.record(row, np.array([1, 2], np.int64), np.array([0.5, 3.5]), announcement)
    return announcement


def sql(records: ValidationStore, statement: str) -> None:
    with contextlib.closing(duckdb.connect(str(records.path))) as connection:
        connection.execute(statement)


def test_a_judgement_is_untold_until_it_is_noted_as_told(tmp_path: Path) -> None:
    records, elsewhere = ValidationStore(tmp_path / "validations.duckdb"), Ground("ab" * 32, "validation")
    assert records.untold(GROUND) == []
    assert not records.path.exists()
    first, second = record(records, 1), record(records, 2)
    record(records, 2, elsewhere)
    assert records.untold(GROUND) == [first, second]
    records.told(GROUND, 1)
    assert records.untold(GROUND) == [second]
    records.told(GROUND, 2)
    assert records.untold(GROUND) == []
    assert len(records.untold(elsewhere)) == 1
    assert records.done(GROUND) == {1, 2}


def test_a_database_of_before_announcements_were_kept_is_gone_on_with(tmp_path: Path) -> None:
    records = ValidationStore(tmp_path / "validations.duckdb")
    record(records, 1)
    sql(records, "DROP TABLE untold")
    assert records.untold(GROUND) == []
    second = record(records, 2)
    assert records.untold(GROUND) == [second]
    assert records.done(GROUND) == {1, 2}


def test_an_announcement_of_another_schema_is_named(tmp_path: Path) -> None:
    records = ValidationStore(tmp_path / "validations.duckdb")
    record(records, 7)
    sql(records, "UPDATE untold SET announcement = '{}'")
    with pytest.raises(DataError, match=r"validations\.duckdb: the announcement of version 7 is of another"):
        records.untold(GROUND)
