"""Alerts for conditions: one when a condition begins and one when it ends, even if it flaps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from shared.messages.schemas import AlertRaised


class Condition(NamedTuple):
    """The subject of an alert."""

    source: str  # service or component, such as "trader"
    name: str  # such as "stale_price"


@dataclass
class _Seen:
    """A condition that holds or recently held."""

    detail: str
    first_s: float  # when it was first seen
    last_s: float  # when it was last seen
    occurrences: int = 1  # times that it appeared after a gap shorter than `end_seconds`
    holds: bool = True  # at the last check
    announced: bool = False


class ConditionTracker:
    """Compares the conditions of successive checks.

    A condition begins once it has held at every check for `begin_seconds`. It ends once it was absent at
    every check for `end_seconds`; a shorter gap belongs to it and adds to `occurrences`.

    Args:
        begin_seconds: how long a condition must hold before it is announced; 0 announces it at once.
        end_seconds: how long a condition must be absent before its end is announced.
    """

    def __init__(self, *, begin_seconds: float = 0.0, end_seconds: float = 0.0) -> None:
        self._begin_seconds, self._end_seconds = begin_seconds, end_seconds
        self._seen: dict[Condition, _Seen] = {}

    def update(self, holding: Mapping[Condition, str], now_s: float) -> list[AlertRaised]:
        """Process one check.

        Args:
            holding: the conditions that hold now, each with its detail in words.
            now_s: time of the check in seconds; must not decrease.
        Returns:
            An alert of phase `began` for each condition that has begun, and one of phase `ended` for each
            that has ended.
        """
        alerts = [
            alert
            for condition, detail in holding.items()
            if (alert := self._present(condition, detail, now_s)) is not None
        ]
        absent = [condition for condition in self._seen if condition not in holding]
        return alerts + [
            alert for condition in absent if (alert := self._absent(condition, now_s)) is not None
        ]

    def resume(self, condition: Condition, detail: str, now_s: float) -> None:
        """Continue a condition whose beginning an earlier process announced; it is not announced again.

        If it no longer holds, its end is announced `end_seconds` after `now_s`.
        """
        self._seen[condition] = _Seen(detail, now_s, now_s, holds=False, announced=True, occurrences=0)

    def begun(self) -> list[Condition]:
        """Conditions whose beginning was announced and that held at the last check."""
        return [condition for condition, seen in self._seen.items() if seen.announced and seen.holds]

    def _present(self, condition: Condition, detail: str, now_s: float) -> AlertRaised | None:
        seen = self._seen.setdefault(condition, _Seen(detail, now_s, now_s))
        if not seen.holds:
            seen.occurrences += 1
        seen.detail, seen.last_s, seen.holds = detail, now_s, True
        if seen.announced or now_s - seen.first_s < self._begin_seconds:
            return None
        seen.announced = True
        return _alert(condition, seen, "began")

    def _absent(self, condition: Condition, now_s: float) -> AlertRaised | None:
        seen = self._seen[condition]
        seen.holds = False
        if seen.announced and now_s - seen.last_s < self._end_seconds:
            return None
        del self._seen[condition]
        return _alert(condition, seen, "ended") if seen.announced else None


def _alert(condition: Condition, seen: _Seen, phase: Literal["began", "ended"]) -> AlertRaised:
    return AlertRaised(
        source=condition.source,
        name=condition.name,
        detail=seen.detail,
        phase=phase,
        occurrences=max(seen.occurrences, 1),
    )
