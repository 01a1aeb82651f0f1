"""Read with DuckDB, which shares no code with what writes."""

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

from shared.adapters.files import write_whole
from shared.adapters.tables import growing_table
from shared.adapters.tables.growing_table import COUNT, FIGURE, FLAG, MOMENT, TEXT, GrowingTable
from shared.errors import DataError
from tests.conftest import ROOT

COLUMNS = {"step": COUNT, "loss": FIGURE}


def rows(folder: Path, query: str = "select step, loss from parts order by step") -> list[tuple[Any, ...]]:
    """What a reader finds."""
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


def test_rows_are_read_as_they_were_given(tmp_path: Path) -> None:
    moment = datetime(2024, 3, 8, 21, 58, 1, 250_000, tzinfo=UTC)
    kinds = {"step": COUNT, "loss": FIGURE, "who": TEXT, "ok": FLAG, "time": MOMENT}
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


def test_small_parts_are_joined_and_full_ones_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing_table, "PART_ROWS", 30)
    monkeypatch.setattr(growing_table, "JOIN_EVERY_WRITES", 5)
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
def test_going_on_after_any_row_gives_every_row_once(tmp_path: Path, last: int, every: int) -> None:
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


def test_what_a_kill_left_half_done_is_put_right(tmp_path: Path) -> None:
    def copy_of(last: int, every: int) -> None:
        """Parts beside those that are there."""
        other = tmp_path / "other"
        other.mkdir()
        fill(table(other), 1, last, every=every)
        for path in other.iterdir():
            path.replace(tmp_path / path.name)
        other.rmdir()

    copy_of(24, 8)  # three parts that were joined
    copy_of(24, 24)  # by this one, and not yet removed
    copy_of(20, 20)  # which was cut to this one, and not yet removed
    assert len(files(tmp_path)) == 5
    table(tmp_path, 20)
    assert files(tmp_path) == ["steps-000000000001-000000000020.parquet"]
    assert rows(tmp_path) == expected(20)


def test_a_column_that_came_later_is_null_before(tmp_path: Path) -> None:
    fill(table(tmp_path), 1, 3)
    wider = GrowingTable(tmp_path, "steps", {**COLUMNS, "more": FIGURE}, last=3)
    wider.add({"step": 4, "loss": 1.0, "more": 0.5})
    wider.write()
    GrowingTable(tmp_path, "steps", {**COLUMNS, "more": FIGURE}, last=4)  # a start joins them
    assert len(files(tmp_path)) == 1
    assert rows(tmp_path, "select step, more from parts order by step") == [
        (1, None),
        (2, None),
        (3, None),
        (4, 0.5),
    ]


def test_a_row_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    growing = table(tmp_path)
    fill(growing, 1, 3)
    with pytest.raises(ValueError, match="steps: step 3 after 3, expected to rise"):
        growing.add({"step": 3, "loss": 0.0})
    with pytest.raises(ValueError, match=r"columns \['lost', 'step'\], expected \['loss', 'step'\]"):
        growing.add({"step": 4, "lost": 0.0})
    growing.write()
    assert rows(tmp_path) == expected(3)


def test_a_disk_that_refuses_delays_rows_up_to_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing_table, "MAX_WAITING_ROWS", 20)

    growing = table(tmp_path)
    fill(growing, 1, 5)
    monkeypatch.setattr(growing_table, "write_whole", full)
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


def test_a_full_disk_at_the_start_leaves_small_parts_for_a_later_write_to_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(table(tmp_path), 1, 24, every=8)
    before = files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(growing_table, "write_whole", full)
        growing = table(tmp_path, 24)
        assert files(tmp_path) == before
        growing.add({"step": 25, "loss": 25 / 4.0})
        with pytest.raises(OSError, match="No space left"):
            growing.write()
    monkeypatch.setattr(growing_table, "JOIN_EVERY_WRITES", 1)
    growing.write()
    assert files(tmp_path) == ["steps-000000000001-000000000025.parquet"]
    assert rows(tmp_path) == expected(25)


def test_a_disk_that_refuses_to_join_refuses_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing_table, "JOIN_EVERY_WRITES", 2)
    growing = table(tmp_path)
    fill(growing, 1, 8)

    def full_for_joined(path: Path, data: bytes) -> None:
        if path.name == "steps-000000000001-000000000016.parquet":
            full(path, data)
        write_whole(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(growing_table, "write_whole", full_for_joined)
        fill(growing, 9, 16)
    assert rows(tmp_path) == expected(16)
    assert len(files(tmp_path)) == 2


def test_a_disk_that_refuses_to_remove_what_was_joined_doubles_no_row(
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
    monkeypatch.setattr(growing_table, "JOIN_EVERY_WRITES", 1)
    fill(growing, 25, 26)
    assert files(tmp_path) == ["steps-000000000001-000000000026.parquet"]
    assert rows(tmp_path) == expected(26)


def test_a_full_disk_ends_a_start_that_has_rows_to_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(table(tmp_path), 1, 24)
    monkeypatch.setattr(growing_table, "write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        table(tmp_path, 20)
    assert rows(tmp_path) == expected(24)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    fill(table(tmp_path), 1, 5)
    (part,) = tmp_path.iterdir()
    part.write_bytes(part.read_bytes()[:-7])
    with pytest.raises(DataError, match=rf"{part}: not a whole Parquet file .* move it away"):
        table(tmp_path, 3)


WRITER = """
import sys
from pathlib import Path
from shared.adapters.tables import growing_table
growing_table.JOIN_EVERY_WRITES, growing_table.PART_ROWS = 10, 200
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


def test_readers_find_every_row_while_it_grows_and_after_kills(tmp_path: Path) -> None:
    go_on_after, looks, again = 0, 0, 0
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(go_on_after)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            told = go_on_after
            for _ in range(15):
                told = int(writer.stdout.readline())
                try:
                    found = rows(tmp_path, "select distinct step, loss from parts order by step")
                except duckdb.IOException as joined:
                    if "No such file" not in str(joined):  # they were joined in this moment: documented
                        raise
                    again += 1
                    continue
                assert found == expected(len(found))
                assert len(found) >= told  # what was written is there
                looks += 1
            writer.send_signal(signal.SIGKILL)
        go_on_after = told - 10  # a version somewhat before the kill
    table(tmp_path, go_on_after)
    assert rows(tmp_path) == expected(go_on_after)  # without `distinct`: each row once
    assert (looks + again, looks > 22) == (45, True)
