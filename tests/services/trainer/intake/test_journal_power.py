"""The journal and the disk: what a power cut leaves, what a failed write leaves, and threads meanwhile."""

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.trainer.intake import journal as journal_module
from services.trainer.intake.journal import Journal
from shared.errors import JournalError
from tests.shared.messages.trajectories import random_trajectory, same

MADE = [random_trajectory(seed) for seed in range(8)]

#: Appends of one trajectory each make a segment each.
TINY = 1


class Disk:
    """What of the files a power cut would leave: names by folder and contents by file, as last synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []  # what was synced, renamed and removed, by its name, in order
        self.refuses: Callable[[Path], bool] = lambda _: False
        self._names: dict[Path, dict[str, int]] = {}
        self._contents: dict[int, bytes] = {}
        fsync, replaced, unlink = os.fsync, Path.replace, Path.unlink

        def synced(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if self.refuses(path):
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(descriptor)
            self.log.append(f"sync {path.name}")
            if path.is_dir():
                self._names[path] = {one.name: one.stat().st_ino for one in path.iterdir()}
            else:
                self._contents[path.stat().st_ino] = path.read_bytes()

        def renamed(path: Path, target: Path) -> Path:
            self.log.append(f"rename {target.name}")
            return replaced(path, target)

        def removed(path: Path, missing_ok: bool = False) -> None:
            self.log.append(f"remove {path.name}")
            unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(Path, "replace", renamed)
        monkeypatch.setattr(Path, "unlink", removed)

    def after_a_power_cut(self, folder: Path) -> Journal:
        """What is found when the machine is up again."""
        left = folder.with_name(f"{folder.name}-after")
        left.mkdir()
        if folder.name in self._names.get(folder.parent, {}):
            for name, number in self._names.get(folder, {}).items():
                (left / name).write_bytes(self._contents.get(number, b""))
        return Journal(left)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.segment"))


def frames(folder: Path, *numbers: int) -> list[bytes]:
    """A frame of each trajectory, as the journal writes it."""
    journal = Journal(folder, segment_bytes=TINY)
    for number in numbers:
        journal.append([MADE[number]])
    journal.close()
    return [segment.read_bytes() for segment in segments(folder)]


def held(journal: Journal) -> list[bool]:
    return [same(journal.read(n), MADE[n]) for n in range(journal.first, journal.position)]


@pytest.mark.parametrize("appended_before", [0, 1])
def test_data_that_a_killed_trainer_left_unsynced_are_synced_on_opening(
    tmp_path: Path, folder: Path, disk: Disk, appended_before: int
) -> None:
    Journal(folder).close()
    begun, unsynced = frames(tmp_path / "frames", 0, 1)
    if appended_before:
        journal = Journal(folder)
        journal.append(MADE[:1])
        journal.close()
        with segments(folder)[0].open("ab") as file:  # written, and killed before it was synced
            file.write(unsynced)
    else:
        (folder / "000000000000.segment").write_bytes(begun)
    known = 1 + appended_before
    journal = Journal(folder)
    assert journal.append(MADE[:known]) == []  # so they are acknowledged
    journal.close()
    after = disk.after_a_power_cut(folder)
    assert held(after) == [True] * known
    after.close()


def test_a_truncated_tail_stays_truncated_after_a_power_cut(folder: Path, disk: Disk) -> None:
    journal = Journal(folder)
    journal.append(MADE[:1])
    journal.append(MADE[1:2])
    journal.close()
    os.truncate(segments(folder)[0], segments(folder)[0].stat().st_size - 100)
    journal = Journal(folder)
    assert journal.bytes_cut > 0
    journal.close()
    after = disk.after_a_power_cut(folder)
    assert (held(after), after.bytes_cut) == ([True], 0)
    after.close()


def test_a_failed_sync_on_opening_is_an_error(folder: Path, disk: Disk) -> None:
    Journal(folder).close()
    disk.refuses = lambda path: path == folder
    with pytest.raises(JournalError, match=r"the journal cannot be opened: .*No space left"):
        Journal(folder)
    disk.refuses = lambda _: False
    Journal(folder).close()  # it is not locked


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(JournalError, match=r"home/journal: the journal cannot be opened: .*Not a dir"):
        Journal(tmp_path / "home" / "journal")


@pytest.mark.parametrize("refused", ["file", "folder"])
def test_a_segment_whose_first_append_fails_is_removed_and_the_retry_is_synced(
    folder: Path, disk: Disk, refused: str
) -> None:
    journal = Journal(folder)
    disk.refuses = lambda path: (path == folder) is (refused == "folder")
    with pytest.raises(OSError, match="No space left"):
        journal.append(MADE[:1])
    assert segments(folder) == []
    disk.refuses = lambda _: False
    assert journal.append(MADE[:1]) == MADE[:1]
    journal.close()
    after = disk.after_a_power_cut(folder)
    assert held(after) == [True]
    after.close()


def test_an_append_to_an_empty_segment_of_a_killed_trainer_is_synced(folder: Path, disk: Disk) -> None:
    journal = Journal(folder)
    (folder / "000000000000.segment").touch()
    journal.append(MADE[:1])
    journal.close()
    after = disk.after_a_power_cut(folder)
    assert held(after) == [True]
    after.close()


@pytest.mark.parametrize("segment_bytes", [1 << 20, TINY])
def test_nothing_is_written_after_the_remains_of_a_failed_append(
    folder: Path, monkeypatch: pytest.MonkeyPatch, segment_bytes: int
) -> None:
    journal = Journal(folder, segment_bytes=segment_bytes)
    journal.append(MADE[:1])
    written = journal_module._append_synced

    def half(path: Path, data: bytes) -> None:
        written(path, data[: len(data) // 2])
        raise OSError(errno.EIO, "Input/output error")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as sick:
        sick.setattr(os, "truncate", refuse)
        sick.setattr(Path, "unlink", refuse)
        sick.setattr(journal_module, "_append_synced", half)
        with pytest.raises(OSError, match="Input/output error"):
            journal.append(MADE[1:2])
        sick.setattr(journal_module, "_append_synced", written)
        with pytest.raises(OSError, match="Read-only"):
            journal.append(MADE[1:2])
        with pytest.raises(OSError, match="Read-only"):
            journal.remove_before(1)
        assert held(journal) == [True]
    assert journal.append(MADE[1:3]) == MADE[1:3]
    assert journal.remove_before(1) == (1 if segment_bytes == TINY else 0)
    journal.close()
    again = Journal(folder)
    assert (again.position, again.bytes_cut) == (3, 0)
    assert all(held(again))
    again.close()


def test_removed_ids_are_on_the_disk_before_their_segments_go(folder: Path, disk: Disk) -> None:
    journal = Journal(folder, segment_bytes=TINY)
    for number in range(4):
        journal.append([MADE[number]])
    disk.log.clear()
    assert journal.remove_before(2) == 2
    assert [line for line in disk.log if ".partial" not in line] == [
        "rename removed.ids",
        "sync journal",
        "remove 000000000000.segment",
        "remove 000000000001.segment",
        "sync journal",
    ]
    journal.close()
    after = disk.after_a_power_cut(folder)
    assert after.append(MADE[:4]) == []
    after.close()


def test_a_failed_removal_loses_nothing_and_is_completed_by_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(folder, segment_bytes=TINY)
    for number in range(5):
        journal.append([MADE[number]])
    unlink = Path.unlink

    def not_this(path: Path, missing_ok: bool = False) -> None:
        if path.name == "000000000001.segment":
            raise OSError(errno.EIO, "Input/output error")
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as sick:
        sick.setattr(Path, "unlink", not_this)
        with pytest.raises(OSError, match="Input/output error"):
            journal.remove_before(3)
    assert (journal.first, journal.position, held(journal)) == (3, 5, [True, True])
    assert [segment.name[11] for segment in segments(folder)] == ["1", "2", "3", "4"]
    assert journal.remove_before(2) == 0
    assert [segment.name[11] for segment in segments(folder)] == ["2", "3", "4"]
    assert journal.append(MADE[:6]) == [MADE[5]]
    assert (journal.first, journal.position, held(journal)) == (3, 6, [True] * 3)
    journal.close()
    again = Journal(folder)
    assert again.append(MADE[:6]) == []
    assert (again.first, again.position) == (2, 6)
    again.close()


class WatchedJournal(Journal):
    """Asks in another thread for the position at the moment when `first` changes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, segment_bytes=TINY)
        self.positions: list[int] = []
        self.asking: list[threading.Thread] = []

    @property
    def first(self) -> int:
        return self._first

    @first.setter
    def first(self, number: int) -> None:
        if hasattr(self, "asking"):
            asking = threading.Thread(target=lambda: self.positions.append(self.position))
            asking.start()
            asking.join(0.05)  # it waits, for the lock
            self.asking.append(asking)
        self._first = number


