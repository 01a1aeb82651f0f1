"""Sizes out of range are refused by name."""

import pytest

from shared.errors import SettingsError
from shared.model.config import ModelConfig


def test_reference_sizes() -> None:
    config = ModelConfig()
    assert config.hidden_size == 256
    assert config.receptive_field == 29


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder", "transformer"),
        ("temporal_channels", 0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("value_bound_pips", float("inf")),
        ("value_bins", 2),
        ("kernel_size", 1),
        ("window_bars", 28),
    ],
)
def test_a_size_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(SettingsError, match=rf"model\.{field} is {value}|model\.{field} is '{value}'"):
        ModelConfig(**{field: value})  # type: ignore[arg-type]
