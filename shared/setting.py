"""Settings of a group: each has a default, a meaning and a range, all on the line that declares it.

A group is a frozen dataclass. `check_group` refuses values outside their ranges, and the `--help` of a
service prints range and meaning from the same declaration.
"""

import math
import types
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from shared.errors import SettingsError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Range:
    """An interval of finite numbers; a bound of None means no limit."""

    low: float | None = None
    high: float | None = None
    above: float | None = None  # an open lower bound
    below: float | None = None  # an open upper bound
    or_infinite: bool = False  # positive infinity is allowed too

    def __contains__(self, value: float) -> bool:
        if math.isinf(value):
            return self.or_infinite and value > 0
        return (
            not math.isnan(value)
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        text = self._interval() or "a finite number"
        return f"{text}, or inf" if self.or_infinite else text

    def _interval(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{_figure(self.low)} to {_figure(self.high)}"
        lower = f"{_figure(self.low)} or more" if self.low is not None else ""
        if self.above is not None:
            lower = f"more than {_figure(self.above)}"
        upper = f"{_figure(self.high)} or less" if self.high is not None else ""
        if self.below is not None:
            upper = f"less than {_figure(self.below)}"
        return " and ".join(filter(None, (lower, upper)))


Count = Annotated[int, Range(low=1)]
Natural = Annotated[int, Range(low=0)]
Finite = Annotated[float, Range()]
Positive = Annotated[float, Range(above=0.0)]
NonNegative = Annotated[float, Range(low=0.0)]
Share = Annotated[float, Range(low=0.0, high=1.0)]
Fraction = Annotated[float, Range(above=0.0, below=1.0)]
Probability = Annotated[float, Range(above=0.0, high=1.0)]
Port = Annotated[int, Range(low=0, high=65_535)]


def setting(default: _T, meaning: str) -> _T:
    """Declare a setting of a group: `batch_size: Count = setting(64, "steps of an update")`.

    Args:
        default: the value when nothing is set.
        meaning: a short noun phrase with the unit.
    """
    return field(default=default, metadata={"meaning": meaning})


def check_group(name: str, group: Any) -> None:
    """Refuse values outside their declared ranges; call this from the group's `__post_init__`.

    The text of a setting that is declared as an enumeration becomes the member with that value.

    Raises:
        SettingsError: names the setting, its value and what is expected.
    """
    for member, allowed in _allowed(group.__class__).items():
        value = getattr(group, member)
        if isinstance(allowed, Range):
            if value is not None and value not in allowed:
                raise SettingsError(f"{name}.{member} is {value}, expected {allowed}")
        elif value not in list(allowed):
            raise SettingsError(f"{name}.{member} is {value!r}, expected one of {', '.join(allowed)}")
        else:
            object.__setattr__(group, member, allowed(value))


def describe_group(group: Any) -> Iterator[tuple[str, object, str]]:
    """Yield name, value and description of each setting: its meaning and its allowed values."""
    allowed = _allowed(group.__class__)
    for member in fields(group):
        limits = allowed.get(member.name)
        bounds = "" if limits is None else str(limits) if isinstance(limits, Range) else ", ".join(limits)
        meaning = member.metadata.get("meaning", "")
        description = f"{meaning} ({bounds})" if meaning and bounds else meaning or bounds
        yield member.name, getattr(group, member.name), description


def _figure(bound: float) -> str:
    return f"{bound:,.0f}" if 1e5 <= abs(bound) < 1e12 else f"{bound:g}"


@cache
def _allowed(group: type) -> dict[str, Range | type[StrEnum]]:
    """The range or the enumeration of each setting that declares one."""
    hints = get_type_hints(group, include_extras=True)
    found = {member.name: _limits(hints[member.name]) for member in fields(group)}
    return {name: limits for name, limits in found.items() if limits is not None}


def _limits(hint: Any) -> Range | type[StrEnum] | None:
    if get_origin(hint) in (Union, types.UnionType):
        return next((limits for part in get_args(hint) if (limits := _limits(part))), None)
    if get_origin(hint) is Annotated:
        return next((extra for extra in hint.__metadata__ if isinstance(extra, Range)), None)
    return hint if isinstance(hint, type) and issubclass(hint, StrEnum) else None
