"""The journal after power cuts and failed writes, and its use by several threads."""

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

PLAYED = [random_trajectory(seed) for seed in range(8)]

#: Segment size at which every append begins a new segment.
TINY = 1


class Disk:
    """Tracks what a power cut would leave: names by folder and contents by file, as last synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []  # syncs, renames and removals in order, by name
        self.fails: Callable[[Path], bool] = lambda _: False
        self._names: dict[Path, dict[str, int]] = {}
        self._contents: dict[int, bytes] = {}
        fsync, replaced, unlink = os.fsync, Path.replace, Path.unlink

        def synced(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if self.fails(path):
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
        """Open the journal as found after a power cut."""
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
    """The frame of each trajectory, as the journal writes it."""
    journal = Journal(folder, segment_bytes=TINY)
    for number in numbers:
        journal.append([PLAYED[number]])
    journal.close()
    return [segment.read_bytes() for segment in segments(folder)]


def held(journal: Journal) -> list[bool]:
    return [same(journal.read(n), PLAYED[n]) for n in range(journal.first, journal.position)]


@pytest.mark.parametrize("appended_before", [0, 1])
def test_data_that_a_killed_trainer_left_unsynced_are_synced_on_opening(
    tmp_path: Path, folder: Path, disk: Disk, appended_before: int
) -> None:
    Journal(folder).close()
    begun, unsynced = frames(tmp_path / "frames", 0, 1)
    if appended_before:
        journal = Journal(folder)
        journal.append(PLAYED[:1])
        journal.close()
        with segments(folder)[0].open("ab") as file:  # the trainer was killed between write and sync
            file.write(unsynced)
    else:
        (folder / "000000000000.segment").write_bytes(begun)
    known = 1 + appended_before
    journal = Journal(folder)
    assert journal.append(PLAYED[:known]) == []  # known, so the caller acknowledges them
    journal.close()
    after = disk.after_a_power_cut(folder)
    assert held(after) == [True] * known
    after.close()


def test_a_truncated_tail_stays_truncated_after_a_power_cut(folder: Path, disk: Disk) -> None:
    journal = Journal(folder)
    journal.append(PLAYED[:1])
    journal.append(PLAYED[1:2])
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
    disk.fails = lambda path: path == folder
    with pytest.raises(JournalError, match=r"the journal cannot be opened: .*No space left"):
        Journal(folder)
    disk.fails = lambda _: False
    Journal(folder).close()  # the failed attempt released the lock


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(JournalError, match=r"home/journal: the journal cannot be opened: .*Not a dir"):
        Journal(tmp_path / "home" / "journal")


@pytest.mark.parametrize("failing", ["file", "folder"])
def test_a_segment_whose_first_append_fails_is_removed_and_the_retry_is_synced(
    folder: Path, disk: Disk, failing: str
) -> None:
    journal = Journal(folder)
    disk.fails = lambda path: (path == folder) is (failing == "folder")
    with pytest.raises(OSError, match="No space left"):
        journal.append(PLAYED[:1])
    assert segments(folder) == []
    disk.fails = lambda _: False
    assert journal.append(PLAYED[:1]) == PLAYED[:1]
    journal.close()
    after = disk.after_a_power_cut(folder)
    assert held(after) == [True]
    after.close()


def test_an_append_to_an_empty_segment_of_a_killed_trainer_is_synced(folder: Path, disk: Disk) -> None:
    journal = Journal(folder)
    (folder / "000000000000.segment").touch()
    journal.append(PLAYED[:1])
    journal.close()
    after = disk.after_a_power_cut(folder)
    assert held(after) == [True]
    after.close()


@pytest.mark.parametrize("segment_bytes", [1 << 20, TINY])
def test_nothing_is_written_after_the_remains_of_a_failed_append(
    folder: Path, monkeypatch: pytest.MonkeyPatch, segment_bytes: int
) -> None:
    journal = Journal(folder, segment_bytes=segment_bytes)
    journal.append(PLAYED[:1])
    written = journal_module._append_synced

    def half(path: Path, data: bytes) -> None:
        written(path, data[: len(data) // 2])
        raise OSError(errno.EIO, "Input/output error")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(os, "truncate", refuse)
        patched.setattr(Path, "unlink", refuse)
        patched.setattr(journal_module, "_append_synced", half)
        with pytest.raises(OSError, match="Input/output error"):
            journal.append(PLAYED[1:2])
        patched.setattr(journal_module, "_append_synced", written)
        with pytest.raises(OSError, match="Read-only"):
            journal.append(PLAYED[1:2])
        with pytest.raises(OSError, match="Read-only"):
            journal.remove_before(1)
        assert held(journal) == [True]
    assert journal.append(PLAYED[1:3]) == PLAYED[1:3]
    assert journal.remove_before(1) == (1 if segment_bytes == TINY else 0)
    journal.close()
    again = Journal(folder)
    assert (again.position, again.bytes_cut) == (3, 0)
    assert all(held(again))
    again.close()


def test_removed_ids_are_synced_before_their_segments_are_removed(folder: Path, disk: Disk) -> None:
    journal = Journal(folder, segment_bytes=TINY)
    for number in range(4):
        journal.append([PLAYED[number]])
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
    assert after.append(PLAYED[:4]) == []
    after.close()


def test_a_failed_removal_loses_nothing_and_is_completed_by_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(folder, segment_bytes=TINY)
    for number in range(5):
        journal.append([PLAYED[number]])
    unlink = Path.unlink

    def fail_for_one(path: Path, missing_ok: bool = False) -> None:
        if path.name == "000000000001.segment":
            raise OSError(errno.EIO, "Input/output error")
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", fail_for_one)
        with pytest.raises(OSError, match="Input/output error"):
            journal.remove_before(3)
    assert (journal.first, journal.position, held(journal)) == (3, 5, [True, True])
    assert [segment.name[11] for segment in segments(folder)] == ["1", "2", "3", "4"]
    assert journal.remove_before(2) == 0
    assert [segment.name[11] for segment in segments(folder)] == ["2", "3", "4"]
    assert journal.append(PLAYED[:6]) == [PLAYED[5]]
    assert (journal.first, journal.position, held(journal)) == (3, 6, [True] * 3)
    journal.close()
    again = Journal(folder)
    assert again.append(PLAYED[:6]) == []
    assert (again.first, again.position) == (2, 6)
    again.close()


class WatchedJournal(Journal):
    """A journal that reads its position in another thread while `first` changes."""

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
            asking.join(0.05)  # it waits for the lock
            self.asking.append(asking)
        self._first = number


def test_other_threads_never_see_a_half_updated_index(folder: Path) -> None:
    journal = WatchedJournal(folder)
    for number in range(4):
        journal.append([PLAYED[number]])
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
        journal.append([PLAYED[number]])
    removing_now, go_on = threading.Event(), threading.Event()
    unlink = Path.unlink

    def slow(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        if path.suffix == ".segment":
            removing_now.set()
            assert go_on.wait(60)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", slow)
        removing = threading.Thread(target=journal.remove_before, args=(1,))
        removing.start()
        assert removing_now.wait(60)
        assert (journal.first, journal.position) == (1, 3)
        assert PLAYED[0].trajectory_id in journal
        assert same(journal.read(2), PLAYED[2])
        with pytest.raises(JournalError, match="trajectory 0 is not in the journal, which holds 1 to 2"):
            journal.read(0)
        appending = threading.Thread(target=journal.append, args=(PLAYED[3:4],))
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
    intact = first + second
    sectors = range(-(-(len(first) + 20) // 512) * 512, len(intact) - 12, 512)
    assert sectors
    folder.mkdir()
    for begin in sectors:
        (folder / "000000000000.segment").write_bytes(with_the_end_unwritten(intact, begin))
        journal = Journal(folder)
        assert (journal.position, journal.bytes_cut) == (1, len(second))
        assert journal.append(PLAYED[:2]) == [PLAYED[1]]
        journal.close()


@pytest.mark.parametrize("begin", ["within a sector", "a sector followed by another", "a bit"])
def test_any_other_damage_to_the_last_append_is_an_error_with_advice(
    tmp_path: Path, folder: Path, begin: str
) -> None:
    first, second = frames(tmp_path / "frames", 0, 1)
    intact = first + second
    sector = -(-(len(first) + 20) // 512) * 512
    damaged = {
        "within a sector": with_the_end_unwritten(intact, len(intact) // 512 * 512 + 1),
        "a sector followed by another": intact[:sector] + bytes(512) + intact[sector + 512 :],
        "a bit": intact[:sector] + bytes([intact[sector] ^ 1]) + intact[sector + 1 :],
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
    assert journal.append(PLAYED[:2]) == [PLAYED[1]]
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
    """The arrays are zeros where allowed, and the file ends shortly after the start of a sector."""
    made = random_trajectory(0, 400)
    names = ("static", "actions", "rewards", "policies", "values", "outcomes", "outcome_probabilities")
    zeros = {name: np.zeros_like(getattr(made, name)) for name in names}
    zeros["policies"][:, 0] = zeros["outcome_probabilities"][:, 0] = 1.0
    trajectory = replace(made, trades=(), **zeros)
    length = 1
    for name in ("measured", "made"):
        journal = Journal(tmp_path / name)
        journal.append([replace(trajectory, worker="w" * length)])
        journal.close()
        intact = segments(tmp_path / name)[0].read_bytes()
        length += (4 - len(intact)) % 512
    assert len(intact) % 512 == 4
    assert intact.endswith(bytes(8))
    assert not intact.endswith(bytes(12))
    assert bytes(1024) in intact
    folder.mkdir()
    (folder / "000000000000.segment").write_bytes(intact[:100] + bytes([intact[100] ^ 1]) + intact[101:])
    with pytest.raises(JournalError, match="damaged at byte 0"):
        Journal(folder)
