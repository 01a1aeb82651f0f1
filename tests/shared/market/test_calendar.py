from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import DataError
from shared.market.calendar import (
    OPEN_MINUTES_PER_WEEK,
    day_cuts,
    is_open,
    open_minute,
    open_minutes,
    rollover_nights,
    trading_day,
    week_open_s,
    week_opens,
)
from shared.market.clock import LAST_TIME_S, Clock
from shared.numeric import Int64

NEW_YORK = ZoneInfo("America/New_York")
TWENTY_YEARS = st.integers(
    int(datetime(2010, 1, 1, tzinfo=UTC).timestamp()), int(datetime(2030, 1, 1, tzinfo=UTC).timestamp())
)


def seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def times(*texts: str) -> Int64:
    return np.array([seconds(text) for text in texts], dtype=np.int64)


# Closes and opens around the clock changes of 2024: in New York on 03-10 and 11-03, in Europe on 03-31 and
# 10-27. The changes in Europe must not move the FX week.
@pytest.mark.parametrize(
    ("closes", "opens"),
    [
        ("2024-03-01T22:00", "2024-03-03T22:00"),
        ("2024-03-08T22:00", "2024-03-10T21:00"),
        ("2024-03-29T21:00", "2024-03-31T21:00"),
        ("2024-10-25T21:00", "2024-10-27T21:00"),
        ("2024-11-01T21:00", "2024-11-03T22:00"),
        ("2024-11-08T22:00", "2024-11-10T22:00"),
    ],
)
def test_weekends_around_clock_changes(closes: str, opens: str) -> None:
    close, first = seconds(closes), seconds(opens)
    probe = np.array([close - 60, close - 1, close, first - 60, first - 1, first, first + 60])
    assert is_open(probe).tolist() == [True, True, False, False, False, True, True]
    assert week_open_s(np.array([first - 1, first, first + 5 * 86400])).tolist()[1:] == [first, first]
    assert int(week_open_s(np.array([first - 1]))[0]) == close - 5 * 86400


@given(TWENTY_YEARS)
def test_open_hours_weeks_and_days_agree_with_the_wall_clock_of_new_york(time: int) -> None:
    wall = datetime.fromtimestamp(time, NEW_YORK)
    into_week = (wall.weekday() + 1) % 7 * 24 + wall.hour  # hours since Sunday 00:00
    array = np.array([time])
    assert bool(is_open(array)[0]) == (17 <= into_week < 17 + 120)

    sunday = wall.date() - timedelta(days=(wall.weekday() + 1) % 7)
    if into_week < 17:
        sunday -= timedelta(days=7)
    opened = datetime(sunday.year, sunday.month, sunday.day, 17, tzinfo=NEW_YORK)
    assert int(week_open_s(array)[0]) == int(opened.timestamp())

    ends_on = wall.date() + timedelta(days=int(wall.hour >= 17))
    assert int(trading_day(array)[0]) == (ends_on - date(1970, 1, 1)).days


@given(TWENTY_YEARS, st.integers(0, 20_000))
def test_open_minute_counts_open_minutes(start: int, span: int) -> None:
    first = start // 60 * 60
    minutes = first + 60 * np.arange(span)
    counted = int(open_minute(np.array([first + 60 * span]))[0] - open_minute(np.array([first]))[0])
    assert counted == int(is_open(minutes).sum())


@given(TWENTY_YEARS, st.integers(1, 20_000))
def test_open_minutes_are_successive_and_open(start: int, count: int) -> None:
    first = int(open_minute(np.array([start]))[0])
    made = open_minutes(first, count)
    assert is_open(made).all()
    assert open_minute(made).tolist() == list(range(first, first + count))


def test_clock_changes_leave_every_week_at_120_open_hours() -> None:
    opens = week_opens()
    assert set(np.diff(opens).tolist()) == {7 * 86400 - 3600, 7 * 86400, 7 * 86400 + 3600}
    inner = opens[5:-5]
    lasts = open_minute(inner + 5 * 86400) - open_minute(inner)
    assert set(lasts.tolist()) == {OPEN_MINUTES_PER_WEEK}


