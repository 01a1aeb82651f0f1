"""Outputs replace only files of their kind, follow links, and leave no temporary files."""

import fcntl
import os
from pathlib import Path

import pytest

from shared.adapters.outputs import atomic_output, check_output
from shared.errors import DataError


def is_own(path: Path) -> bool:
    return path.read_text().startswith("ours")


def write(path: Path, text: str = "ours, new") -> None:
    with atomic_output(check_output(path, "own file", is_own)) as temporary:
        temporary.write_text(text)


def test_only_a_file_of_its_kind_is_replaced(tmp_path: Path) -> None:
    own, foreign = tmp_path / "own", tmp_path / "foreign"
    own.write_text("ours, old")
    foreign.write_text("years of work")
    write(own)
    write(tmp_path / "new")
    with pytest.raises(DataError, match="foreign exists and is no own file"):
        write(foreign)
    with pytest.raises(DataError, match="is a folder"):
        write(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe exists and is no own file"):
        write(tmp_path / "pipe")
    assert own.read_text() == (tmp_path / "new").read_text() == "ours, new"
    assert foreign.read_text() == "years of work"


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    link, target = tmp_path / "link", folder / "target"
    link.symlink_to("elsewhere/target")
    for text in ("ours, first", "ours, second"):  # dangling, then not
        write(link, text)
        assert link.is_symlink()
        assert target.read_text() == text
    target.write_text("foreign")
    with pytest.raises(DataError, match="link exists and is no own file"):
        write(link)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["elsewhere", "link", "target"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match=r"loop: cannot be written: .*symbolic links"):
        write(tmp_path / "loop")


def test_an_input_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "input").write_text("ours")
    (tmp_path / "link").symlink_to("input")
    os.link(tmp_path / "input", tmp_path / "other name")
    for name in ("input", "link", "other name"):
        with pytest.raises(DataError, match=f"{name} is an input file"):
            check_output(tmp_path / name, "own file", is_own, tmp_path / "input")


def test_an_unwritable_path_is_refused_by_the_check(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("ours")
    for path in (tmp_path / "file" / "below", Path("/proc/own"), tmp_path / "absent" / "own"):
        with pytest.raises(DataError, match="cannot be written"):
            check_output(path, "own file", is_own)
    with pytest.raises(DataError, match="cannot be written: Not a directory"):
        check_output(tmp_path / "file" / "below" / "own", "own file", is_own, may_lack_folder=True)
    new = tmp_path / "absent" / "own"
    assert check_output(new, "own file", is_own, may_lack_folder=True) == new
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_leftovers_of_killed_writers_are_removed_unless_a_writer_is_active(tmp_path: Path) -> None:
    left = [tmp_path / ".own.0123abcd.partial", tmp_path / ".own.0123abcd.partial.wal"]
    others = [tmp_path / ".other.0123abcd.partial", tmp_path / "own.partial"]
    for path in (*left, *others):
        path.write_text("half")
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_SH)  # as a writer in another process holds it
    write(tmp_path / "own")
    assert all(path.exists() for path in left)
    os.close(folder)
    write(tmp_path / "own")
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("ours, old")

    def interrupted() -> None:
        with atomic_output(tmp_path / "own") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "own").read_text() == "ours, old"
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
