"""The study `compare`: its variants of learning, and the records, summaries and picture of its runs."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.local import TUNED
from services.selfplay.settings import SelfPlaySettings
from services.trainer.config import LearnerConfig
from services.trainer.settings import TrainerSettings
from shared.environment.environment import EnvironmentConfig
from shared.environment.reward import RewardScheme
from shared.errors import DataError, ServiceError, SettingsError
from shared.market.synthetic import Market
from shared.numeric import Float64
from shared.runtime.settings import load
from studies.compare import (
    LEARNED_SHARE,
    VARIANTS,
    CompareRecord,
    Range,
    RunResult,
    compare,
    plan,
    summaries,
)
from studies.compare_picture import draw_comparison
from studies.learn import CurvePoint, LearnConfig, LearnReport, Spent
from studies.scores import Scores
from tests.studies.pictures import columns_of, height_of, pixels_of


def trading(pips: float) -> Scores:
    values: Float64 = np.full(4, pips)
    return Scores(values, values, np.ones(4, np.int64))


def report(*pips: float, seed: int = 0) -> LearnReport:
    curve = tuple(
        CurvePoint(Spent(60.0 * n, 10 * n, n), trading(earned), trading(10.0))
        for n, earned in enumerate(pips)
    )
    players = {"agent": trading(pips[-1]), "best": trading(10.0)}
    return LearnReport(LearnConfig(seed=seed), curve, np.arange(4), 0.0, players, {}, curve[-1].spent, None)


def test_every_way_changes_one_or_two_settings_of_the_tuned_profile_and_no_more() -> None:
    tuned = load(TrainerSettings, profile=TUNED)
    playing = load(SelfPlaySettings, profile=TUNED)
    config = LearnConfig(
        model=tuned.model,
        search=playing.search,
        selfplay=playing.selfplay,
        replay=tuned.replay,
        learner=tuned.learner,
        trainer=tuned.trainer,
    )
    for name, change in VARIANTS.items():
        before, after = asdict(config), asdict(change(config))
        changed = [
            (group, field)
            for group in before
            for field in (before[group] if isinstance(before[group], dict) else ())
            if before[group][field] != after[group][field]
        ]
        assert (0 if name == "as given" else 1) <= len(changed) <= 2, name
        assert len({group for group, _ in changed}) <= 1, name


def test_a_run_has_learned_when_its_share_first_reaches_the_goal() -> None:
    below, above = 10.0 * LEARNED_SHARE - 0.1, 10.0 * LEARNED_SHARE + 0.1
    learned = RunResult.of("puct", report(0.0, below, above, below))
    assert learned.reached == Spent(120.0, 20, 2)
    assert learned.share == pytest.approx(LEARNED_SHARE - 0.01)
    assert learned.minutes == (0.0, 1.0, 2.0, 3.0)
    assert learned.shares == pytest.approx((0.0, below / 10, above / 10, below / 10))
    assert RunResult.of("puct", report(0.0, below)).reached is None


def test_an_unknown_way_is_refused_before_anything_is_learned() -> None:
    with pytest.raises(SettingsError, match=r"no variant 'magic', expected one of as given, puct"):
        plan(["puct", "magic"], [0])


def test_a_plan_makes_the_runs_of_one_seed_before_those_of_the_next() -> None:
    planned = plan(["puct", "as given", "puct"], range(4, 6))
    assert planned == [("puct", 4), ("as given", 4), ("puct", 5), ("as given", 5)]


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[LearnConfig]:
    """Replaces learning by instant runs and lists their settings. Seed 9 diverges, seed 10 is interrupted."""
    asked: list[LearnConfig] = []

    def learn(config: LearnConfig) -> LearnReport:
        asked.append(config)
        if config.seed == 9:
            raise ServiceError("learning diverged: 50 updates in a row were not finite")
        if config.seed == 10:
            raise KeyboardInterrupt
        return report(0.0, 3.0, 5.0, seed=config.seed)

    monkeypatch.setattr("studies.compare.learn", learn)
    return asked


PUCT = [("puct", 0), ("puct", 1)]


def test_a_run_is_made_with_its_way_and_seed(learned: list[LearnConfig]) -> None:
    config = LearnConfig(minutes=3.0)
    runs = list(compare(config, [("as given", 4), ("25 simulations", 5)]))
    assert [(run.variant, run.seed, run.share) for run in runs] == [
        ("as given", 4, 0.5),
        ("25 simulations", 5, 0.5),
    ]
    assert learned == [
        replace(config, seed=4),
        replace(config, seed=5, search=replace(config.search, simulations=25)),
    ]


def test_a_recorded_run_is_read_back_and_not_repeated(tmp_path: Path, learned: list[LearnConfig]) -> None:
    config, folder = LearnConfig(), tmp_path / "new" / "folder"
    first = list(compare(config, PUCT[:1], CompareRecord(folder, config)))
    again = CompareRecord(folder, config)
    assert again.runs() == first
    assert list(compare(config, PUCT, again))[:1] == first
    assert [(asked.search.selection, asked.seed) for asked in learned] == [("puct", 0), ("puct", 1)]
    assert {path.name for path in folder.iterdir()} == {"puct-0.json", "puct-1.json"}
    saved = json.loads((folder / "puct-1.json").read_text())
    assert (saved["run"]["variant"], saved["run"]["seed"], saved["run"]["share"]) == ("puct", 1, 0.5)
    assert saved["run"]["reached"] == {"seconds": 120.0, "episodes": 20, "updates": 2}
    assert (saved["run"]["minutes"], saved["run"]["shares"]) == ([0.0, 1.0, 2.0], [0.0, 0.3, 0.5])
    assert (saved["settings"]["minutes"], saved["settings"]["search"]["selection"]) == (5.0, "puct")


def test_a_run_is_saved_before_the_next_one_begins(tmp_path: Path, learned: list[LearnConfig]) -> None:
    config = LearnConfig()
    record = CompareRecord(tmp_path, config)
    runs = compare(config, [("puct", 0), ("puct", 10), ("puct", 1)], record)
    finished = next(runs)
    with pytest.raises(KeyboardInterrupt):
        next(runs)
    assert CompareRecord(tmp_path, config).runs() == [finished]
    assert [asked.seed for asked in learned] == [0, 10]


def test_processes_share_a_record(tmp_path: Path, learned: list[LearnConfig]) -> None:
    config = LearnConfig()
    mine, others = CompareRecord(tmp_path, config), CompareRecord(tmp_path, config)
    runs = compare(config, PUCT, mine)
    first = next(runs)
    second = list(compare(config, [("puct", 1), ("as given", 0)], others))
    assert [first, *runs] == [first, second[0]]  # the other process recorded ("puct", 1) first
    assert len(learned) == 3
    assert sorted(run.variant for run in mine.runs()) == ["as given", "puct", "puct"]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"minutes": 20.0}, "minutes 5.0, not 20.0;"),
        ({"market": Market.GBM}, "market ou, not gbm;"),
        (
            {"environment": EnvironmentConfig(reward=RewardScheme.AMDDP1)},
            "environment.reward pnl, not amddp1;",
        ),
        ({"learner": LearnerConfig(n_step=7)}, "learner.n_step 10, not 7;"),
    ],
)
def test_a_record_of_other_settings_is_refused_by_name(
    tmp_path: Path, learned: list[LearnConfig], change: dict[str, Any], difference: str
) -> None:
    config = LearnConfig(
        environment=EnvironmentConfig(reward=RewardScheme.PNL), learner=LearnerConfig(n_step=10)
    )
    list(compare(config, PUCT, CompareRecord(tmp_path, config)))
    other = replace(config, **change)
    with pytest.raises(SettingsError, match=f"puct-0.json: made with other settings: {difference}"):
        CompareRecord(tmp_path, other).runs()
    with pytest.raises(SettingsError, match=difference):
        next(compare(other, PUCT, CompareRecord(tmp_path, other)))
    assert len(learned) == 2


def test_a_record_of_a_way_whose_definition_changed_is_refused(
    tmp_path: Path, learned: list[LearnConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LearnConfig()
    list(compare(config, [("25 simulations", 0)], CompareRecord(tmp_path, config)))
    monkeypatch.setitem(
        VARIANTS,
        "25 simulations",
        lambda config: replace(config, search=replace(config.search, simulations=24)),
    )
    with pytest.raises(SettingsError, match=r"search\.simulations 25, not 24"):
        CompareRecord(tmp_path, config).runs()
    assert learned


def test_errors_name_a_damaged_or_renamed_file(tmp_path: Path, learned: list[LearnConfig]) -> None:
    config = LearnConfig()
    record = CompareRecord(tmp_path, config)
    list(compare(config, PUCT[:1], record))
    intact = (tmp_path / "puct-0.json").read_bytes()
    (tmp_path / "puct-1.json").write_bytes(intact)
    with pytest.raises(DataError, match=r"puct-1.json: holds the run of 'puct' with seed 0"):
        record.runs()
    (tmp_path / "puct-1.json").write_bytes(intact[:-20])
    with pytest.raises(DataError, match=r"puct-1.json: not a run of `./run compare`"):
        record.runs()
    with pytest.raises(DataError, match=r"puct-0.json: cannot hold a record"):
        next(compare(config, PUCT, CompareRecord(tmp_path / "puct-0.json", config)))
    assert len(learned) == 1


def test_a_run_that_diverges_is_recorded_and_the_others_go_on(
    tmp_path: Path, learned: list[LearnConfig]
) -> None:
    config = LearnConfig()
    runs = list(compare(config, [("puct", 9), ("puct", 1)], CompareRecord(tmp_path, config)))
    assert [(run.seed, run.share, run.reached is None) for run in runs] == [(9, None, True), (1, 0.5, False)]
    assert str(runs[0]) == "puct, seed 9: learning diverged: 50 updates in a row were not finite"
    assert CompareRecord(tmp_path, config).find("puct", 9) == runs[0]
    assert [asked.seed for asked in learned] == [9, 1]


def test_a_finished_run_is_formatted_as_one_line() -> None:
    assert str(RunResult.of("puct", report(0.0, 3.0, 5.0, seed=3))) == (
        "puct, seed 3: 0.44 of the best policy's pips after 2.00 minutes and 20 episodes; 0.50 at the end"
    )
    assert str(RunResult.of("puct", report(0.0, 3.0))) == (
        "puct, seed 0: 0.44 of the best policy's pips not reached; 0.30 at the end"
    )


def test_a_way_is_summarised_over_its_seeds_and_never_counts_as_infinite() -> None:
    quick, slow = (
        RunResult.of("puct", report(0.0, 5.0)),
        RunResult.of("puct", report(0.0, 1.0, 2.0, 6.0, seed=1)),
    )
    never = RunResult.of("puct", report(0.0, 3.4, seed=2))
    diverged = RunResult("as given", 0, (), (), None, None, failure="learning diverged")
    puct, given = summaries([quick, diverged, slow, never])
    assert (puct.variant, puct.num_runs, puct.num_reached, puct.num_failed) == ("puct", 3, 2, 0)
    assert puct.median_minutes == Range(3.0, 1.0, math.inf)
    assert puct.median_episodes == Range(30.0, 10.0, math.inf)
    assert puct.mean_share is not None
    assert puct.mean_share.value == pytest.approx((0.5 + 0.6 + 0.34) / 3)
    assert (puct.mean_share.low, puct.mean_share.high) == pytest.approx((0.34, 0.6))
    assert (given.num_runs, given.num_reached, given.num_failed) == (1, 0, 1)
    assert given.median_minutes == Range(math.inf, math.inf, math.inf)
    assert given.mean_share is None
    (both,) = summaries([quick, never])
    assert both.median_minutes == Range(math.inf, 1.0, math.inf)


def test_the_picture_has_a_curve_for_every_way_that_did_not_diverge(tmp_path: Path) -> None:
    quick = [RunResult.of("as given", report(0.0, 3.0, 6.0, seed=seed)) for seed in (0, 1)]
    slow = [RunResult.of("puct", report(0.0, 1.0, 2.0, seed=seed)) for seed in (0, 1)]
    diverged = [
        RunResult(variant, 2, (), (), None, None, failure="learning diverged")
        for variant in ("puct", "25 simulations")
    ]
    draw_comparison([*quick, *slow, *diverged], tmp_path / "variants.png")
    blue, orange, green = (
        pixels_of(tmp_path / "variants.png", colour)[:, :978]  # the legend is to the right
        for colour in ("#1f77b4", "#ff7f0e", "#2ca02c")
    )
    assert blue.shape == (550, 978)
    assert columns_of(blue) > 0.8
    assert columns_of(orange) > 0.8
    assert not green.any()
    for rising in (blue, orange):
        assert height_of(rising, 0.2, 0.3) < height_of(rising, 0.8, 0.9)
    assert height_of(blue, 0.8, 0.9) > height_of(orange, 0.8, 0.9) + 0.2
