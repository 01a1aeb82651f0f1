import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import DataError
from shared.market.candles import BAR_NS, CandleBuilder, ClosedBar
from tests.shared.market.series import seconds

SECOND = 1_000_000_000
NOON = seconds("2024-03-06T12:00")


def at(second: float) -> int:
    return NOON * SECOND + round(second * SECOND)


def test_ticks_of_a_minute_make_the_bar_computed_by_hand() -> None:
    builder = CandleBuilder()
    assert builder.push(at(0.5), 185.00, 185.04) is None  # mid 185.02
    assert builder.push(at(20.0), 185.10, 185.14) is None  # 185.12
    assert builder.push(at(40.0), 184.90, 184.94) is None  # 184.92
    assert builder.push(at(59.999), 184.98, 185.02) is None  # 185.00
    closed = builder.push(at(60.0), 186.00, 186.04)  # the next minute's first tick
    assert closed is not None
    assert (closed.time_s, closed.volume) == (NOON, 4)
    assert (closed.open, closed.high, closed.low, closed.close) == pytest.approx(
        (185.02, 185.12, 184.92, 185.0)
    )
    assert builder.flush(at(119.999)) is None
    last = builder.flush(at(120))
    assert last == ClosedBar(NOON + 60, 186.02, 186.02, 186.02, 186.02, 1)
    assert builder.flush(at(600)) is None


def test_a_minute_without_a_tick_has_no_bar() -> None:
    builder = CandleBuilder()
    builder.push(at(30), 185.0, 185.0)
    closed = builder.push(at(30 + 180), 186.0, 186.0)
    assert closed is not None
    assert closed.time_s == NOON
    closed = builder.flush(at(240))
    assert closed is not None
    assert (closed.time_s, closed.open) == (NOON + 180, 186.0)


def test_repeated_and_late_ticks_change_nothing() -> None:
    builder = CandleBuilder()
    builder.push(at(10), 185.0, 185.0)
    assert builder.push(at(10), 190.0, 190.0) is None
    assert builder.push(at(5), 190.0, 190.0) is None
    closed = builder.flush(at(60))
    assert builder.push(at(59), 190.0, 190.0) is None  # the minute of this tick is already closed
    assert closed == ClosedBar(NOON, 185.0, 185.0, 185.0, 185.0, 1)
    assert builder.num_late == 3
    assert builder.flush(at(999)) is None


def test_mids_are_rounded_half_up_to_the_given_decimals() -> None:
    builder = CandleBuilder(decimals=3)
    builder.push(at(1), 164.382, 164.395)  # 164.3885
    builder.push(at(2), 164.362, 164.402)  # 164.382 up to float noise
    builder.push(at(3), 164.381, 164.382)  # 164.3815
    closed = builder.flush(at(60))
    assert closed == ClosedBar(NOON, 164.389, 164.389, 164.382, 164.382, 3)


@pytest.mark.parametrize(
    ("bid", "ask"),
    [(185.1, 185.0), (0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, math.nan), (1.0, math.inf)],
)
def test_corrupt_prices_raise(bid: float, ask: float) -> None:
    with pytest.raises(DataError, match="bid"):
        CandleBuilder().push(at(0), bid, ask)


ticks = st.lists(
    st.tuples(
        st.one_of(st.integers(1, 20 * SECOND), st.integers(1, 200 * SECOND), st.just(BAR_NS)),
        st.integers(180_000, 190_000),
        st.integers(0, 50),
    ),
    min_size=1,
    max_size=60,
)


@given(st.integers(0, 59 * SECOND), ticks, st.booleans())
def test_bars_equal_those_of_pandas(first: int, steps: list[tuple[int, int, int]], heartbeats: bool) -> None:
    builder, found, rows = CandleBuilder(decimals=4), [], []
    time_ns = NOON * SECOND + first
    for step, bid, spread in steps:
        if heartbeats:
            found.append(builder.flush(time_ns + step // 2))
        time_ns += step
        found.append(builder.push(time_ns, bid / 1000, (bid + spread) / 1000))
        rows.append((time_ns, round(bid / 1000 + spread / 2000, 4)))
    found.append(builder.flush(time_ns + BAR_NS))
    frame = pd.DataFrame(rows, columns=["time", "mid"])
    minutes = frame.groupby(frame.time // BAR_NS).mid
    expected = minutes.agg(["first", "max", "min", "last", "size"])
    assert [bar for bar in found if bar is not None] == [
        ClosedBar(int(minute) * 60, first, high, low, last, int(size))
        for minute, first, high, low, last, size in expected.itertuples(name=None)
    ]
    assert builder.num_late == 0
