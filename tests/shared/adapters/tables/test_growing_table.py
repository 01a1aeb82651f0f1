"""The growing table, read with DuckDB, which shares no code with the writer."""

import contextlib
import errno
import math
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from shared.adapters.files import write_atomically
from shared.adapters.tables import growing_table
from shared.adapters.tables.growing_table import COUNT, FIGURE, FLAG, TEXT, TIMESTAMP, GrowingTable
from shared.errors import DataError
from tests.conftest import ROOT

COLUMNS = {"step": COUNT, "loss": FIGURE}


def rows(folder: Path, query: str = "select step, loss from parts order by step") -> list[tuple[Any, ...]]:
    """Rows that a reader finds."""
    parts = f"read_parquet('{folder}/steps-*.parquet')"
    with contextlib.closing(duckdb.connect()) as connection:
        return connection.execute(query.replace("parts", parts)).fetchall()


def table(folder: Path, last: int = 0) -> GrowingTable:
    return GrowingTable(folder, "steps", COLUMNS, last=last)


def fill(growing: GrowingTable, first: int, last: int, *, every: int = 100) -> None:
    for step in range(first, last + 1):
        growing.add({"step": step, "loss": step / 4.0})
        if step % every == 0:
            growing.write()
    growing.write()


def expected(last: int) -> list[tuple[int, float]]:
    return [(step, step / 4.0) for step in range(1, last + 1)]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_added_rows_are_read_back(tmp_path: Path) -> None:
    moment = datetime(2024, 3, 8, 21, 58, 1, 250_000, tzinfo=UTC)
    kinds = {"step": COUNT, "loss": FIGURE, "who": TEXT, "ok": FLAG, "time": TIMESTAMP}
    growing = GrowingTable(tmp_path, "steps", kinds, last=0)
    growing.add({"step": 7, "loss": 0.1, "who": "ä", "ok": True, "time": moment})
    growing.add({"step": 9, "loss": math.nan, "who": None, "ok": False, "time": None})
    growing.add({"step": 10, "loss": math.inf, "who": "", "ok": None, "time": moment})
    assert files(tmp_path) == []
    growing.write()
    assert rows(tmp_path, "select step, loss, who, ok, epoch_us(time) from parts order by step") == [
        (7, 0.1, "ä", True, 1_709_935_081_250_000),
        (9, None, None, False, None),
        (10, None, "", None, 1_709_935_081_250_000),
    ]


def test_small_parts_are_compacted_and_full_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing_table, "PART_ROWS", 30)
    monkeypatch.setattr(growing_table, "COMPACT_EVERY_WRITES", 5)
    growing = table(tmp_path)
    most = 0
    for first in range(1, 101, 4):
        fill(growing, first, first + 3)
        assert rows(tmp_path) == expected(first + 3)
        most = max(most, len(files(tmp_path)))
    assert most <= 100 // 30 + 5 + 1
    spans = [name[len("steps-") : -len(".parquet")].split("-") for name in files(tmp_path)]
    assert [int(last) - int(first) + 1 for first, last in spans] == [32, 32, 32, 4]


@pytest.mark.parametrize("last", [0, 1, 7, 8, 9, 23, 24, 99])
@pytest.mark.parametrize("every", [1, 3, 8, 24])
def test_resuming_after_any_row_gives_every_row_once(tmp_path: Path, last: int, every: int) -> None:
    fill(table(tmp_path), 1, 24, every=every)
    again = table(tmp_path, last)
    kept = min(last, 24)
    if kept:
        assert rows(tmp_path) == expected(kept)
    else:
        assert files(tmp_path) == []
    again.add({"step": last + 1, "loss": -1.0})
    again.write()
    assert rows(tmp_path) == [*expected(kept), (last + 1, -1.0)]


def test_leftovers_of_killed_processes_are_cleaned_up(tmp_path: Path) -> None:
    def copy_of(last: int, every: int) -> None:
        """Add parts to those in the folder."""
        other = tmp_path / "other"
        other.mkdir()
        fill(table(other), 1, last, every=every)
        for path in other.iterdir():
            path.replace(tmp_path / path.name)
        other.rmdir()

    copy_of(24, 8)  # three parts, which were compacted but not deleted
    copy_of(24, 24)  # the compacted part, which was cut to 20 rows but not deleted
    copy_of(20, 20)  # the part with 20 rows
    assert len(files(tmp_path)) == 5
    table(tmp_path, 20)
    assert files(tmp_path) == ["steps-000000000001-000000000020.parquet"]
    assert rows(tmp_path) == expected(20)


def test_a_new_column_is_null_in_older_rows(tmp_path: Path) -> None:
    fill(table(tmp_path), 1, 3)
    wider = GrowingTable(tmp_path, "steps", {**COLUMNS, "more": FIGURE}, last=3)
    wider.add({"step": 4, "loss": 1.0, "more": 0.5})
    wider.write()
    GrowingTable(tmp_path, "steps", {**COLUMNS, "more": FIGURE}, last=4)  # opening compacts
    assert len(files(tmp_path)) == 1
    assert rows(tmp_path, "select step, more from parts order by step") == [
        (1, None),
        (2, None),
        (3, None),
        (4, 0.5),
    ]


