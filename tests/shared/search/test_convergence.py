"""With many simulations the search finds the exact values of random problems and of some solved by hand."""

from collections.abc import Callable

import numpy as np
import pytest

from shared.search.config import SearchConfig, Selection
from shared.search.search import search
from tests.oracles.expectimax import action_values
from tests.shared.search.tables import TableModel, ending_problem, finite_game, free_rules, set_true_values

BOTH = pytest.mark.parametrize("selection", list(Selection))
ONE_ROOT = np.zeros(1, np.int64)
SIMULATIONS, DISCOUNT = 2000, 0.9
#: Outcome probabilities of the problems solved by hand, and their unit in pips. The unit is small because
#: about √N of N visits of puct go to worse actions, and their cost lowers the mean in proportion to the unit.
PROBABILITIES, UNIT = [0.5, 0.3, 0.2], 0.06


def _insurance() -> tuple[TableModel, list[float]]:
    """The first action gains 1 in four cases of five and loses 8 in the fifth; the second does nothing.

    Q = 0.8 · 1 - 0.2 · 8 = -0.8, and 0.
    """
    model = ending_problem(2, 2, PROBABILITIES)
    model.rewards[0, 0] = [1, 1, -8]
    return model, [-0.8, 0.0]


def _patience() -> tuple[TableModel, list[float]]:
    """The first action pays 0.2 now; the second costs 0.1 and leads to a state for each outcome.

    In the first state the better action pays 1, in the second 0.5 · 0.8 - 0.5 · 0.2 = 0.3, in the third all
    lose 1: Q = -0.1 + 0.9 (0.5 · 1 + 0.3 · 0.3 - 0.2 · 1) = 0.251.
    """
    model = ending_problem(5, 2, PROBABILITIES)
    model.rewards[0] = [[0.2] * 3, [-0.1] * 3]
    model.next_state[0, 1] = [1, 2, 3]
    model.rewards[1, 0] = 1.0
    model.rewards[2, 1] = [0.5, 0.5, -0.5]
    model.rewards[3] = -1.0
    return model, [0.2, 0.251]


def _look_first() -> tuple[TableModel, list[float]]:
    """Two actions bet 1 on an outcome now; the third waits, sees the outcome, and can then bet on it.

    Q = 0.5, 0.3 and γ = 0.9: a known outcome is worth more than an average over all of them.
    """
    model = ending_problem(5, 3, PROBABILITIES)
    model.rewards[0, 0, 0] = model.rewards[0, 1, 1] = 1.0
    model.next_state[0, 2] = [1, 2, 3]
    for state in (1, 2, 3):
        model.rewards[state, state - 1] = 1.0
    return model, [0.5, 0.3, 0.9]


WORKED = pytest.mark.parametrize("problem", [_insurance, _patience, _look_first])


@BOTH
@WORKED
@pytest.mark.parametrize("values", ["zero", "correct"])
def test_problems_solved_by_hand(
    selection: Selection, problem: Callable[[], tuple[TableModel, list[float]]], values: str
) -> None:
    """The model knows probabilities and rewards; its values are zero or correct."""
    model, worth = problem()
    model.rewards *= UNIT
    exact = UNIT * np.array(worth)
    if values == "correct":
        for state in range(1, len(model.values)):
            model.q_values[state] = action_values(model, state, 1, DISCOUNT)
            model.values[state] = model.q_values[state].max()
        model.q_values[0] = exact
    best = int(exact.argmax())
    rules, config = free_rules(len(exact)), SearchConfig(selection, SIMULATIONS, DISCOUNT)
    result = search(model, model.roots(ONE_ROOT), rules, config)
    within = 2e-3 if selection is Selection.GUMBEL else 1e-2
    assert result.actions[0] == best
    assert result.q_values[0, best] == pytest.approx(exact[best], abs=within)
    assert result.values[0] == pytest.approx(exact[best], abs=within)
    if selection is Selection.GUMBEL:  # sequential halving visits every action often
        np.testing.assert_allclose(result.q_values[0], exact, atol=within)


def _spread(model: TableModel) -> None:
    """Change nothing."""


def _rare_ruin(model: TableModel) -> None:
    """The first action is better except for a rare outcome with a large loss."""
    model.probabilities[0, 0] = [0.6, 0.3, 0.1]
    model.rewards[0, 0] = [0.1, 0.1, -1.5]
    model.rewards[0, 1] = 0.0


def _bait(model: TableModel) -> None:
    """The first action pays now and leads to losses; the second costs now and leads to gains."""
    model.rewards[0, 0], model.rewards[0, 1] = 0.1, -0.1
    model.rewards[1:4] = -0.3
    model.rewards[4:7] = 0.3


PROBLEMS = pytest.mark.parametrize("problem", [_spread, _rare_ruin, _bait])


def _two_plies(problem: Callable[[TableModel], None]) -> tuple[TableModel, list[float]]:
    """A problem with 2 actions, 3 outcomes and 2 plies, and the exact Q-values of the root."""
    model = finite_game(np.random.default_rng(3), plies=2)
    model.rewards *= 0.1
    model.values *= 0.1
    model.q_values *= 0.1
    problem(model)
    return model, action_values(model, 0, plies=2, discount=DISCOUNT)


@BOTH
@PROBLEMS
def test_a_correct_model_leads_to_the_exact_values(
    selection: Selection, problem: Callable[[TableModel], None]
) -> None:
    model, exact = _two_plies(problem)
    set_true_values(model, plies=2, discount=DISCOUNT)
    model.values[0] = 0.0  # the search must find the value of the root
    config = SearchConfig(selection, SIMULATIONS, discount=DISCOUNT)
    result = search(model, model.roots(ONE_ROOT), free_rules(2), config)
    best = int(np.argmax(exact))
    assert result.actions[0] == best
    assert result.q_values[0, best] == pytest.approx(exact[best], abs=1e-2)
    assert result.values[0] == pytest.approx(exact[best], abs=1e-2)


@PROBLEMS
def test_puct_converges_even_with_wrong_model_values(problem: Callable[[TableModel], None]) -> None:
    model, exact = _two_plies(problem)
    errors = []
    for simulations in (125, 1000, 8000):
        config = SearchConfig(Selection.PUCT, simulations, discount=DISCOUNT)
        result = search(model, model.roots(ONE_ROOT), free_rules(2), config)
        errors.append(abs(float(result.values[0]) - max(exact)))
    assert result.actions[0] == int(np.argmax(exact))
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2
