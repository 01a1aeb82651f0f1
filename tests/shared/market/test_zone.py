import numpy as np
import pytest

from shared.errors import DataError
from shared.market.zone import evidence_against_utc, find_zone, weekend_gaps
from shared.numeric import Int64
from tests.shared.market.series import seconds

WINTER = [("2024-01-12T22:00", "2024-01-14T22:00"), ("2024-01-19T22:00", "2024-01-21T22:00")]
SUMMER = [("2024-06-07T21:00", "2024-06-09T21:00"), ("2024-06-14T21:00", "2024-06-16T21:00")]


def edges(weekends: list[tuple[str, str]], *, shift_s: int = 0, late_s: int = 0) -> Int64:
    """The last bar before and the first bar after each weekend, `shift_s` off UTC."""
    times = [time for close, opens in weekends for time in (seconds(close) - 60, seconds(opens) + late_s)]
    return np.array(times, dtype=np.int64) + shift_s


def test_only_gaps_of_a_weekends_length_count() -> None:
    closes, opens = weekend_gaps(edges(WINTER + SUMMER))
    assert closes.tolist() == [seconds(close) for close, _ in WINTER + SUMMER]
    assert opens.tolist() == [seconds(first) for _, first in WINTER + SUMMER]
    for hours, num_gaps in ((39, 0), (41, 1), (96, 1), (97, 0)):
        assert len(weekend_gaps(np.array([0, hours * 3600]))[0]) == num_gaps


@pytest.mark.parametrize(
    ("hours", "name"), [(0, "UTC"), (-4, "America/New_York"), (3, "New York + 7 h"), (9, "Asia/Tokyo")]
)
def test_summer_weekends_alone_give_the_likeliest_clock(hours: int, name: str) -> None:
    assert find_zone(edges(SUMMER, shift_s=hours * 3600)).clock.name == name


def test_summer_and_winter_separate_fixed_offsets_from_daylight_saving() -> None:
    assert find_zone(edges(WINTER + SUMMER, shift_s=2 * 3600)).clock.name == "UTC+2"
    wall = np.append(edges(WINTER, shift_s=2 * 3600), edges(SUMMER, shift_s=3 * 3600))
    assert find_zone(wall).clock.name == "New York + 7 h"


def test_a_broker_may_open_late_but_not_by_an_hour() -> None:
    assert find_zone(edges(SUMMER, late_s=25 * 60)).clock.name == "UTC"
    with pytest.raises(DataError, match="fit none"):
        find_zone(edges(SUMMER, late_s=40 * 60))


def test_a_holiday_among_many_weekends_is_accepted() -> None:
    easter = [("2024-03-28T21:00", "2024-03-31T21:00")]
    found = find_zone(np.concatenate([edges(WINTER), edges(easter), edges(SUMMER)]))
    assert found.text == "4 of 5 weekend gaps fit UTC"


def test_two_clocks_that_fit_equally_well_are_refused() -> None:
    half_utc, half_london = edges(SUMMER[:1]), edges(SUMMER[1:], shift_s=3600)
    with pytest.raises(DataError, match=r"fit UTC as well as Europe/London: .* --timezone"):
        find_zone(np.concatenate([edges(WINTER), half_utc, half_london]))


def test_utc_is_doubted_only_when_another_clock_fits() -> None:
    assert evidence_against_utc(edges(SUMMER)) is None
    assert evidence_against_utc(edges(SUMMER, late_s=3 * 3600)) is None
    doubt = evidence_against_utc(edges(SUMMER, shift_s=3 * 3600))
    assert doubt is not None
    assert "New York + 7 h" in doubt