def test_other_threads_never_see_a_half_updated_index(folder: Path) -> None:
    journal = WatchedJournal(folder)
    for number in range(4):
        journal.append([MADE[number]])
    journal.remove_before(2)
    for asking in journal.asking:
        asking.join()
    assert journal.positions == [4]
    journal.close()


def test_other_threads_can_use_the_journal_while_segments_are_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(folder, segment_bytes=TINY)
    for number in range(3):
        journal.append([MADE[number]])
    going, go_on = threading.Event(), threading.Event()
    unlink = Path.unlink

    def slow(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        if path.suffix == ".segment":
            going.set()
            assert go_on.wait(60)

    with monkeypatch.context() as slowly:
        slowly.setattr(Path, "unlink", slow)
        removing = threading.Thread(target=journal.remove_before, args=(1,))
        removing.start()
        assert going.wait(60)
        assert (journal.first, journal.position) == (1, 3)
        assert MADE[0].trajectory_id in journal
        assert same(journal.read(2), MADE[2])
        with pytest.raises(JournalError, match="trajectory 0 is not in the journal, which holds 1 to 2"):
            journal.read(0)
        appending = threading.Thread(target=journal.append, args=(MADE[3:4],))
        appending.start()
        go_on.set()
        removing.join()
        appending.join()
    assert (journal.first, journal.position, held(journal)) == (1, 4, [True] * 3)
    journal.close()


def with_the_end_unwritten(data: bytes, begin: int) -> bytes:
    return data[:begin] + bytes(len(data) - begin)


def test_a_last_append_whose_end_was_never_written_is_truncated(tmp_path: Path, folder: Path) -> None:
    first, second = frames(tmp_path / "frames", 0, 1)
    whole = first + second
    sectors = range(-(-(len(first) + 20) // 512) * 512, len(whole) - 12, 512)
    assert sectors
    folder.mkdir()
    for begin in sectors:
        (folder / "000000000000.segment").write_bytes(with_the_end_unwritten(whole, begin))
        journal = Journal(folder)
        assert (journal.position, journal.bytes_cut) == (1, len(second))
        assert journal.append(MADE[:2]) == [MADE[1]]
        journal.close()


@pytest.mark.parametrize("begin", ["within a sector", "a sector that is followed by another", "a bit"])
def test_any_other_damage_to_the_last_append_is_an_error_with_advice(
    tmp_path: Path, folder: Path, begin: str
) -> None:
    first, second = frames(tmp_path / "frames", 0, 1)
    whole = first + second
    sector = -(-(len(first) + 20) // 512) * 512
    damaged = {
        "within a sector": with_the_end_unwritten(whole, len(whole) // 512 * 512 + 1),
        "a sector that is followed by another": whole[:sector] + bytes(512) + whole[sector + 512 :],
        "a bit": whole[:sector] + bytes([whole[sector] ^ 1]) + whole[sector + 1 :],
    }[begin]
    folder.mkdir()
    segment = folder / "000000000000.segment"
    segment.write_bytes(damaged)
    with pytest.raises(
        JournalError, match=rf"damaged at byte {len(first)} of .* truncate -s {len(first)} {segment}$"
    ):
        Journal(folder)
    assert segment.read_bytes() == damaged
    os.truncate(segment, len(first))  # as the error says
    journal = Journal(folder)
    assert journal.append(MADE[:2]) == [MADE[1]]
    journal.close()


def test_only_damage_to_the_last_append_comes_with_advice_to_truncate(tmp_path: Path, folder: Path) -> None:
    first, second = frames(tmp_path / "frames", 0, 1)
    folder.mkdir()
    (folder / "000000000000.segment").write_bytes(first[:-1] + bytes([first[-1] ^ 1]) + second)
    with pytest.raises(JournalError, match=r"damaged at byte 0 .* a new journal in another folder$"):
        Journal(folder)


def test_zeros_in_a_trajectorys_numbers_do_not_count_as_unwritten_sectors(
    tmp_path: Path, folder: Path
) -> None:
    """Nothing but zeros where there may be, and the file ends shortly after a sector's begin."""
    made = random_trajectory(0, 400)
    names = ("static", "actions", "rewards", "policies", "values", "outcomes", "outcome_probabilities")
    zeros = {name: np.zeros_like(getattr(made, name)) for name in names}
    zeros["policies"][:, 0] = zeros["outcome_probabilities"][:, 0] = 1.0
    trajectory = replace(made, trades=(), **zeros)
    letters = 1
    for name in ("measured", "made"):
        journal = Journal(tmp_path / name)
        journal.append([replace(trajectory, worker="w" * letters)])
        journal.close()
        whole = segments(tmp_path / name)[0].read_bytes()
        letters += (4 - len(whole)) % 512
    assert len(whole) % 512 == 4
    assert whole.endswith(bytes(8))
    assert not whole.endswith(bytes(12))
    assert bytes(1024) in whole
    folder.mkdir()
    (folder / "000000000000.segment").write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(JournalError, match="damaged at byte 0"):
        Journal(folder)