def test_rollover_nights_of_a_week() -> None:
    # One bar just before 17:00 New York of each day in summer (21:00 UTC), and Sunday's first bar.
    bars = times(
        "2023-07-02T21:00",  # Sunday open; the next step crosses Monday's cut
        "2023-07-03T21:00",  # Monday 17:00 exactly: crossed by the step that ends here
        "2023-07-05T20:59",  # crossed Tuesday's cut on the way
        "2023-07-05T21:00",  # crossed Wednesday's: three nights
        "2023-07-07T20:59",  # crossed Thursday's
        "2023-07-09T21:00",  # crossed Friday's, Saturday's and Sunday's: one night
    )
    assert rollover_nights(bars).tolist() == [1, 1, 3, 1, 1, 0]


@given(TWENTY_YEARS, st.lists(st.integers(1, 40_000), max_size=20))
def test_rollover_nights_count_the_cuts_between_bars(start: int, steps: list[int]) -> None:
    bars = np.cumsum(np.array([start, *(60 * step for step in steps)], dtype=np.int64))
    expected = []
    for opened, following in zip(bars[:-1].tolist(), bars[1:].tolist(), strict=True):
        day = datetime.fromtimestamp(opened, NEW_YORK).date() - timedelta(days=1)
        nights = 0
        while (cut := datetime(day.year, day.month, day.day, 17, tzinfo=NEW_YORK).timestamp()) <= following:
            if cut > opened:
                nights += {2: 3, 5: 0, 6: 0}.get(day.weekday(), 1)
            day += timedelta(days=1)
        expected.append(min(nights, 127))
    assert rollover_nights(bars).tolist() == [*expected, 0]


def test_functions_accept_an_empty_series() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    for function in (is_open, week_open_s, trading_day, rollover_nights, open_minute):
        assert len(function(nothing)) == 0


@pytest.mark.parametrize("time", [-1, LAST_TIME_S, 10**15])
def test_times_outside_the_calendar_are_refused(time: int) -> None:
    with pytest.raises(DataError, match=str(time)):
        is_open(np.array([time]))
    with pytest.raises(DataError, match=str(time)):
        trading_day(np.array([time]))


def test_the_tables_cover_every_allowed_time() -> None:
    assert week_opens()[0] < 0 < LAST_TIME_S < week_opens()[-1]
    assert day_cuts()[0] < 0 < LAST_TIME_S < day_cuts()[-1]


def test_a_brokers_clock_is_seven_hours_ahead_of_new_york() -> None:
    broker = Clock.named("NY+7")
    # The broker's Monday 00:00 is the opening of the week, summer and winter.
    assert (
        broker.to_utc(times("2024-03-11T00:00", "2024-11-04T00:00")).tolist()
        == times("2024-03-10T21:00", "2024-11-03T22:00").tolist()
    )


@pytest.mark.parametrize(
    ("name", "utc"),
    [
        ("UTC", "2024-07-01T12:00"),
        ("+03:00", "2024-07-01T09:00"),
        ("UTC-5", "2024-07-01T17:00"),
        ("GMT+5:30", "2024-07-01T06:30"),
        ("America/New_York", "2024-07-01T16:00"),
        ("New York + 7", "2024-07-01T09:00"),
        ("Asia/Tokyo", "2024-07-01T03:00"),
    ],
)
def test_clocks_by_name(name: str, utc: str) -> None:
    assert Clock.named(name).to_utc(times("2024-07-01T12:00")).tolist() == [seconds(utc)]


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "+25:00", "NY", "../../etc/passwd", "UTC+", "\0"])
def test_unknown_clocks_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="IANA name"):
        Clock.named(name)


@given(
    TWENTY_YEARS, st.sampled_from(["America/New_York", "Europe/London", "Asia/Tokyo", "Australia/Lord_Howe"])
)
def test_wall_clock_agrees_with_zoneinfo(time: int, zone: str) -> None:
    wall = datetime.fromtimestamp(time, ZoneInfo(zone)).replace(tzinfo=None, fold=0)
    wall_s = int(wall.replace(tzinfo=UTC).timestamp())
    expected = int(wall.replace(tzinfo=ZoneInfo(zone)).timestamp())
    assert Clock.named(zone).to_utc(np.array([wall_s])).tolist() == [expected]
