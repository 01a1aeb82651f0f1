"""Every service can read the reference profile, which equals the defaults except for one setting."""

import dataclasses
import importlib
import tomllib
from pathlib import Path

import pytest

from shared.runtime.settings import SETTINGS_MODULES, ServiceSettings, load

REFERENCE = Path(__file__).resolve().parents[2] / "config" / "reference.toml"


def _classes() -> list[type[ServiceSettings]]:
    return [
        item
        for name in SETTINGS_MODULES
        for item in vars(importlib.import_module(name)).values()
        if isinstance(item, type) and issubclass(item, ServiceSettings) and item.__module__ == name
    ]


def _groups(settings: ServiceSettings) -> dict[str, dict[str, object]]:
    return {
        name: {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        for name, value in settings
        if dataclasses.is_dataclass(value)
    }


@pytest.mark.parametrize("settings_class", _classes(), ids=lambda c: c.__name__)
def test_reference_equals_the_defaults_except_for_the_selection_rule(
    settings_class: type[ServiceSettings],
) -> None:
    defaults, reference = _groups(load(settings_class)), _groups(load(settings_class, profile=REFERENCE))
    if "search" in reference:
        assert reference["search"].pop("selection") == "puct"
        assert defaults["search"].pop("selection") == "gumbel"
    assert reference == defaults


def test_every_table_of_the_reference_belongs_to_a_service() -> None:
    known = {group for settings_class in _classes() for group in _groups(load(settings_class))}
    assert set(tomllib.loads(REFERENCE.read_text())) <= known
