"""The gain of a policy target: one problem solved by hand, general bounds, and the picture."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from benchmarks.improvement import (
    RULES,
    UNVISITED_FIRST,
    Improvement,
    ImprovementReport,
    Problems,
    bench_improvement,
    draw_problems,
    policy_targets,
    unvisited_first_visits,
)
from benchmarks.improvement_picture import COLOURS, draw_improvement
from shared.errors import SettingsError
from tests.cli.benches import bench, bench_document


def by_hand(q_estimates: list[float]) -> Problems:
    """One root with a uniform prior and true values 0, 1, 2, 3; all outcomes of an action are equal."""
    estimates = np.array([q_estimates])
    return Problems(
        logits=np.zeros((1, 4)),
        outcome_probabilities=np.full((1, 4, 3), 1.0 / 3.0),
        q_values=np.array([[0.0, 1.0, 2.0, 3.0]]),
        root_estimates=np.zeros(1),
        q_estimates=estimates,
        outcome_estimates=np.repeat(estimates[..., None], 3, axis=2),
    )


def test_gains_use_the_true_values() -> None:
    problems = by_hand([3.0, 2.0, 1.0, 0.0])
    assert problems.gains(np.full((1, 4), 0.25)) == pytest.approx([0.0])
    assert problems.gains(np.array([[0.0, 0.0, 0.5, 0.5]])) == pytest.approx([2.5 - 1.5])
    assert problems.best_gains == pytest.approx([3.0 - 1.5])


@pytest.mark.parametrize(("q_estimates", "best"), [([0.0, 1.0, 2.0, 3.0], 3), ([3.0, 2.0, 1.0, 0.0], 0)])
def test_a_root_computed_by_hand(q_estimates: list[float], best: int) -> None:
    """With five simulations every rule except puct visits each action once, then the best one again."""
    problems = by_hand(q_estimates)
    visits = np.ones(4)
    visits[best] = 2.0
    # σ = (50 + max N) · 0.1 · Q scaled to [0, 1]; the prior is uniform.
    weights = np.exp(5.2 * np.array(q_estimates) / 3.0)
    assert policy_targets(problems, UNVISITED_FIRST, 5)[0] == pytest.approx(visits / 5.0)
    assert policy_targets(problems, "gumbel", 5)[0] == pytest.approx(weights / weights.sum(), rel=1e-5)


def test_puct_computed_by_hand() -> None:
    """Scores are Q scaled to 0, 1/3, 2/3, 1, plus 1/4 · √N/(1 + n) · 1.25.

    The score of the last action and the best other score after N visits are 1.31 and 0.98 for N = 1, 1.22 and
    1.11 for N = 2, 1.18 and 1.21 for N = 3, where the third action is visited, 1.21 and 0.98 for N = 4, and
    1.17 and 1.03 for N = 5.
    """
    policies = policy_targets(by_hand([0.0, 1.0, 2.0, 3.0]), "puct", 5)
    assert policies[0] == pytest.approx([0.0, 0.0, 0.2, 0.8])


def test_five_visits_of_unvisited_first_are_always_a_permutation_of_2_1_1_1() -> None:
    problems = draw_problems(500, error=1.0, spread=1.0, seed=2)
    visits = unvisited_first_visits(problems, 5, np.random.default_rng(3))
    assert np.array_equal(np.sort(visits, axis=1), np.tile([1.0, 1.0, 1.0, 2.0], (500, 1)))
    assert len(np.unique(visits, axis=0)) == 4


def test_the_first_visit_backs_up_the_expectation_and_later_ones_draw_an_outcome() -> None:
    """The outcomes of action 0 are worth -8, 1 and 10, with mean 1."""
    problems = by_hand([1.0, 0.9, 0.0, 0.0])
    problems.outcome_estimates[0, 0] = [-8.0, 1.0, 10.0]
    problems.logits[0] = [0.0, 0.0, -40.0, -40.0]
    seen = {
        tuple(unvisited_first_visits(problems, 6, np.random.default_rng(seed))[0].tolist())
        for seed in range(40)
    }
    # The fifth simulation selects action 0 by its expectation. The sixth selects it again only if 10 was
    # drawn: after 1, the scores are 1 + 0.47 and 0.9 + 0.70.
    assert seen == {(3.0, 1.0, 1.0, 1.0), (2.0, 2.0, 1.0, 1.0)}


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_an_exact_model_has_the_true_values(spread: float) -> None:
    problems = draw_problems(200, error=0.0, spread=spread, seed=4)
    expectation = (problems.outcome_probabilities * problems.outcome_estimates).sum(axis=2)
    assert np.allclose(expectation, problems.q_values)
    assert np.array_equal(problems.q_estimates, problems.q_values)
    assert problems.outcome_estimates.std(axis=2).max() == pytest.approx(0.0, abs=1e-12) or spread > 0.0


def test_an_error_changes_the_model_and_not_the_true_values() -> None:
    exact, wrong = (draw_problems(2_000, error=error, seed=5) for error in (0.0, 1.0))
    assert np.array_equal(exact.q_values, wrong.q_values)
    assert np.array_equal(exact.logits, wrong.logits)
    for name in ("root_estimates", "q_estimates", "outcome_estimates"):
        errors = getattr(wrong, name) - getattr(exact, name)
        assert errors.mean() == pytest.approx(0.0, abs=0.1)
        assert errors.std() == pytest.approx(1.0, abs=0.1)


@pytest.fixture(scope="module")
def report() -> ImprovementReport:
    return bench_improvement(problems=400, simulations=(2, 5))


def test_every_rule_is_measured_with_both_models(report: ImprovementReport) -> None:
    assert [(row.error, row.rule, row.simulations) for row in report.rows] == [
        (error, rule, count) for error in (0.0, 1.0) for rule in RULES for count in (2, 5)
    ]


def test_no_rule_gains_more_than_the_best_policy_and_goals_are_met(report: ImprovementReport) -> None:
    assert all(row.gain < report.best_gain for row in report.rows)
    assert [goal.met for goal in report.goals] == [True, True, True]
    assert report.find("gumbel", 5, 0.0).gain > 3.0 * report.find(UNVISITED_FIRST, 5, 0.0).gain


def test_two_visits_of_unvisited_first_gain_nothing(report: ImprovementReport) -> None:
    row = report.find(UNVISITED_FIRST, 2, 0.0)
    assert abs(row.gain) < 4.0 * row.standard_error


def test_a_missed_goal_is_reported() -> None:
    rows = tuple(
        Improvement(rule, 5, error, gain, 0.01, worse=0.25)
        for error in (0.0, 1.0)
        for rule, gain in zip(RULES, (0.8, 0.9, 0.1), strict=True)
    )
    goals = ImprovementReport(100, 0.0, 0, 1.0, rows).goals
    assert [goal.met for goal in goals] == [False, False, False]
    assert goals[1].value == 75.0


def test_an_unknown_rule_is_an_error() -> None:
    with pytest.raises(SettingsError, match="unvisited-first"):
        policy_targets(by_hand([0.0, 0.0, 0.0, 0.0]), "best", 5)


def test_the_picture_has_every_rule(report: ImprovementReport, tmp_path: Path) -> None:
    draw_improvement(report, tmp_path / "improvement.png")
    pixels = imread(tmp_path / "improvement.png")[..., :3]
    pixels = pixels[: len(pixels) * 4 // 5]  # without the legend
    for colour in COLOURS:
        is_colour = np.abs(pixels - to_rgb(colour)).max(axis=-1) < 1 / 255
        for panel in np.array_split(is_colour, 2, axis=1):
            assert panel.sum() > 100, colour


def test_the_command_prints_gains_and_goals(tmp_path: Path) -> None:
    options = ("improvement", "--problems", "50", "--spread", "0.5", "--out", str(tmp_path / "gains.png"))
    document = bench_document(*options)
    assert (document["benchmark"], document["problems"], document["spread"]) == ("improvement", 50, 0.5)
    assert {row["rule"] for row in document["rows"]} == set(RULES)
    assert len(document["goals"]) == 3
    assert (tmp_path / "gains.png").is_file()
    assert all(rule in bench(*options) for rule in RULES)
