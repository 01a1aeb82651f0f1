"""Free disk space: the check before the start, and the reports while the system runs."""

import errno
import shutil
from pathlib import Path

import pytest

from cli.disk import DiskWatch, warn_of_low_disk
from cli.settings import UpSettings
from services.api.config import AlertConfig
from shared.errors import SettingsError
from shared.runtime.disk import free_megabytes


class Disk:
    """A fake disk with an adjustable free space."""

    free_mb = 10_000

    def usage(self, _: Path) -> shutil._ntuple_diskusage:
        return shutil._ntuple_diskusage(1 << 40, 0, self.free_mb * 1_000_000)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(shutil, "disk_usage", disk.usage)
    return disk


@pytest.mark.parametrize("folder", ["", "not/there/yet"])
def test_free_space_is_that_of_the_file_system(tmp_path: Path, folder: str) -> None:
    assert abs(free_megabytes(tmp_path / folder) - shutil.disk_usage(tmp_path).free / 1e6) < 1_000


def test_up_refuses_too_little_disk_space_and_warns_of_low_space(
    disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = UpSettings(min_free_mb=500, alerts=AlertConfig(low_free_mb=5_000))
    warn_of_low_disk(tmp_path, settings)
    assert capsys.readouterr().err == ""
    disk.free_mb = 4_999
    warn_of_low_disk(tmp_path, settings)
    assert "only 4,999 MB are free in" in capsys.readouterr().err
    disk.free_mb = 499
    with pytest.raises(
        SettingsError, match=r"499 MB are free in .*, and `up` needs 500 MB \(MM_MIN_FREE_MB\)"
    ):
        warn_of_low_disk(tmp_path, settings)


def test_low_disk_space_is_reported_once_and_so_is_its_end(disk: Disk, tmp_path: Path) -> None:
    watch = DiskWatch(tmp_path, low_mb=5_000)
    assert list(watch.check(0.0)) == []
    disk.free_mb = 4_000
    assert [event[:24] for event in watch.check(1.0)] == ["only 4,000 MB are free i"]
    assert list(watch.check(2.0)) == []
    disk.free_mb = 6_000
    assert list(watch.check(3.0)) == []
    assert [event[:18] for event in watch.check(100.0)] == ["6,000 MB are free "]


def test_a_disk_that_does_not_answer_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(shutil, "disk_usage", fail)
    (event,) = DiskWatch(tmp_path, low_mb=5_000).check(0.0)
    assert event == f"the free disk space of {tmp_path} is not known: [Errno 116] Stale file handle"
