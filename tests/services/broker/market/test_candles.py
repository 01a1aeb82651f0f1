"""Candles, compared with a slow computation from the same bars."""

from collections.abc import Sequence

import numpy as np
import pytest

from services.broker.market.candles import GRANULARITIES, CandleQuery, candles
from services.broker.market.tape import Tape
from services.broker.wire import Json
from shared.adapters.oanda.records import Candle
from shared.market.bar import BarSeries
from tests.services.broker.markets import START_S, bars_of

NS = 1_000_000_000


def asked(tape: Tape, complete: int, ticks: int = 0, **query: object) -> list[Candle]:
    now_ns = tape.end_ns(complete) + (20 * NS if ticks else 0)
    fields = {"granularity": "M1", "price": "MBA", **query}
    found: list[Json] = candles(tape, CandleQuery(**fields), complete=complete, ticks=ticks, now_ns=now_ns)  # type: ignore[arg-type]
    return [Candle.parse(item) for item in found]


def series(num: int, missing: Sequence[int] = ()) -> BarSeries:
    rng = np.random.default_rng(3)
    bars = bars_of(188 + np.cumsum(rng.integers(-20, 21, num)) / 1_000)  # type: ignore[arg-type]
    keep = np.ones(num, np.bool_)
    keep[list(missing)] = False
    return bars[keep]


def test_one_minute_candles_are_the_bars() -> None:
    bars = series(20)
    found = asked(Tape.of(bars, spread_pips=4), complete=18, count=5)
    assert [candle.time_s for candle in found] == bars.time_s[14:19].tolist()
    for candle, row in zip(found, range(14, 19), strict=True):
        assert candle.mid is not None
        assert candle.bid is not None
        assert candle.ask is not None
        assert candle.complete
        assert candle.mid.open == bars.open[row]
        assert candle.mid.high == bars.high[row]
        assert candle.mid.low == bars.low[row]
        assert candle.mid.close == bars.close[row]
        assert candle.ask.close - candle.bid.close == pytest.approx(0.04)


def test_candles_never_contain_future_prices() -> None:
    bars = series(20)
    found = asked(Tape.of(bars, spread_pips=4), complete=7, ticks=1, count=500)
    assert found[-1].time_s == bars.time_s[8]
    assert not found[-1].complete
    assert found[-1].mid is not None
    assert found[-1].mid.close == bars.open[8]  # only its first tick was sent
    assert all(candle.complete for candle in found[:-1])


def test_from_with_count_gives_the_first_candles_and_from_to_gives_all() -> None:
    bars = series(60, missing=[10, 11])
    tape = Tape.of(bars, spread_pips=4)
    start = (START_S + 9 * 60 + 30) * NS  # half-way through minute 9
    covered = asked(tape, 50, from_ns=start, count=3)
    assert [(candle.time_s - START_S) // 60 for candle in covered] == [9, 12, 13]
    skipped = asked(tape, 50, from_ns=start, count=2, include_first=False)
    assert [(candle.time_s - START_S) // 60 for candle in skipped] == [12, 13]
    between = asked(tape, 50, from_ns=start, to_ns=(START_S + 14 * 60) * NS)
    assert [(candle.time_s - START_S) // 60 for candle in between] == [9, 12, 13]
    before = asked(tape, 50, to_ns=(START_S + 13 * 60) * NS, count=2)
    assert [(candle.time_s - START_S) // 60 for candle in before] == [9, 12]


@pytest.mark.parametrize("granularity", sorted(GRANULARITIES))
def test_longer_candles_are_made_from_one_minute_candles(granularity: str) -> None:
    bars = series(300, missing=[3, 60, 61, 62, 63, 64, 65, 299])
    length = GRANULARITIES[granularity]
    last = len(bars) - 2
    found = asked(Tape.of(bars, spread_pips=4), last, granularity=granularity, price="M", count=500)
    expected: dict[int, list[int]] = {}
    for row in range(last + 1):
        expected.setdefault(int(bars.time_s[row]) // length * length, []).append(row)
    assert [candle.time_s for candle in found] == list(expected)
    for candle, rows in zip(found, expected.values(), strict=True):
        assert candle.mid is not None
        assert candle.bid is None
        assert candle.mid.open == bars.open[rows[0]]
        assert candle.mid.high == max(bars.high[rows])
        assert candle.mid.low == min(bars.low[rows])
        assert candle.mid.close == bars.close[rows[-1]]
        assert candle.volume == sum(bars.volume[rows])


def test_before_the_first_bar_there_is_no_candle() -> None:
    tape = Tape.of(series(5), spread_pips=4)
    assert asked(tape, 3, from_ns=0, to_ns=START_S * NS) == []
