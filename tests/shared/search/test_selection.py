"""The schedule of sequential halving."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.search.selection import considered_visits


@pytest.mark.parametrize(
    ("actions", "simulations", "visits"),
    [
        (4, 5, [0, 0, 0, 0, 1]),
        (4, 8, [0, 0, 0, 0, 1, 1, 2, 2]),
        (2, 5, [0, 0, 1, 1, 2]),
        (3, 5, [0, 0, 0, 1, 1]),
        (4, 2, [0, 0]),
        (1, 4, [0, 1, 2, 3]),
        (4, 16, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
    ],
)
def test_schedules_computed_by_hand(actions: int, simulations: int, visits: list[int]) -> None:
    assert considered_visits(4, simulations)[actions].tolist() == visits


@given(actions=st.integers(1, 20), simulations=st.integers(1, 200))
def test_some_action_always_has_the_scheduled_visits(actions: int, simulations: int) -> None:
    """Follow the schedule with any choice of the better half."""
    visits = [0] * actions
    for wanted in considered_visits(actions, simulations)[actions].tolist():
        chosen = visits.index(wanted)
        visits[chosen] += 1
    assert sum(visits) == simulations
    assert visits == sorted(visits, reverse=True)
