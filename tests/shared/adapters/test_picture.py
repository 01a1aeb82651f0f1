"""Writing pictures, and the check beforehand."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from shared.adapters import picture
from shared.adapters.picture import require_drawable, write_png
from shared.errors import DataError, ServiceError


def test_a_path_without_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "no such folder" / "curve.png", tmp_path):
        with pytest.raises(DataError, match="folder"):
            require_drawable(path)
    require_drawable(tmp_path / "curve.png")


def test_the_error_without_matplotlib_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "find_spec", lambda _: None)
    with pytest.raises(ServiceError, match="plots"):
        require_drawable(tmp_path / "curve.png")


def test_only_own_pictures_are_replaced_and_links_are_followed(tmp_path: Path) -> None:
    foreign, link = tmp_path / "foreign.png", tmp_path / "link.png"
    Figure().savefig(foreign)
    before = foreign.read_bytes()
    (tmp_path / "bars.csv").write_text("time,open")
    for taken in (foreign, tmp_path / "bars.csv"):
        with pytest.raises(DataError, match="is no picture drawn by this program"):
            require_drawable(taken)
        with pytest.raises(DataError, match="is no picture drawn by this program"):
            write_png(Figure(), taken)
    assert foreign.read_bytes() == before
    link.symlink_to("target.png")
    for _ in range(2):
        write_png(Figure(), link)
    assert link.is_symlink()
    assert (tmp_path / "target.png").is_file()


def test_the_error_of_an_unwritable_picture_names_it(tmp_path: Path) -> None:
    (tmp_path / "curve.png").mkdir()
    with pytest.raises(DataError, match=r"curve\.png is a folder"):
        write_png(Figure(), tmp_path / "curve.png")
    write_png(Figure(), tmp_path / "other.png")
    assert (tmp_path / "other.png").read_bytes().startswith(b"\x89PNG")
