import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import SettingsError
from shared.market.bar import BarSeries
from shared.market.calendar import open_minute, open_minutes
from shared.market.session import (
    SESSION_BARS,
    WARMUP_BARS,
    SessionConfig,
    SessionIndex,
    Split,
    SplitConfig,
    index_sessions,
    split_bounds,
)
from shared.market.synthetic import Market, synthesize
from shared.numeric import Int64
from tests.oracles import sessions as oracle
from tests.shared.market.series import flat_bars, seconds

MONDAY = seconds("2024-03-04T00:00")
LEAST = WARMUP_BARS + SESSION_BARS + 1  # bars that one session needs


def minutes(num_bars: int, start: int = MONDAY) -> Int64:
    return start + 60 * np.arange(num_bars, dtype=np.int64)


def starts(bars: BarSeries) -> list[int]:
    found: list[int] = index_sessions(bars).starts.tolist()
    return found


def test_one_session_needs_511_bars() -> None:
    assert starts(flat_bars(minutes(LEAST - 1))) == []
    assert starts(flat_bars(minutes(LEAST))) == [150]
    assert starts(flat_bars(minutes(LEAST + 2))) == [150, 151, 152]
    assert starts(flat_bars(minutes(0))) == []


@pytest.mark.parametrize(("step", "valid"), [(10, True), (11, False)])
@pytest.mark.parametrize("after", [150, 300, 509])
def test_steps_within_a_session_last_at_most_ten_minutes(step: int, valid: bool, after: int) -> None:
    times = minutes(LEAST)
    times[after + 1 :] += 60 * (step - 1)
    assert starts(flat_bars(times)) == ([150] if valid else [])


def test_a_step_before_the_session_counts_only_as_missing_warmup() -> None:
    times = minutes(LEAST)
    times[150:] += 60 * 60
    assert starts(flat_bars(times)) == [150]
    times[150:] += 60
    assert starts(flat_bars(times)) == []


def test_a_weekend_in_the_warmup_counts_no_missing_minutes() -> None:
    friday = seconds("2024-03-08T22:00")  # close; after the clock change the week opens at 21:00
    first = int(open_minute(np.array([friday]))[0]) - 150
    times = open_minutes(first, LEAST)
    assert times[150] == seconds("2024-03-10T21:00")
    assert starts(flat_bars(times)) == [150]
    assert starts(flat_bars(open_minutes(first - 1, LEAST))) == []  # Friday's last bar is in the session


def test_no_session_crosses_a_weekend_even_if_long_steps_are_allowed() -> None:
    before = int(open_minute(np.array([seconds("2024-03-08T22:00")]))[0]) - 515
    bars = flat_bars(open_minutes(before, 1_100))  # 515 of Friday, 585 from Sunday on
    found = index_sessions(bars, SessionConfig(max_step_minutes=5_000)).starts.tolist()
    assert found == [*range(150, 515 - 360), *range(515, 1_100 - 360)]


def test_bars_outside_the_trading_week_are_not_tradable() -> None:
    saturday = seconds("2024-03-09T00:00")  # the market opens 45 hours later
    assert starts(flat_bars(minutes(2_700 + 361, saturday))) == [2_700]
    assert starts(flat_bars(minutes(2_700 + 360, saturday))) == []


def test_mean_range_is_compared_exactly() -> None:
    ranges = np.full(LEAST, 0.9)
    ranges[150:510:2] = 1.1  # decisions 150..509: a mean of exactly 1.0 pip
    assert starts(flat_bars(minutes(LEAST), ranges)) == [150]
    ranges[509] = 0.8
    assert starts(flat_bars(minutes(LEAST), ranges)) == []
    ranges[510] = 50.0  # the bar that only supplies the last execution price
    assert starts(flat_bars(minutes(LEAST), ranges)) == []


@st.composite
def series(draw: st.DrawFn) -> BarSeries:
    start = draw(
        st.sampled_from(
            [
                "2024-03-06T12:00",
                "2024-03-08T12:00",
                "2024-03-08T18:00",
                "2024-03-10T18:00",
                "2024-11-01T12:00",
                "2024-11-02T20:00",
                "2024-11-03T20:00",
            ]
        )
    )
    num_bars = draw(st.integers(LEAST, LEAST + 250))
    steps = np.ones(num_bars, np.int64)
    for bar, step in draw(
        st.lists(
            st.tuples(st.integers(0, num_bars - 1), st.sampled_from([2, 3, 9, 10, 11, 15, 30, 61, 2880])),
            max_size=3,
        )
    ):
        steps[bar] = step
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    tenths = generator.integers(0, draw(st.sampled_from([20, 21, 22, 60, 60, 60])), num_bars)
    return flat_bars(seconds(start) + 60 * np.cumsum(steps), tenths / 10)


