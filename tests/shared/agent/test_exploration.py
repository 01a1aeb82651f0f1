"""Temperature, epsilon, excursions and the random streams of the lanes."""

from dataclasses import replace

import numpy as np
import pytest

from shared.agent.exploration import Excursion, Exploration, LaneDraws, RootExploration
from shared.errors import SettingsError
from shared.numeric import Bool, Float64, Int8
from shared.search.config import SearchConfig, Selection
from shared.search.model import RootNoise
from shared.search.search import SearchResult

PUCT = SearchConfig(Selection.PUCT)
DRAWS = 4000
NO_EXCURSION = np.zeros(DRAWS, np.int8)


def _result(visits: list[int]) -> SearchResult:
    tiled = np.tile(np.array(visits, np.int32), (DRAWS, 1))
    floats = np.zeros((DRAWS, 4), np.float32)
    best = np.full(DRAWS, np.argmax(visits), np.int8)
    return SearchResult(floats, floats[:, 0], floats, tiled, best, np.zeros((DRAWS, 4, 3), np.float32))


def _shares(
    exploration: Exploration, visits: list[int], legal: list[bool], config: SearchConfig = PUCT
) -> Float64:
    rng = np.random.default_rng(0)
    noise = RootNoise(rng.gumbel(size=(DRAWS, 4)), rng.standard_gamma(1.0, (DRAWS, 4)))
    draws = RootExploration(exploration, noise, rng.random((DRAWS, 2)), NO_EXCURSION)
    mask: Bool = np.tile(legal, (DRAWS, 1))
    actions: Int8 = draws.choose(_result(visits), mask, config)
    counts: Float64 = np.bincount(actions, minlength=4) / DRAWS
    return counts


FLAT = [True, True, True, False]
FOUR_ERRORS = 4 * np.sqrt(0.25 / DRAWS)


def test_temperature_one_is_proportional_to_the_visits() -> None:
    np.testing.assert_allclose(
        _shares(Exploration(1.0), [5, 3, 2, 0], FLAT), [0.5, 0.3, 0.2, 0], atol=FOUR_ERRORS
    )


def test_temperature_one_half_squares_the_visits() -> None:
    expected = np.array([25, 9, 4, 0]) / 38
    np.testing.assert_allclose(_shares(Exploration(0.5), [5, 3, 2, 0], FLAT), expected, atol=FOUR_ERRORS)


@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1e-300])
def test_temperature_zero_selects_the_most_visited_action(temperature: float) -> None:
    assert _shares(Exploration(temperature), [2, 5, 3, 0], FLAT).tolist() == [0, 1, 0, 0]


def test_epsilon_selects_any_legal_action() -> None:
    shares = _shares(Exploration(0.0, epsilon=0.3), [5, 3, 2, 0], FLAT)
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1, 0.0], atol=FOUR_ERRORS)
    assert shares[3] == 0.0


def test_gumbel_takes_the_action_of_the_search() -> None:
    shares = _shares(Exploration(1.0, epsilon=0.9), [5, 3, 2, 0], FLAT, SearchConfig(Selection.GUMBEL))
    assert shares.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("selection", list(Selection))
def test_an_excursion_starts_with_any_legal_action_and_then_holds(selection: Selection) -> None:
    rng = np.random.default_rng(0)
    noise = RootNoise(rng.gumbel(size=(DRAWS, 4)), rng.standard_gamma(1.0, (DRAWS, 4)))
    kinds = np.repeat([Excursion.FIRST, Excursion.LATER, Excursion.NONE], (3000, 500, 500)).astype(np.int8)
    draws = RootExploration(Exploration(0.0), noise, rng.random((DRAWS, 2)), kinds)
    chosen = draws.choose(_result([2, 5, 3, 0]), np.tile(FLAT, (DRAWS, 1)), SearchConfig(selection))
    shares = np.bincount(chosen[:3000], minlength=4) / 3000
    np.testing.assert_allclose(shares, [1 / 3, 1 / 3, 1 / 3, 0], atol=4 * np.sqrt(2 / 9 / 3000))
    assert (chosen[3000:3500] == 0).all()
    assert (chosen[3500:] == 1).all()  # the action of the search


def test_excursions_have_the_configured_rate_and_length() -> None:
    exploration = Exploration(excursion_rate=0.05, excursion_bars=8.0)
    kinds = LaneDraws.draw(exploration, np.arange(40), 5_000, 4, 1.0).excursion
    firsts = (kinds == Excursion.FIRST).sum()
    free = (kinds == Excursion.NONE).sum() + firsts
    assert firsts / free == pytest.approx(0.05, abs=4 * np.sqrt(0.05 / free))
    # A geometric length with mean 8 has a standard deviation of 7.5. The end of the session cuts off few.
    assert (kinds != Excursion.NONE).sum() / firsts == pytest.approx(8.0, abs=4 * 7.5 / np.sqrt(firsts))
    assert (kinds[1:][kinds[:-1] == Excursion.NONE] != Excursion.LATER).all()


def test_excursions_do_not_change_the_other_random_numbers() -> None:
    plain, with_them = (
        LaneDraws.draw(Exploration(excursion_rate=rate), np.array([7]), 30, 4, 1.0) for rate in (0.0, 0.5)
    )
    np.testing.assert_array_equal(plain.gumbel, with_them.gumbel)
    np.testing.assert_array_equal(plain.uniform, with_them.uniform)
    assert not plain.excursion.any()


def test_the_largest_random_number_still_selects_an_action() -> None:
    """Probabilities with a sum just below 1, and the largest possible random number."""
    noise = RootNoise(np.zeros((DRAWS, 4)), np.ones((DRAWS, 4)))
    uniform = np.full((DRAWS, 2), np.nextafter(1.0, 0.0))
    draws = RootExploration(Exploration(1.0), noise, uniform, NO_EXCURSION)
    legal = np.tile(FLAT, (DRAWS, 1))
    assert (draws.choose(_result([7, 11, 13, 0]), legal, PUCT) == 2).all()


def test_the_numbers_of_a_lane_depend_only_on_its_seed() -> None:
    exploration = Exploration()
    many = LaneDraws.draw(exploration, np.array([3, 1, 4, 5]), 50, 4, 0.7)
    one = LaneDraws.draw(exploration, np.array([4]), 50, 4, 0.7)
    np.testing.assert_array_equal(many.gumbel[:, 2], one.gumbel[:, 0])
    np.testing.assert_array_equal(many.at(9).noise.gamma[2], one.at(9).noise.gamma[0])
    np.testing.assert_array_equal(many.at(9).uniform[2], one.at(9).uniform[0])
    assert not (many.gumbel[:, 2] == many.gumbel[:, 1]).any()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("epsilon", 1.5),
        ("epsilon", np.nan),
        ("excursion_rate", -0.1),
        ("excursion_bars", 0.5),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(SettingsError, match=rf"exploration\.{field} is"):
        replace(Exploration(), **{field: value})
