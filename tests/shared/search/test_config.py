"""Numbers out of range are refused by name."""

import pytest

from shared.errors import DataError, SettingsError, ShapeError
from shared.search.config import SearchConfig, Selection
from shared.search.model import ActionRules
from tests.shared.search.tables import free_rules


def test_the_selection_rule_is_read_from_its_name() -> None:
    assert SearchConfig("puct").selection is Selection.PUCT  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("selection", "uct"),
        ("simulations", 0),
        ("discount", 1.1),
        ("min_q_span", 0.0),
        ("dirichlet_alpha", -1.0),
        ("dirichlet_fraction", 2.0),
        ("max_considered_actions", 0),
        ("c_visit", float("nan")),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(SettingsError, match=rf"search\.{field} is"):
        SearchConfig(**{field: value})  # type: ignore[arg-type]


def test_invalid_action_rules_are_refused() -> None:
    free = free_rules(2)
    with pytest.raises(DataError, match="phase 0 has no legal action"):
        ActionRules(~free.legal, free.successor)
    with pytest.raises(DataError, match=r"outside 0\.\.0"):
        ActionRules(free.legal, free.successor + 1)
    with pytest.raises(ShapeError, match="successor"):
        ActionRules(free.legal, free.successor[:, :1])
