"""The trading week and the trading day, in New York time.

The FX week opens on Sunday at 17:00 New York and closes on Friday at 17:00; its days also begin and
end at 17:00. New York's clocks change on Sunday at 02:00, so a week always lasts 120 hours, while its
opening moves between 21:00 and 22:00 UTC. Only `rollover_nights` needs sorted times.

Source: OANDA's published trading hours; IANA zone America/New_York.
"""

from functools import cache

import numpy as np

from shared.errors import DataError
from shared.market.clock import DAY_S, FIRST_TIME_S, HOUR_S, LAST_TIME_S, Clock, new_york
from shared.numeric import Bool, Int8, Int64

CUT_HOUR = 17
WEEK_OPEN_S = 5 * DAY_S  # how long the market is open each week
OPEN_MINUTES_PER_WEEK = WEEK_OPEN_S // 60
OPEN_MINUTES_PER_DAY = OPEN_MINUTES_PER_WEEK // 5

#: Nights charged at the 17:00 cut of each day, Monday to Sunday. A position held over Wednesday's cut
#: settles after the weekend and pays for it.
FINANCING_NIGHTS: Int64 = np.array([1, 1, 3, 1, 1, 0, 0], dtype=np.int64)
FINANCING_NIGHTS.setflags(write=False)

_THURSDAY = 3  # weekday of 1970-01-01
_SUNDAY = 6
_MARGIN_DAYS = 10  # so that the first and the last allowed time have a full week around them


@cache
def day_cuts() -> Int64:
    """17:00 New York of every day from late 1969 to early 2100, `[D]`, in UTC seconds."""
    days = np.arange(FIRST_TIME_S // DAY_S - _MARGIN_DAYS, LAST_TIME_S // DAY_S + _MARGIN_DAYS)
    cuts = Clock("America/New_York", new_york()).to_utc(days * DAY_S + CUT_HOUR * HOUR_S)
    cuts.setflags(write=False)
    return cuts


@cache
def week_opens() -> Int64:
    """Sunday 17:00 New York of every week that `day_cuts` covers, `[W]`, in UTC seconds."""
    opens: Int64 = day_cuts()[_weekdays() == _SUNDAY]
    opens.setflags(write=False)
    return opens


def week_open_s(time_s: Int64) -> Int64:
    """The last Sunday 17:00 New York at or before each time, `[T]`.

    Raises:
        DataError: a time lies outside 1970-2099.
    """
    return week_opens()[_week_index(time_s)]


def is_open(time_s: Int64) -> Bool:
    """Whether the market is open at each time, `[T]`: from Sunday 17:00 until Friday 17:00, exclusive."""
    times = np.asarray(time_s, np.int64)
    return times - week_open_s(times) < WEEK_OPEN_S


def open_minute(time_s: Int64) -> Int64:
    """Number of open minutes that began before each time, `[T]`; constant over weekends.

    For whole minutes a and b, `open_minute(b) - open_minute(a)` is the number of open minutes in `[a, b)`.
    """
    times = np.asarray(time_s, np.int64)
    week = _week_index(times)
    into_week = np.minimum(times - week_opens()[week], WEEK_OPEN_S)
    minute: Int64 = week * OPEN_MINUTES_PER_WEEK + into_week // 60
    return minute


def open_minutes(first_minute: int, num_minutes: int) -> Int64:
    """UTC seconds of `num_minutes` successive open minutes, beginning with open minute `first_minute`.

    Raises:
        DataError: they do not fit between 1970 and 2100.
    """
    week, minute = np.divmod(
        np.arange(first_minute, first_minute + num_minutes, dtype=np.int64), OPEN_MINUTES_PER_WEEK
    )
    opens = week_opens()
    if num_minutes and (first_minute < 0 or week[-1] >= len(opens)):
        raise DataError(f"{num_minutes:,} open minutes do not fit between 1970 and 2100")
    times: Int64 = opens[week] + minute * 60
    return times


def trading_day(time_s: Int64) -> Int64:
    """The trading day of each time, `[T]`; it changes at 17:00 New York.

    Its number is that of the calendar day on which it ends, in days since 1970-01-01.
    """
    return _day_index(time_s) + FIRST_TIME_S // DAY_S - _MARGIN_DAYS


def rollover_nights(time_s: Int64) -> Int8:
    """Nights charged for holding a position from each bar's open to the next bar's open, `[T]`.

    Counts the 17:00 New York cuts in `(time_s[t], time_s[t + 1]]`. Wednesday's cut counts three times and
    a weekend cut not at all. The last bar has 0; values are capped at 127.
    """
    nights = FINANCING_NIGHTS[_weekdays()]
    paid = np.cumsum(nights)[_day_index(time_s) - 1]
    steps = np.diff(paid, append=paid[-1:])
    return np.minimum(steps, np.iinfo(np.int8).max).astype(np.int8)


def _weekdays() -> Int64:
    """Weekday of each of `day_cuts`, `[D]`; Monday is 0."""
    first_day = FIRST_TIME_S // DAY_S - _MARGIN_DAYS
    return (np.arange(len(day_cuts())) + first_day + _THURSDAY) % 7


def _week_index(time_s: Int64) -> Int64:
    return np.searchsorted(week_opens(), _checked(time_s), side="right") - 1


def _day_index(time_s: Int64) -> Int64:
    """Index of the first cut after each time."""
    return np.searchsorted(day_cuts(), _checked(time_s), side="right")


def _checked(time_s: Int64) -> Int64:
    times = np.asarray(time_s, np.int64)
    outside = (times < FIRST_TIME_S) | (times >= LAST_TIME_S)
    if outside.any():
        raise DataError(f"time {times[outside].flat[0]} s lies outside the years 1970 to 2099")
    return times