def test_a_row_with_a_wrong_key_or_wrong_columns_is_refused(tmp_path: Path) -> None:
    growing = table(tmp_path)
    fill(growing, 1, 3)
    with pytest.raises(ValueError, match="steps: step 3 after 3, expected a larger key"):
        growing.add({"step": 3, "loss": 0.0})
    with pytest.raises(ValueError, match=r"columns \['lost', 'step'\], expected \['loss', 'step'\]"):
        growing.add({"step": 4, "lost": 0.0})
    growing.write()
    assert rows(tmp_path) == expected(3)


def test_rows_wait_for_a_full_disk_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing_table, "MAX_WAITING_ROWS", 20)

    growing = table(tmp_path)
    fill(growing, 1, 5)
    monkeypatch.setattr(growing_table, "write_atomically", full)
    for step in range(6, 31):
        growing.add({"step": step, "loss": 0.0})
    with pytest.raises(OSError, match="No space left"):
        growing.write()
    assert growing.num_lost == 5
    monkeypatch.undo()
    growing.write()
    fill(growing, 31, 32)
    assert [step for step, _ in rows(tmp_path)] == [*range(1, 26), 31, 32]


def full(path: Path, data: bytes) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_compaction_that_fails_at_the_start_is_repeated_after_a_later_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(table(tmp_path), 1, 24, every=8)
    before = files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(growing_table, "write_atomically", full)
        growing = table(tmp_path, 24)
        assert files(tmp_path) == before
        growing.add({"step": 25, "loss": 25 / 4.0})
        with pytest.raises(OSError, match="No space left"):
            growing.write()
    monkeypatch.setattr(growing_table, "COMPACT_EVERY_WRITES", 1)
    growing.write()
    assert files(tmp_path) == ["steps-000000000001-000000000025.parquet"]
    assert rows(tmp_path) == expected(25)


def test_a_failed_compaction_loses_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing_table, "COMPACT_EVERY_WRITES", 2)
    growing = table(tmp_path)
    fill(growing, 1, 8)

    def full_for_compaction(path: Path, data: bytes) -> None:
        if path.name == "steps-000000000001-000000000016.parquet":
            full(path, data)
        write_atomically(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(growing_table, "write_atomically", full_for_compaction)
        fill(growing, 9, 16)
    assert rows(tmp_path) == expected(16)
    assert len(files(tmp_path)) == 2


def test_parts_that_cannot_be_deleted_after_compaction_duplicate_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(table(tmp_path), 1, 24, every=8)
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("steps-"):
            raise OSError(errno.ENOSPC, "No space left on device")
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        growing = table(tmp_path, 24)
    assert rows(tmp_path, "select distinct step, loss from parts order by step") == expected(24)
    monkeypatch.setattr(growing_table, "COMPACT_EVERY_WRITES", 1)
    fill(growing, 25, 26)
    assert files(tmp_path) == ["steps-000000000001-000000000026.parquet"]
    assert rows(tmp_path) == expected(26)


def test_opening_a_table_fails_if_the_disk_is_full_and_rows_must_be_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(table(tmp_path), 1, 24)
    monkeypatch.setattr(growing_table, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        table(tmp_path, 20)
    assert rows(tmp_path) == expected(24)


def test_the_error_names_a_damaged_part(tmp_path: Path) -> None:
    fill(table(tmp_path), 1, 5)
    (part,) = tmp_path.iterdir()
    part.write_bytes(part.read_bytes()[:-7])
    with pytest.raises(DataError, match=rf"{part}: not a complete Parquet file .* move it away"):
        table(tmp_path, 3)


WRITER = """
import sys
from pathlib import Path
from shared.adapters.tables import growing_table
growing_table.COMPACT_EVERY_WRITES, growing_table.PART_ROWS = 10, 200
last = int(sys.argv[2])
growing = growing_table.GrowingTable(
    Path(sys.argv[1]), "steps", {"step": growing_table.COUNT, "loss": growing_table.FIGURE}, last=last
)
print("ready", flush=True)
for step in range(last + 1, 1_000_000):
    growing.add({"step": step, "loss": step / 4.0})
    if step % 7 == 0:
        growing.write()
        print(step, flush=True)
"""


def test_readers_see_every_row_while_the_table_grows_and_after_kills(tmp_path: Path) -> None:
    resume_after, looks, again = 0, 0, 0
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(resume_after)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            reported = resume_after
            for _ in range(15):
                reported = int(writer.stdout.readline())
                try:
                    found = rows(tmp_path, "select distinct step, loss from parts order by step")
                except duckdb.IOException as missing:
                    if "No such file" not in str(missing):  # documented: a compaction deletes files
                        raise
                    again += 1
                    continue
                assert found == expected(len(found))
                assert len(found) >= reported  # every reported row is found
                looks += 1
            writer.send_signal(signal.SIGKILL)
        resume_after = reported - 10  # a version saved before the kill
    table(tmp_path, resume_after)
    assert rows(tmp_path) == expected(resume_after)  # without `distinct`: each row once
    assert (looks + again, looks > 22) == (45, True)
