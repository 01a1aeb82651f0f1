"""`learn`, `compare` and `discount` pass their options on and print the results."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

import studies.discounting
import studies.learn
from cli.main import app
from shared.errors import DataError, SettingsError
from studies.discounting import Discounted, judge_discounts
from studies.learn import LearnConfig, LearnReport
from tests.cli.benches import study, study_document
from tests.studies.test_compare import report
from tests.studies.test_learn import CONFIG, run


@pytest.fixture
def short_run(monkeypatch: pytest.MonkeyPatch) -> list[LearnConfig]:
    """Replace the study of `learn` by a small one; returns the configurations that it was called with."""
    asked: list[LearnConfig] = []

    def learn(config: LearnConfig, **_: object) -> object:
        asked.append(config)
        return run()

    monkeypatch.setattr(studies.learn, "learn", learn)
    return asked


def test_learn_reports_every_player_and_draws_its_curve(tmp_path: Path, short_run: list[LearnConfig]) -> None:
    picture = tmp_path / "curve.png"
    options = ("--market", "ou", "--reward", "amddp1", "--minutes", "2", "--seed", "3", "--out", str(picture))
    document = study_document("learn", *options, "--imitation-minutes", "0.5")
    (asked,) = short_run
    assert (asked.market, asked.environment.reward, asked.minutes, asked.seed) == ("ou", "amddp1", 2.0, 3)
    assert asked.imitation_minutes == 0.5
    names = {player["name"] for player in document["players"]}
    assert names == {"best", "agent", "promoted", "nothing", "random", "imitation"}
    assert document["imitation_spent"]["updates"] > 0
    assert document["spent"]["episodes"] > 0
    assert len(document["curve"]) == CONFIG.curve_points + 1
    assert picture.is_file()


def test_learn_prints_tables_that_fit_80_columns(tmp_path: Path, short_run: list[LearnConfig]) -> None:
    printed = study("learn", "--out", str(tmp_path / "curve.png"))
    for title in ("Share of the net pips", "Share of the reward"):
        assert title in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed  # no cell is cut
    assert all(player in printed for player in ("best", "agent", "nothing", "random", "imitation"))
    assert short_run


def test_learn_does_not_overwrite_an_existing_record(
    tmp_path: Path, short_run: list[LearnConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    older = tmp_path / "record" / "updates-000.parquet"
    older.parent.mkdir()
    older.write_text("an earlier run's")
    with pytest.raises(DataError, match="record is not empty"):
        study("learn", "--record", "record")
    assert older.read_text() == "an earlier run's"
    assert not short_run


@pytest.fixture
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[LearnConfig]:
    """Replace the runs of `compare` by instant ones; seed 7 is interrupted."""
    asked: list[LearnConfig] = []

    def learn(config: LearnConfig) -> LearnReport:
        if config.seed == 7:
            raise KeyboardInterrupt
        asked.append(config)
        return report(0.0, 3.0, 5.0, seed=config.seed)

    monkeypatch.setattr("studies.compare.learn", learn)
    monkeypatch.chdir(tmp_path)
    return asked


def test_compare_runs_every_variant_with_every_seed(compared: list[LearnConfig], tmp_path: Path) -> None:
    profile = tmp_path / "profile.toml"
    profile.write_text("[search]\nmin_q_span = 5.0\n[learner]\nunroll_steps = 1\n")
    options = ("--variant", "puct", "--seeds", "2", "--minutes", "1", "--profile", str(profile))
    answer = study_document("compare", *options)
    assert [config.seed for config in compared] == [0, 1]
    for config in compared:
        assert (config.search.min_q_span, config.learner.unroll_steps) == (5.0, 1)
        assert (config.search.selection, config.minutes, config.imitation_minutes) == ("puct", 1.0, 0.0)
    assert [(row["variant"], row["seed"]) for row in answer["runs"]] == [("puct", 0), ("puct", 1)]
    assert [(row["variant"], row["num_runs"]) for row in answer["variants"]] == [("puct", 2)]
    assert (tmp_path / "compare.png").stat().st_size > 1_000


def test_compare_continues_after_an_interruption(compared: list[LearnConfig], tmp_path: Path) -> None:
    options = ["compare", "--variant", "puct", "--minutes", "1", "--record", "kept", "--first-seed"]
    broken = CliRunner().invoke(app, [*options, "6", "--seeds", "3"])
    assert broken.exit_code == 130
    assert "puct, seed 6: 0.44 of the best policy's" in broken.stderr
    assert "interrupted; finished runs: 1, saved" in broken.stderr
    assert (tmp_path / "compare.png").stat().st_size > 1_000
    document = study_document(*options, "5", "--seeds", "2", "--variant", "as given")
    assert [(config.search.selection, config.seed) for config in compared] == [
        ("puct", 6),
        ("puct", 5),
        ("gumbel", 5),
        ("gumbel", 6),
    ]
    assert [(one["variant"], one["seed"]) for one in document["runs"]] == [
        ("puct", 5),
        ("puct", 6),
        ("as given", 5),
        ("as given", 6),
    ]


def test_compare_show_prints_recorded_runs_without_new_ones(compared: list[LearnConfig]) -> None:
    options = ("compare", "--minutes", "1", "--record", "kept")
    with pytest.raises(SettingsError, match="there is no run in kept"):
        study(*options, "--show")
    study(*options, "--seeds", "1", "--first-seed", "3", "--variant", "puct")
    printed = study(*options, "--show")
    assert max(map(len, printed.splitlines())) <= 80
    words = printed.replace("│", " ").split()
    assert {"puct", "variant", "reached", "(median)", "episodes", "(mean)"} <= set(words)
    assert len(compared) == 1
    with pytest.raises(SettingsError, match=r"minutes 1.0, not 2.0;"):
        study("compare", "--minutes", "2", "--record", "kept", "--show")


def test_discount_judges_every_discount(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first requested discount is computed, since each takes seconds."""
    asked: list[float] = []

    def first_of(discounts: Sequence[float], **options: int) -> list[Discounted]:
        asked.extend(discounts)
        return judge_discounts(discounts[:1], **options)

    monkeypatch.setattr(studies.discounting, "judge_discounts", first_of)
    (row,) = study_document("discount", "--bars", "20000")["discounts"]
    assert asked == [0.99, 0.995, 0.997, 0.999, 0.9995]
    assert row["discount"] == 0.99
    assert row["pips"] > 0.0
