"""The tape: its ticks rebuild the bars exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.broker.market.tape import TICKS_PER_BAR, Tape
from shared.errors import DataError
from shared.market.bar import BarSeries
from shared.market.candles import CandleBuilder, ClosedBar
from tests.services.broker.markets import GBP_JPY, START_S, bars_of


def rebuilt(tape: Tape) -> list[ClosedBar]:
    """The bars that a client builds from the ticks' strings."""
    builder, found = CandleBuilder(), []
    for tick in range(tape.first_tick, tape.stop_tick):
        quote = tape.quote(tick)
        found.append(builder.push(quote.time, float(f"{quote.bid:f}"), float(f"{quote.ask:f}")))
    found.append(builder.flush(tape.end_ns(tape.stop - 1)))
    return [bar for bar in found if bar is not None]


def random_bars(rows: list[tuple[int, int, int, int]]) -> BarSeries:
    """Bars of whole points around 188: open, close, and how far the extremes reach beyond them."""
    opened, close = np.array([row[:2] for row in rows]).T
    above, below = np.array([row[2:] for row in rows]).T
    columns = (opened, np.maximum(opened, close) + above, np.minimum(opened, close) - below, close)
    o, h, low, c = ((188_000 + column) / 1_000 for column in columns)
    times = START_S + 60 * np.arange(len(rows))
    return BarSeries(GBP_JPY, times, o, h, low, c, np.ones(len(rows), np.int64), np.full(len(rows), np.nan))


@given(
    st.lists(
        st.tuples(st.integers(-900, 900), st.integers(-900, 900), st.integers(0, 300), st.integers(0, 300)),
        min_size=1,
        max_size=30,
    ),
    st.floats(0, 50),
)
def test_ticks_rebuild_every_bar_bit_for_bit(rows: list[tuple[int, int, int, int]], spread: float) -> None:
    bars = random_bars(rows)
    found = rebuilt(Tape.of(bars, spread_pips=spread))
    assert [bar.time_s for bar in found] == bars.time_s.tolist()
    for name in ("open", "high", "low", "close"):
        assert [getattr(bar, name) for bar in found] == getattr(bars, name).tolist()


def test_a_rising_bar_shows_its_low_first_and_a_falling_one_its_high() -> None:
    tape = Tape.of(bars_of([188.0, 188.1, 188.05]), spread_pips=0)
    assert tape.path(1) == (188_000, 187_997, 188_103, 188_100)
    assert tape.path(2) == (188_100, 188_103, 188_047, 188_050)


@pytest.mark.parametrize(("spread", "points"), [(4.0, 40), (0.0, 0), (1.5, 16), (0.1, 2)])
def test_the_spread_is_an_even_number_of_points(spread: float, points: int) -> None:
    quote = Tape.of(bars_of([188.0]), spread_pips=spread).quote(0)
    assert round((quote.ask - quote.bid) * 1_000) == points


def test_the_spread_of_the_data_is_used_where_the_data_have_one() -> None:
    bars = bars_of([188.0, 188.1])
    bars.spread_pips[0] = 2.0
    tape = Tape.of(bars, spread_pips=6.0, spread_from_data=True)
    assert tape.half_spread.tolist() == [10, 30]


def test_the_market_is_closed_outside_the_trading_week() -> None:
    friday_2159 = 1_709_935_140  # 2024-03-08 21:59 UTC, 16:59 New York
    tape = Tape.of(bars_of([188.0, 188.1], times_s=[friday_2159, friday_2159 + 60]), spread_pips=4)
    assert [tape.quote(tick).tradeable for tick in (0, TICKS_PER_BAR)] == [True, False]


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(DataError, match=r"cannot replay bars \[1, 1\)"):
        Tape.of(bars_of([188.0]), spread_pips=4, first=1)


def test_an_unfinished_bar_contains_only_the_sent_ticks() -> None:
    tape = Tape.of(bars_of([188.0, 188.1]), spread_pips=0)
    assert tape.bar_so_far(1, 1) == (188_000, 188_000, 188_000, 188_000)
    assert tape.bar_so_far(1, 2) == (188_000, 188_000, 187_997, 187_997)
    assert tape.bar_so_far(1, 4) == (188_000, 188_103, 187_997, 188_100)
