"""The study `learn`: a short run with a small network, its evaluations, goals, record and picture."""

import json
import threading
from collections import defaultdict
from dataclasses import replace
from itertools import count
from pathlib import Path

import duckdb
import numpy as np
import pytest

import shared.adapters.picture
from services.selfplay.config import SelfPlayConfig
from services.trainer.config import LearnerConfig, TrainerConfig
from shared.agent.agent import Agent
from shared.environment.environment import EnvironmentConfig
from shared.environment.reward import RewardScheme
from shared.errors import DataError, ServiceError, SettingsError
from shared.market.session import Split, index_sessions
from shared.market.synthetic import Market, synthesize
from shared.model.config import ModelConfig
from shared.numeric import Int64
from studies import learn as learn_module
from studies.curve import draw_curve
from studies.learn import GOAL_SHARES, CurvePoint, LearnConfig, LearnReport, Spent, learn
from studies.scores import Scores
from tests.studies.pictures import columns_of, height_of, pixels_of

CONFIG = LearnConfig(
    market=Market.OU,
    minutes=0.5,
    imitation_minutes=0.05,
    num_bars=25_000,
    curve_points=2,
    curve_sessions=3,
    environment=EnvironmentConfig(reward=RewardScheme.PNL, session_bars=30),
    model=ModelConfig(temporal_channels=8, static_channels=4, value_bins=31),
    selfplay=SelfPlayConfig(lanes=4),
    learner=LearnerConfig(batch_size=8, unroll_steps=2),
    trainer=TrainerConfig(min_replay_steps=60, samples_per_insert=0.5),
)


def run(config: LearnConfig = CONFIG, costs: list[Spent] | None = None) -> LearnReport:
    """Run the study with a fake clock that advances by 0.1 s per reading in each thread."""
    ticks: defaultdict[int, count[int]] = defaultdict(count)
    return learn(
        config,
        clock=lambda: next(ticks[threading.get_ident()]) / 10.0,
        progress=None if costs is None else costs.append,
    )


@pytest.fixture(scope="module")
def report() -> LearnReport:
    return run()


def test_players_are_evaluated_in_exactly_the_test_sessions(report: LearnReport) -> None:
    sessions = index_sessions(synthesize(Market.OU, CONFIG.num_bars, CONFIG.seed))
    assert np.array_equal(report.starts, sessions.non_overlapping(Split.TEST))
    assert set(report.players) == {"best", "agent", "promoted", "nothing", "random"}
    assert all(len(scores.pips) == len(report.starts) for scores in report.players.values())
    assert report.imitation is not None
    assert len(report.imitation.test.pips) == len(report.starts)
    assert len(report.imitation.validation.pips) == CONFIG.curve_sessions


def test_the_curve_covers_the_run_from_before_learning_to_its_end(report: LearnReport) -> None:
    first, *_, last = report.curve
    assert first.spent == Spent(0.0, 0, 0)
    assert last.spent == report.spent
    assert 30.0 <= last.spent.seconds < 31.0
    assert last.spent.episodes % CONFIG.selfplay.lanes == 0
    assert last.spent.updates > 10
    assert len(report.curve) == 3
    assert all(len(point.agent.pips) == CONFIG.curve_sessions for point in report.curve)


def test_runs_with_the_same_seed_and_clock_give_the_same_results(report: LearnReport) -> None:
    costs: list[Spent] = []
    again = run(costs=costs)
    assert np.array_equal(again.players["agent"].pips, report.players["agent"].pips)
    assert np.array_equal(again.players["random"].pips, report.players["random"].pips)
    assert costs[0] == report.curve[0].spent
    assert costs[-1] == report.spent


def test_the_ema_of_the_weights_plays_and_is_evaluated_if_it_is_enabled(report: LearnReport) -> None:
    frozen = replace(CONFIG.learner, average_decay=1.0 - 1e-9)  # the average stays at version 0
    holding = replace(CONFIG.trainer, hold_logit=0.01)  # so that no two actions are equally likely
    averaged = run(replace(CONFIG, learner=frozen, trainer=holding, imitation_minutes=0.0))
    assert averaged.spent.updates > 10
    for done, curve_is_flat in ((averaged, True), (report, False)):
        first, *_, last = (point.agent.pips for point in done.curve)
        assert np.array_equal(first, last) is curve_is_flat


