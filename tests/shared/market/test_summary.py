from pathlib import Path

import numpy as np
import pytest

from shared.market.calendar import open_minute, open_minutes
from shared.market.formats import read_bars
from shared.market.summary import Gap, summarize
from tests.shared.market.series import GBP_JPY, flat_bars, seconds


def test_a_missing_minute_is_a_gap_and_a_weekend_is_not() -> None:
    friday = int(open_minute(np.array([seconds("2024-03-08T21:00")]))[0])  # an hour before the close
    times = open_minutes(friday, 120)
    full = summarize(flat_bars(times, np.linspace(1, 3, 120).round(1)))
    assert (full.num_bars, full.coverage, full.num_gaps, full.longest_gaps) == (120, 1.0, 0, ())
    assert (full.first_s, full.last_s) == (seconds("2024-03-08T21:00"), seconds("2024-03-10T21:59"))
    assert full.mean_range_pips == pytest.approx(2.0, abs=0.01)
    assert full.p99_range_pips == pytest.approx(3.0, abs=0.1)
    assert np.isnan(full.mean_spread_pips)

    holes = np.delete(times, [10, 11, 12, 50, 59, 60])
    found = summarize(flat_bars(holes))
    assert found.coverage == 114 / 120
    assert found.missing_minutes == 6
    assert found.num_gaps == 3
    assert found.longest_gaps == (
        Gap(seconds("2024-03-08T21:10"), seconds("2024-03-08T21:13"), 3),
        Gap(seconds("2024-03-08T21:59"), seconds("2024-03-10T21:01"), 2),  # Friday's last, Sunday's first
        Gap(seconds("2024-03-08T21:50"), seconds("2024-03-08T21:51"), 1),
    )


def test_bars_outside_the_trading_week_do_not_count_as_coverage() -> None:
    saturday = seconds("2024-03-09T12:00") + 60 * np.arange(30)
    found = summarize(flat_bars(np.append(saturday, seconds("2024-03-10T21:00"))))
    assert (found.num_outside, found.coverage, found.num_gaps) == (30, 1.0, 0)
    assert np.isnan(summarize(flat_bars(saturday)).coverage)


def test_the_statistics_of_a_real_file_equal_those_of_its_readme(real_data: Path) -> None:
    found = summarize(read_bars(real_data / "GBPJPY_M1_20230402_20230515__gemforex.parquet", GBP_JPY).bars)
    assert found.num_bars == 44_048
    assert found.coverage == pytest.approx(0.998, abs=0.0005)
    assert found.mean_range_pips == pytest.approx(3.31, abs=0.005)
    assert found.p99_range_pips == pytest.approx(11.4, abs=0.05)
