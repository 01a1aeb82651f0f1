"""The reason for every None in a result, in words, for reports, pages and documents.

A dataclass explains its None fields with `undefined()`, which maps each field to its reason, or with one
field `reason` for all of them. The table here explains the rest.
"""

import dataclasses
from collections.abc import Mapping
from typing import Final, Protocol, runtime_checkable

#: Shown if no reason is known; a test ensures that this never happens.
UNEXPLAINED: Final = "not defined"

_WHY: Final[Mapping[tuple[str, str], str]] = {
    ("Sizing", "kelly"): "fewer than 2 days, or all daily results are equal",
    ("SafeF", "fraction_sd"): "a single repeat has no deviation",
    ("SafeF", "car25_percent"): "a quarter of the resampled accounts is ruined, or the rate overflows",
    ("SafeF", "car25_sd"): "a single repeat, or CAR25 is not defined",
    ("TradeIntervals", "expectancy_pips"): "fewer than 2 trades",
    ("TradeIntervals", "win_rate"): "fewer than 2 trades",
    ("TradeIntervals", "profit_factor"): "fewer than 2 trades, or a resampled list has no losing trade",
    ("TradeIntervals", "sqn100"): "fewer than 2 trades, or the trades of a resampled list are all equal",
    ("Rival", "p_value"): "the version and the rule earn the same every day",
    ("Summary", "kelly_discrete"): "no losing or no winning trade",
}


@runtime_checkable
class Explained(Protocol):
    """A result that explains its undefined numbers."""

    def undefined(self) -> Mapping[str, str]:
        """The reason for each field that may be None."""


def reasons(value: object, path: str = "") -> dict[str, str]:
    """The reason for each None in a result, by its dotted path; items of a tuple are named by index.

    Args:
        value: a dataclass, a tuple of them, or a plain value.
        path: path of the value itself.
    """
    if isinstance(value, tuple):
        items = {str(index): item for index, item in enumerate(value)}
        own: Mapping[str, str] = {}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
        own = value.undefined() if isinstance(value, Explained) else {}
    else:
        return {}
    general = items.pop("reason", None)
    found: dict[str, str] = {}
    for name, item in items.items():
        here = f"{path}.{name}" if path else name
        if item is None:
            table = _WHY.get((type(value).__name__, name))
            found[here] = own.get(name) or table or general or UNEXPLAINED
        else:
            found |= reasons(item, here)
    return found


def why(undefined: Mapping[str, str], path: str) -> str:
    """The reason for a number: its own, or that of the closest result that contains it."""
    while path:
        if path in undefined:
            return undefined[path]
        path = path.rpartition(".")[0]
    return UNEXPLAINED