def test_results_are_given_as_shares_of_the_best_policy_and_of_its_imitation(report: LearnReport) -> None:
    players = {"best": trading(1.0, 8.0), "agent": trading(0.5, 3.0), "nothing": trading(0.0, 0.0)}
    assert report.imitation is not None
    judged = replace(
        report, players=players, imitation=replace(report.imitation, test=trading(1.0, 4.0))
    ).summaries()
    assert [row.name for row in judged] == ["best", "agent", "nothing", "imitation"]
    assert [row.pips.value for row in judged] == [8.0, 3.0, 0.0, 4.0]
    assert [row.trades for row in judged] == [1.0, 0.5, 0.0, 1.0]
    for of_best in (
        [row.share_of_reward for row in judged],
        [row.share_of_pips for row in judged],
    ):
        assert [share and share.value for share in of_best] == [1.0, 0.375, 0.0, 0.5]
    for of_imitation in (
        [row.imitation_share_of_reward for row in judged],
        [row.imitation_share_of_pips for row in judged],
    ):
        assert [share and share.value for share in of_imitation] == [2.0, 0.75, 0.0, 1.0]


def test_there_is_no_share_of_an_imitation_that_earns_nothing(report: LearnReport) -> None:
    assert report.imitation is not None
    nothing = np.zeros(len(report.starts))
    idle = Scores(nothing, nothing, nothing.astype(np.int64))
    worthless = replace(report, imitation=replace(report.imitation, test=idle))
    assert [row.imitation_share_of_pips for row in worthless.summaries()] == [None] * 6
    (goal,) = replace(worthless, promoted_by_minutes={15.0: report.players["best"]}).goals()
    assert (goal.reached, goal.met) == (None, False)
    without = replace(report, imitation=None)
    assert [row.name for row in without.summaries()] == list(report.players)
    assert [row.imitation_share_of_pips for row in without.summaries()] == [None] * 5


def test_random_actions_lose_and_the_best_policy_earns(report: LearnReport) -> None:
    pips = {row.name: row.pips.value for row in report.summaries()}
    assert pips["random"] < pips["nothing"] == 0.0 < pips["best"]


def test_the_goals_on_a_predictable_market_are_shares_of_the_reward_of_the_imitation(
    report: LearnReport,
) -> None:
    assert report.imitation is not None
    bound = replace(report.imitation, test=trading(1.0, 10.0), validation=trading(1.0, 10.0))
    for promoted_by_minutes, met in (
        ({15.0: 9.1}, [True]),
        ({15.0: 8.9}, [False]),
        ({15.0: 9.1, 60.0: 9.1}, [True, False]),
        ({15.0: 8.9, 60.0: 9.8}, [False, True]),
        ({}, []),
    ):
        scores = {minutes: trading(1.0, pips) for minutes, pips in promoted_by_minutes.items()}
        done = replace(report, imitation=bound, promoted_by_minutes=scores)
        assert [goal.met for goal in done.goals()] == met, promoted_by_minutes
    assert replace(done, imitation=None).goals() == []