@settings(max_examples=60)
@given(
    series(),
    st.sampled_from([0.0, 1.0, 1.05]),
    st.sampled_from([1, 10, 15, 5_000]),
    st.sampled_from([0, 10, 60]),
)
def test_sessions_equal_the_oracle(
    bars: BarSeries, min_range: float, max_step: int, max_missing: int
) -> None:
    config = SessionConfig(min_range, max_step, max_missing)
    found = index_sessions(bars, config, SplitConfig(1.0, 0.0)).starts.tolist()
    assert found == oracle.session_starts(
        bars,
        min_mean_range_pips=Fraction(str(min_range)),
        max_step_minutes=max_step,
        max_missing=max_missing,
    )


def test_sessions_equal_the_oracle_on_synthetic_days() -> None:
    complete = synthesize(Market.REGIMES, 4_000, seed=5)
    keep = np.random.default_rng(1).random(len(complete)) > 0.12
    keep[2_000:2_015] = False
    bars = complete[keep]
    expected = oracle.session_starts(
        bars, min_mean_range_pips=Fraction(1), max_step_minutes=10, max_missing=60
    )
    found = index_sessions(bars, SessionConfig(), SplitConfig(1.0, 0.0))
    assert len(expected) > 100
    assert found.starts.tolist() == expected
    assert found.non_overlapping(Split.TRAIN).tolist() == oracle.walk(expected)


def test_sessions_lie_in_one_split_and_splits_are_an_embargo_day_apart() -> None:
    bars = synthesize(Market.GBM, 30_000, seed=1)
    index = index_sessions(bars)
    bounds = split_bounds(bars.time_s, SplitConfig())
    assert bounds[Split.TRAIN] == (0, 21_000)
    assert bounds[Split.VALIDATION] == (21_000 + 1_440, 25_500)
    assert bounds[Split.TEST] == (25_500 + 1_440, 30_000)
    for split, (first, end) in bounds.items():
        found = index.every(split)
        assert found[0] >= first
        assert found[-1] + SESSION_BARS == end - 1
        if split is not Split.TRAIN:
            warmup = found[0] - WARMUP_BARS
            assert warmup > first - 1_440  # it reaches into the embargo, not across it
        walk = index.non_overlapping(split)
        assert walk.tolist() == oracle.walk(found.tolist())
    in_none = index.starts[index.split == -1]
    assert set(in_none) == set(index.starts) - {
        start for split in Split for start in index.every(split).tolist()
    }
    assert len(in_none) > 2 * 1_440


def test_the_embargo_is_measured_in_open_minutes() -> None:
    friday_noon = seconds("2024-03-08T17:00")  # five hours before the close
    first = int(open_minute(np.array([friday_noon]))[0]) - 700
    times = open_minutes(first, 5_000)
    bounds = split_bounds(times, SplitConfig(train=700 / 5_000, validation=0.5))
    begin, _ = bounds[Split.VALIDATION]
    assert times[begin] == seconds("2024-03-11T16:00")  # 5 h of Friday, 19 h from Sunday 21:00 on


def test_a_split_shorter_than_its_embargo_is_empty() -> None:
    bars = flat_bars(minutes(2_000))
    index = index_sessions(bars)
    assert len(index.every(Split.TRAIN)) > 0
    assert len(index.every(Split.VALIDATION)) == len(index.every(Split.TEST)) == 0


def test_each_split_has_its_own_non_overlapping_sessions() -> None:
    index = SessionIndex.of(np.array([150, 200, 520, 521, 900]), np.array([0, 0, 1, 1, -1], np.int8))
    assert index.walk.tolist() == [True, False, True, False, False]


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: SplitConfig(train=1.2), "splits.train is"),
        (lambda: SplitConfig(train=0.9, validation=0.2), "splits.train + splits.validation is"),
        (lambda: SplitConfig(validation=float("nan")), "splits.validation is"),
        (lambda: SplitConfig(embargo_days=-1), "splits.embargo_days is"),
        (lambda: SessionConfig(min_mean_range_pips=-1.0), "sessions.min_mean_range_pips is"),
        (lambda: SessionConfig(max_step_minutes=0), "sessions.max_step_minutes is"),
        (lambda: SessionConfig(max_warmup_missing_minutes=-1), "sessions.max_warmup_missing_minutes is"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(build: object, text: str) -> None:
    assert callable(build)
    with pytest.raises(SettingsError, match=re.escape(text)):
        build()
