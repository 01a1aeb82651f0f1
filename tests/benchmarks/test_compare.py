"""Ways of learning change what they say, and what is told of a run is what its report says."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.compare import LEARNED_SHARE, WAYS, Learned, compare, draw_comparison
from benchmarks.learn import CurvePoint, LearnConfig, LearnReport, Spent
from benchmarks.scores import Scores
from cli.local import TUNED
from services.selfplay.settings import SelfPlaySettings
from services.trainer.settings import TrainerSettings
from shared.errors import SettingsError
from shared.numeric import Float64
from shared.runtime.settings import load


def trading(pips: float) -> Scores:
    values: Float64 = np.full(4, pips)
    return Scores(values, values, np.ones(4, np.int64))


def report(*pips: float, seed: int = 0) -> LearnReport:
    curve = tuple(
        CurvePoint(Spent(60.0 * n, 10 * n, n), trading(earned), trading(10.0))
        for n, earned in enumerate(pips)
    )
    players = {"agent": trading(pips[-1]), "best": trading(10.0)}
    return LearnReport(LearnConfig(seed=seed), curve, np.arange(4), 0.0, players, None)


def test_every_way_changes_one_or_two_settings_of_the_tuned_profile_and_no_more() -> None:
    tuned = load(TrainerSettings, profile=TUNED)
    playing = load(SelfPlaySettings, profile=TUNED)
    config = LearnConfig(
        search=playing.search, selfplay=playing.selfplay, learner=tuned.learner, trainer=tuned.trainer
    )
    for name, change in WAYS.items():
        before, after = asdict(config), asdict(change(config))
        changed = [
            (group, field)
            for group in before
            for field in (before[group] if isinstance(before[group], dict) else ())
            if before[group][field] != after[group][field]
        ]
        assert (0 if name == "as given" else 1) <= len(changed) <= 2, name
        assert len({group for group, _ in changed}) <= 1, name


def test_a_run_has_learned_when_its_share_is_first_enough() -> None:
    below, above = 10.0 * LEARNED_SHARE - 0.1, 10.0 * LEARNED_SHARE + 0.1
    learned = Learned.of("puct", report(0.0, below, above, below))
    assert learned.reached == Spent(120.0, 20, 2)
    assert learned.share == pytest.approx(LEARNED_SHARE - 0.01)
    assert learned.shares.tolist() == pytest.approx([0.0, below / 10, above / 10, below / 10])
    assert Learned.of("puct", report(0.0, below)).reached is None


def test_an_unknown_way_is_refused_before_anything_is_learned() -> None:
    with pytest.raises(SettingsError, match=r"no way of learning 'magic', expected one of as given, puct"):
        next(compare(LearnConfig(), ["magic"], [0]))


def test_the_picture_is_one(tmp_path: Path) -> None:
    runs = [
        Learned.of(way, report(0.0, 3.0, 5.0, seed=seed)) for way in ("as given", "puct") for seed in (0, 1)
    ]
    draw_comparison(runs, tmp_path / "ways.png")
    with Image.open(tmp_path / "ways.png") as image:
        assert image.size == (990, 550)
