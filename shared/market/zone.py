"""Infer the clock of a file's times from its weekend gaps.

The FX week closes on Friday and opens on Sunday, both at 17:00 New York. The file's clock is the one
under which its weekend gaps begin and end at these times.
"""

from dataclasses import dataclass

import numpy as np

from shared.errors import DataError
from shared.market.calendar import WEEK_OPEN_S, week_open_s
from shared.market.clock import DAY_S, FIRST_TIME_S, HOUR_S, LAST_TIME_S, Clock
from shared.numeric import Bool, Int64

#: Clocks that a file may use, likeliest first. If several fit and give the same times, the first is taken.
CANDIDATES = (
    "UTC",
    "America/New_York",
    "NY+7",
    "Europe/London",
    "Europe/Berlin",
    "Europe/Athens",
    "America/Chicago",
    "Asia/Tokyo",
    "Australia/Sydney",
    *(f"UTC{hours:+d}" for hours in (-5, *range(1, 15), -1, -2, -3, -4, *range(-6, -13, -1))),
)

#: Gaps between these lengths are weekends; shorter ones are holidays, longer ones are missing data.
_MIN_GAP_S = 40 * HOUR_S
_MAX_GAP_S = 4 * DAY_S

#: A broker may open this late or close this early. This is less than the hour by which clocks differ.
_TOLERANCE_S = 29 * 60

#: Bars up to this far outside the week are accepted, because servers' clocks and batches run late.
_OUTSIDE_S = 10 * 60

#: Share of the weekends that must fit; holidays such as Christmas lengthen some.
_MIN_SHARE = 0.75


@dataclass(frozen=True)
class ZoneFinding:
    """The inferred clock, and the evidence in words."""

    clock: Clock
    text: str


def weekend_gaps(time_s: Int64) -> tuple[Int64, Int64]:
    """End of the last bar before and opening of the first bar after each weekend, both `[G]`.

    Args:
        time_s: `[T]` openings of one-minute bars in rising order, on any clock.
    """
    steps = np.diff(time_s)
    before = np.flatnonzero((steps >= _MIN_GAP_S) & (steps <= _MAX_GAP_S))
    return time_s[before] + 60, time_s[before + 1]


def find_zone(wall_s: Int64) -> ZoneFinding:
    """The clock under which the file's weekends are those of the FX week.

    Args:
        wall_s: `[T]` seconds on the file's clock, in rising order.
    Raises:
        DataError: the file has no weekend, or its weekends fit no clock, or they fit two clocks that give
            different times.
    """
    closes, opens = weekend_gaps(wall_s)
    if len(opens) == 0:
        raise DataError(
            "the times have no time zone, and there is no weekend gap to infer it from: "
            "name the zone with --timezone"
        )
    clocks = [Clock.named(name) for name in CANDIDATES]
    shares = [float(_fits(clock.to_utc(closes), clock.to_utc(opens)).mean()) for clock in clocks]
    best = int(np.argmax(shares))
    if shares[best] < _MIN_SHARE:
        raise DataError(
            f"the times have no time zone, and their {len(opens)} weekend gaps fit none: even under "
            f"{clocks[best].name} only {shares[best]:.0%} of them run from Friday to Sunday 17:00 New York "
            f"(the first from {_wall_text(closes[0])} to {_wall_text(opens[0])} on the file's clock); "
            "name the zone with --timezone"
        )
    edges = np.concatenate([closes, opens])
    rivals = [
        clock.name
        for clock, share in zip(clocks, shares, strict=True)
        if share == shares[best] and (clock.to_utc(edges) != clocks[best].to_utc(edges)).any()
    ]
    if rivals:
        raise DataError(
            f"the weekend gaps fit {clocks[best].name} as well as {', '.join(rivals)}: "
            "name the right zone with --timezone"
        )
    return ZoneFinding(clocks[best], f"{_evidence(shares[best], len(opens))} {clocks[best].name}")


def evidence_against_utc(time_s: Int64) -> str | None:
    """The clock that the weekend gaps suggest instead of UTC, in words; None if they suggest none."""
    closes, opens = weekend_gaps(time_s)
    if len(opens) == 0 or _fits(closes, opens).mean() >= _MIN_SHARE:
        return None
    try:
        finding = find_zone(time_s)
    except DataError:
        return None
    return f"{finding.text}: if the times are really a server's wall clock, name it with --timezone"


def _fits(closes: Int64, opens: Int64) -> Bool:
    """Whether each weekend, in UTC, runs from the week's close to the next week's opening, `[G]`."""
    allowed = (closes > FIRST_TIME_S + DAY_S) & (opens < LAST_TIME_S - 8 * DAY_S)
    closes, opens = np.where(allowed, closes, DAY_S), np.where(allowed, opens, DAY_S)
    late = opens + _OUTSIDE_S - week_open_s(opens + _OUTSIDE_S)
    early = week_open_s(closes - _OUTSIDE_S) + WEEK_OPEN_S + _OUTSIDE_S - closes
    fits: Bool = allowed & (late <= _TOLERANCE_S + _OUTSIDE_S) & (early >= 0)
    return fits & (early <= _TOLERANCE_S + _OUTSIDE_S)


def _evidence(share: float, num_gaps: int) -> str:
    fitting = round(share * num_gaps)
    return (
        f"{fitting} of {num_gaps} weekend gap{'s' if num_gaps != 1 else ''} fit{'s' if fitting == 1 else ''}"
    )


def _wall_text(wall_s: int) -> str:
    return str(np.datetime64(int(wall_s), "s").item().strftime("%a %Y-%m-%d %H:%M"))
