"""Settings of a group: ranges hold at their bounds, and descriptions name meaning and range."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import pytest

from shared.errors import SettingsError
from shared.setting import Count, Natural, Positive, Range, Share, check_group, describe_group, setting


class _Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class _Group:
    size: Count = setting(3, "size in steps")
    share: Share = setting(0.5, "share of steps")
    rate: Positive = setting(1.0, "steps per second")
    limit: Annotated[float, Range(above=0.0, or_infinite=True)] = setting(2.0, "largest step")
    decay: Annotated[float, Range(low=0.0, below=1.0)] = setting(0.0, "decay per step")
    lag: Natural | None = setting(None, "versions behind")
    colour: _Colour = setting(_Colour.RED, "colour of a step")
    name: str = setting("a", "name of a step")

    def __post_init__(self) -> None:
        check_group("group", self)


@pytest.mark.parametrize(
    "good",
    [
        {"size": 1},
        {"share": 0.0},
        {"share": 1.0},
        {"rate": 5e-324},
        {"limit": math.inf},
        {"decay": math.nextafter(1.0, 0.0)},
        {"lag": 0},
        {"lag": None},
    ],
)
def test_values_at_the_bounds_are_accepted(good: dict[str, float]) -> None:
    group = _Group(**good)  # type: ignore[arg-type]
    assert {name: getattr(group, name) for name in good} == good


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ({"size": 0}, "group.size is 0, expected 1 or more"),
        ({"share": -0.01}, "group.share is -0.01, expected 0 to 1"),
        ({"share": 1.01}, "group.share is 1.01, expected 0 to 1"),
        ({"share": math.nan}, "group.share is nan, expected 0 to 1"),
        ({"rate": 0.0}, "group.rate is 0.0, expected more than 0"),
        ({"rate": math.inf}, "group.rate is inf, expected more than 0"),
        ({"limit": -math.inf}, "group.limit is -inf, expected more than 0, or inf"),
        ({"decay": 1.0}, "group.decay is 1.0, expected 0 or more and less than 1"),
        ({"lag": -1}, "group.lag is -1, expected 0 or more"),
        ({"colour": "green"}, "group.colour is 'green', expected one of red, blue"),
    ],
)
def test_a_value_outside_its_range_is_refused_by_name(bad: dict[str, object], text: str) -> None:
    with pytest.raises(SettingsError) as refused:
        _Group(**bad)  # type: ignore[arg-type]
    assert str(refused.value) == text


def test_a_text_becomes_the_member_of_an_enumeration() -> None:
    assert _Group(colour="blue").colour is _Colour.BLUE  # type: ignore[arg-type]


def test_descriptions_name_meaning_and_range() -> None:
    described = {name: (value, text) for name, value, text in describe_group(_Group())}
    assert described["size"] == (3, "size in steps (1 or more)")
    assert described["limit"] == (2.0, "largest step (more than 0, or inf)")
    assert described["lag"] == (None, "versions behind (0 or more)")
    assert described["colour"] == (_Colour.RED, "colour of a step (red, blue)")
    assert described["name"] == ("a", "name of a step")


def test_large_bounds_are_written_legibly() -> None:
    assert str(Range(low=0, high=65_535)) == "0 to 65535"
    assert str(Range(low=1, high=100_000)) == "1 to 100,000"
    assert str(Range(low=0, high=4_294_967_295)) == "0 to 4,294,967,295"
    assert str(Range(low=1e-3, high=1e12)) == "0.001 to 1e+12"
    assert str(Range()) == "a finite number"
