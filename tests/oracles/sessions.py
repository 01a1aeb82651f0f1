"""The session rule of docs/algorithm.md, word by word: minute by minute, window by window."""

from datetime import datetime
from fractions import Fraction
from zoneinfo import ZoneInfo

from shared.market.bar import BarSeries

NEW_YORK = ZoneInfo("America/New_York")


def is_tradable(time_s: int) -> bool:
    """Sunday 17:00 to Friday 17:00 on a New York wall clock."""
    wall = datetime.fromtimestamp(time_s, NEW_YORK)
    match wall.weekday():
        case 5:
            return False
        case 6:
            return wall.hour >= 17
        case 4:
            return wall.hour < 17
        case _:
            return True


def session_starts(
    bars: BarSeries, *, min_mean_range_pips: Fraction, max_step_minutes: int, max_missing: int
) -> list[int]:
    """Every bar at which a session may start."""
    times = bars.time_s.tolist()
    pip = Fraction(10) ** bars.instrument.pip_location
    ranges = [
        (Fraction(str(high)) - Fraction(str(low))) / pip
        for high, low in zip(bars.high.tolist(), bars.low.tolist(), strict=True)
    ]
    tradable = [is_tradable(time) for time in times]
    present = set(times)
    starts = []
    for start in range(len(times)):
        if start - 150 < 0 or start + 360 >= len(times):
            continue
        session = range(start, start + 361)
        if not all(tradable[bar] for bar in session):
            continue
        if any(times[bar + 1] - times[bar] > 60 * max_step_minutes for bar in session[:-1]):
            continue
        if sum(ranges[start : start + 360]) < 360 * min_mean_range_pips:
            continue
        if not all(is_tradable(minute) for minute in range(times[start], times[start + 360], 60)):
            continue  # the session contains a weekend
        warmup = range(times[start - 150], times[start], 60)
        if sum(minute not in present and is_tradable(minute) for minute in warmup) > max_missing:
            continue
        starts.append(start)
    return starts


def walk(starts: list[int]) -> list[int]:
    """Starts chosen from the left so that no two sessions share a decision."""
    picked: list[int] = []
    for start in starts:
        if not picked or start >= picked[-1] + 360:
            picked.append(start)
    return picked