def test_the_best_version_so_far_in_validation_is_tested_when_the_minutes_of_a_goal_have_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second and third evaluations are equally good, so the later one wins. It is tested only once."""
    assert GOAL_SHARES == {15.0: 0.9, 60.0: 0.97}
    evaluated: list[int] = []
    tested: list[int] = []

    def scripted(agent: Agent, market: object, starts: Int64, *_: object) -> Scores:
        if len(starts) == CONFIG.curve_sessions:
            evaluated.append(agent.version)
            return trading(0.0, 5.0 if len(evaluated) in (2, 3) else 1.0)
        tested.append(agent.version)
        return trading(0.0, float(agent.version))

    monkeypatch.setattr(learn_module, "score_agent", scripted)
    ticks: defaultdict[int, count[int]] = defaultdict(count)
    seconds = [0.0]
    done = learn(
        replace(CONFIG, minutes=40.0, curve_points=1, imitation_minutes=0.0),
        clock=lambda: 10.0 * next(ticks[threading.get_ident()]),
        progress=lambda spent: seconds.append(spent.seconds),
    )
    intervals = np.diff([point.spent.seconds for point in done.curve])
    assert intervals.max() < 180.0 + np.diff(seconds).max()
    promoted = evaluated[2]
    assert done.promoted == done.curve[2].spent
    assert done.promoted.seconds < 900.0
    assert list(done.promoted_by_minutes) == [15.0]
    assert done.promoted_by_minutes[15.0].pips[0] == done.players["promoted"].pips[0] == promoted
    assert done.players["agent"].pips[0] == evaluated[-1] > promoted
    assert tested == [promoted, evaluated[-1]]


def test_learned_is_the_cost_when_an_evaluation_first_reaches_the_share_of_the_imitation(
    report: LearnReport,
) -> None:
    assert report.imitation is not None
    bound = replace(report.imitation, validation=trading(1.0, 10.0))
    curve = tuple(
        CurvePoint(Spent(60.0 * n, 10 * n, n), trading(1.0, pips), trading(1.0, 20.0))
        for n, pips in enumerate((0.0, 7.9, 8.1, 7.0))
    )
    assert replace(report, imitation=bound, curve=curve).learned == Spent(120.0, 20, 2)
    assert replace(report, imitation=bound, curve=curve[:2]).learned is None


def test_a_run_writes_a_record_that_duckdb_can_read(tmp_path: Path) -> None:
    costs: list[Spent] = []
    ticks = count()
    report = learn(CONFIG, clock=lambda: next(ticks) / 10.0, record=tmp_path, progress=costs.append)
    for table, expected in (
        ("updates", report.spent.updates),
        ("episodes", report.spent.episodes),
        ("versions", len(report.curve)),
    ):
        [[rows]] = duckdb.execute(f"select count(*) from '{tmp_path}/{table}-*.parquet'").fetchall()
        assert rows == expected, table
    [[pips]] = duckdb.execute(
        f"select last(pips order by version) from '{tmp_path}/versions-*.parquet'"
    ).fetchall()
    assert pips == pytest.approx(report.curve[-1].agent.pips.mean())
    settings = json.loads((tmp_path / "settings.json").read_text())[0]["settings"]
    assert settings["learner"]["batch_size"] == CONFIG.learner.batch_size


def test_the_goals_on_an_unpredictable_market_are_few_trades_and_a_small_loss(report: LearnReport) -> None:
    idle = replace(report, config=replace(CONFIG, market=Market.GBM))
    assert [goal.met for goal in replace(idle, players={"agent": trading(0.2, -0.9)}).goals()] == [True, True]
    assert [goal.met for goal in replace(idle, players={"agent": trading(0.4, -1.1)}).goals()] == [False] * 2


def trading(trades: float, pips: float) -> Scores:
    """Scores of ten sessions with this mean number of trades, and this reward and net pips in each."""
    made = np.zeros(10, np.int64)
    made[: round(10 * trades)] = 1
    return Scores(np.full(10, pips), np.full(10, pips), made)


def test_the_picture_shows_the_rising_curve_below_the_best_policy(
    report: LearnReport, tmp_path: Path
) -> None:
    curve = tuple(
        CurvePoint(Spent(60.0 * n, 10 * n, n), trading(1.0, pips), trading(1.0, 10.0))
        for n, pips in enumerate((0.0, 4.0, 8.0))
    )
    players = {"nothing": trading(0.0, 0.0), "random": trading(0.0, -50.0)}
    learned = replace(report, curve=curve, promoted=curve[-1].spent, players=players, imitation=None)
    draw_curve(learned, tmp_path / "curve.png")
    blue = pixels_of(tmp_path / "curve.png", "#2563eb")[60:]  # below the legend
    dark = pixels_of(tmp_path / "curve.png", "#1f2933", tolerance=110)[60:]
    assert columns_of(blue) > 0.8
    assert height_of(blue, 0.2, 0.3) < height_of(blue, 0.5, 0.6) < height_of(blue, 0.8, 0.9)
    lines = np.flatnonzero(dark.mean(axis=1) > 0.8)  # pixel rows of the best policy and of the axis
    assert lines[0] < np.flatnonzero(blue.any(axis=1))[0]


def test_without_matplotlib_the_error_names_the_extra(
    report: LearnReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.adapters.picture, "find_spec", lambda _: None)
    with pytest.raises(ServiceError, match="plots"):
        draw_curve(report, tmp_path / "curve.png")


def test_invalid_settings_are_rejected() -> None:
    with pytest.raises(DataError, match="no train session"):
        run(replace(CONFIG, num_bars=400))
    with pytest.raises(SettingsError, match="minutes"):
        replace(CONFIG, minutes=0.0)
    with pytest.raises(SettingsError, match="imitation_minutes"):
        replace(CONFIG, imitation_minutes=-1.0)
    with pytest.raises(SettingsError, match="curve_points"):
        replace(CONFIG, curve_points=0)
