"""The journal: order, redeliveries, incomplete and damaged files, removal of old segments."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.intake import journal as journal_module
from services.trainer.intake.journal import Journal
from shared.errors import JournalError
from tests.conftest import ROOT
from tests.shared.messages.trajectories import random_trajectory, same

PLAYED = [random_trajectory(seed) for seed in range(12)]


def filled(folder: Path, *sizes: int, segment_bytes: int = 64 << 20) -> Journal:
    """A journal after appends of some sizes."""
    journal = Journal(folder, segment_bytes=segment_bytes)
    begin = 0
    for size in sizes:
        journal.append(PLAYED[begin : begin + size])
        begin += size
    return journal


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.segment"))


def test_appended_trajectories_are_read_in_order_also_after_a_restart(tmp_path: Path) -> None:
    journal = filled(tmp_path, 1, 3, 2)
    for _ in range(2):
        assert journal.position == 6
        assert all(same(journal.read(n), PLAYED[n]) for n in range(6))
        journal.close()
        journal = Journal(tmp_path)
    journal.append(PLAYED[6:7])
    assert same(journal.read(6), PLAYED[6])
    journal.close()


def test_a_redelivered_trajectory_is_counted_once(tmp_path: Path) -> None:
    journal = filled(tmp_path, 3)
    assert journal.append([PLAYED[1], PLAYED[3], PLAYED[3], PLAYED[0]]) == [PLAYED[3]]
    assert journal.append(PLAYED[:4]) == []
    assert journal.position == 4
    journal.close()
    again = Journal(tmp_path)
    assert again.append(PLAYED[:5]) == [PLAYED[4]]
    again.close()


@given(data=st.data())
def test_an_incomplete_last_append_is_truncated(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    filled(folder, 2).close()
    segment = segments(folder)[0]
    before = segment.stat().st_size
    journal = Journal(folder)
    journal.append(PLAYED[2:5])
    journal.close()
    cut = data.draw(st.integers(before, segment.stat().st_size - 1))
    zeros = data.draw(st.sampled_from([0, 0, 30]))  # a file that was extended before it was written
    os.truncate(segment, cut)
    if zeros and cut == before:
        os.truncate(segment, before + zeros)
    again = Journal(folder)
    assert again.position == 2
    assert again.bytes_cut == segment_size_cut(cut, before, zeros)
    assert again.append(PLAYED[:5]) == PLAYED[2:5]
    assert all(same(again.read(n), PLAYED[n]) for n in range(5))
    again.close()


def segment_size_cut(cut: int, before: int, zeros: int) -> int:
    return zeros if cut == before else cut - before


def test_a_journal_whose_only_append_is_incomplete_is_empty(tmp_path: Path) -> None:
    filled(tmp_path, 1).close()
    os.truncate(segments(tmp_path)[0], 50)
    journal = Journal(tmp_path)
    assert journal.position == 0
    assert journal.append(PLAYED[:1]) == PLAYED[:1]
    journal.close()


@pytest.mark.parametrize("offset", [5, 25, 400, -3])
def test_damage_to_acknowledged_data_is_an_error_that_names_file_and_byte(
    tmp_path: Path, offset: int
) -> None:
    filled(tmp_path, 2, 2).close()
    segment = segments(tmp_path)[0]
    data = bytearray(segment.read_bytes())
    data[offset] ^= 0x10
    segment.write_bytes(data)
    with pytest.raises(JournalError, match=rf"{segment.name}: damaged at byte \d+ of {len(data)}"):
        Journal(tmp_path)


def test_a_missing_segment_is_an_error(tmp_path: Path) -> None:
    filled(tmp_path, 2, 2, 2, segment_bytes=1).close()
    segments(tmp_path)[1].unlink()
    with pytest.raises(JournalError, match="begins with trajectory 4, expected 2"):
        Journal(tmp_path)


def test_a_bit_flipped_while_the_journal_is_open_is_found_when_read(tmp_path: Path) -> None:
    journal = filled(tmp_path, 1)
    segment = segments(tmp_path)[0]
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    with pytest.raises(JournalError, match="trajectory 0 at byte"):
        journal.read(0)
    journal.close()


def test_old_segments_are_removed_and_their_ids_stay_known(tmp_path: Path) -> None:
    journal = filled(tmp_path, 2, 3, 2, 1, segment_bytes=1)
    assert len(segments(tmp_path)) == 4
    assert journal.remove_before(4) == 2  # the second segment holds trajectory 4
    assert journal.remove_before(5) == 3
    assert (journal.first, journal.position) == (5, 8)
    assert same(journal.read(5), PLAYED[5])
    with pytest.raises(JournalError, match="trajectory 4 is not in the journal, which holds 5 to 7"):
        journal.read(4)
    for _ in range(2):
        assert [made.trajectory_id in journal for made in PLAYED[:9]] == [True] * 8 + [False]
        assert journal.append(PLAYED[:8]) == []
        journal.close()
        journal = Journal(tmp_path)
        assert (journal.first, journal.position) == (5, 8)
    assert journal.remove_before(100) == 2  # the last segment stays
    journal.close()


def test_only_the_last_removed_ids_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "REMEMBERED_IDS", 2)
    journal = filled(tmp_path, 1, 1, 1, 1, segment_bytes=1)
    journal.remove_before(3)
    assert journal.append(PLAYED[1:3]) == []
    assert journal.append(PLAYED[:1]) == PLAYED[:1]  # its id is no longer known
    journal.close()


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = filled(tmp_path, 2)
    size = segments(tmp_path)[0].stat().st_size

    def half_written(path: Path, data: bytes) -> None:
        with path.open("ab") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(journal_module, "_append_synced", half_written)
        with pytest.raises(OSError, match="No space left"):
            journal.append(PLAYED[2:4])
    assert segments(tmp_path)[0].stat().st_size == size
    assert journal.append(PLAYED[2:4]) == PLAYED[2:4]
    journal.close()
    assert Journal(tmp_path).position == 4


def test_a_second_trainer_is_refused(tmp_path: Path) -> None:
    journal = filled(tmp_path, 1)
    with pytest.raises(JournalError, match="another trainer has this journal open"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


WRITER = """
import sys
from pathlib import Path
from services.trainer.intake.journal import Journal
from tests.shared.messages.trajectories import random_trajectory
journal = Journal(Path(sys.argv[1]), segment_bytes=20_000)
number = journal.position
while True:
    journal.append([random_trajectory(seed) for seed in range(number, number + 3)])
    number += 3
    print(number, flush=True)
"""


def test_a_killed_writer_loses_no_trajectory_that_it_reported(tmp_path: Path) -> None:
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert writer.stdout is not None
        reported = 0
        for _ in range(5):
            reported = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        reported = max([reported, *map(int, writer.stdout.read().split())])
        writer.wait()
        writer.stdout.close()
        journal = Journal(tmp_path)
        assert journal.position >= reported
        assert all(same(journal.read(n), random_trajectory(n)) for n in range(journal.position))
        journal.close()
