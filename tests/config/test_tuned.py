"""Every service can read the tuned profile, which repeats no default."""

import tomllib
from pathlib import Path

from cli.local import TUNED
from services.selfplay.settings import SelfPlaySettings
from services.trainer.config import Shaping
from services.trainer.settings import TrainerSettings
from shared.runtime.settings import load


def test_every_line_differs_from_its_default() -> None:
    default = {**dict(load(SelfPlaySettings)), **dict(load(TrainerSettings))}
    tuned = {
        **dict(load(SelfPlaySettings, profile=TUNED)),
        **dict(load(TrainerSettings, profile=TUNED)),
    }
    for group, fields in tomllib.loads(TUNED.read_text()).items():
        for name, value in fields.items():
            assert getattr(tuned[group], name) == value, (group, name)
            assert getattr(default[group], name) != value, (group, name)


def test_up_uses_the_tuned_profile_of_the_project() -> None:
    assert Path(__file__).resolve().parents[2] / "config" / "tuned.toml" == TUNED
    assert load(TrainerSettings, profile=TUNED).learner.shaping is Shaping.UNREALISED
