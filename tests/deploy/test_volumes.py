"""Folders that containers write to: the root file system is read-only, so each of them is a volume."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from services.selfplay.settings import SelfPlaySettings

ROOT = Path(__file__).resolve().parents[2]
HOME = Path("/var/lib/micro-muzero")

#: Folders of the home that the image creates for its user; a new volume is initialised from the image.
CREATED = re.compile(r"cd micro-muzero \\\n\s*&& mkdir ([a-z ]+) \\\n\s*&& chown -R micromuzero: (\S+)")


@dataclass(frozen=True)
class Mount:
    volume: str
    folder: Path
    writable: bool


@cache
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))


def mounts(service: str) -> list[Mount]:
    found = []
    for text in compose()["services"][service]["volumes"]:
        volume, folder, *mode = text.split(":")
        found.append(Mount(volume, Path(folder), mode != ["ro"]))
    return found


def services_of_the_image() -> list[str]:
    return [name for name, service in compose()["services"].items() if "micro-muzero" in service["image"]]


def test_self_play_can_write_to_its_folder_of_unsent_trajectories() -> None:
    assert compose()["services"]["selfplay"]["read_only"]
    unsent = SelfPlaySettings(home=HOME).unsent_root
    (mount,) = [mount for mount in mounts("selfplay") if mount.folder == unsent]
    assert mount.writable
    assert mount.volume in compose()["volumes"]  # a named volume survives when the container is recreated


@pytest.mark.parametrize("service", services_of_the_image())
def test_every_volume_starts_as_a_folder_owned_by_the_image_user(service: str) -> None:
    created = CREATED.search((ROOT / "Dockerfile").read_text())
    assert created is not None
    assert created[2] == str(HOME)
    for mount in mounts(service):
        assert mount.volume in compose()["volumes"]
        assert mount.folder.parent == HOME
        assert mount.folder.name in created[1].split()
