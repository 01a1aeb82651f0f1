"""Judgements, and which of them are still to be announced."""

import contextlib
import subprocess
import sys
import threading
from pathlib import Path

import duckdb
import numpy as np
import pytest

from shared.adapters import validations
from shared.adapters.validations import Ground, Record, ValidationStore
from shared.errors import DataError
from shared.messages.schemas import ValidationReported
from tests.shared.adapters.judgements import announcement_of, row_of

GROUND = Ground("5e" * 32, "validation")


def record(records: ValidationStore, version: int, ground: Ground = GROUND) -> ValidationReported:
    """What is still to be announced of a judgement."""
    announcement = announcement_of(version, ground)
    records.record(row_of(ground, version), np.array([1, 2], np.int64), np.array([0.5, 3.5]), announcement)
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


def test_a_record_holds_the_reports_hash_and_the_standing_settings(tmp_path: Path) -> None:
    records = ValidationStore(tmp_path / "validations.duckdb")
    assert records.recorded(GROUND, 1) is None
    record(records, 1)
    assert records.recorded(GROUND, 1) == Record("ab" * 32, None)
    for years in (3.0, 2.0):
        records.stand(GROUND, {"gate": {"live_min_years": years}})
    assert records.recorded(GROUND, 1) == Record("ab" * 32, {"gate": {"live_min_years": 2.0}})
    assert records.recorded(Ground("ab" * 32, "validation"), 1) is None
    assert records.judged(GROUND) == {1}


def test_a_database_of_an_earlier_release_has_judgements_without_hashes(tmp_path: Path) -> None:
    records = ValidationStore(tmp_path / "validations.duckdb")
    record(records, 1)
    sql(records, "ALTER TABLE validations DROP COLUMN report_sha256")
    sql(records, "DROP TABLE standing")
    with pytest.raises(DataError, match="standing"):
        records.recorded(GROUND, 1)  # nobody may write while another release's validator runs
    records.stand(GROUND, {})
    assert records.recorded(GROUND, 1) == Record(None, {})
    record(records, 2)
    assert records.recorded(GROUND, 2) == Record("ab" * 32, {})


HOLDER = """
import sys, duckdb
with duckdb.connect(sys.argv[1]) as held:
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_file_that_another_process_has_open_is_waited_for(tmp_path: Path) -> None:
    records = ValidationStore(tmp_path / "validations.duckdb")
    record(records, 1)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(records.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(duckdb.IOException, match="lock"):
            duckdb.connect(str(records.path), read_only=True)
        letting_go = threading.Timer(0.3, holder.stdin.close)
        letting_go.start()
        assert records.judged(GROUND) == {1}
        letting_go.join()
    record(records, 2)
    assert records.judged(GROUND) == {1, 2}


def test_a_file_that_is_never_let_go_is_an_error_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = ValidationStore(tmp_path / "validations.duckdb")
    record(records, 1)
    monkeypatch.setattr(validations, "LOCK_SECONDS", 0.1)
    with (
        contextlib.closing(duckdb.connect(str(records.path))),
        pytest.raises(DataError, match=r"validations\.duckdb"),
    ):
        records.judged(GROUND)
