"""How numbers are printed."""

import pytest

from cli.output import figure


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (19_920.4, "19,920"),
        (-1_234.5, "-1,234"),
        (999.96, "1000"),
        (8.5951, "8.595"),
        (0.0, "0"),
        (1e6, "1,000,000"),
    ],
)
def test_large_numbers_are_whole_and_small_ones_have_four_digits(value: float, printed: str) -> None:
    assert figure(value) == printed
