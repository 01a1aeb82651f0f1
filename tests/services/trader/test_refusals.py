"""Refusal of wrong market data: it raises no error and changes neither time nor price."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trader.market import Market
from services.trader.refusals import BrokerTimes, PriceLevel, Refusal, ReplayTimes, Verdict, fault_of
from shared.adapters.oanda.records import NANOSECONDS, Candle, Heartbeat, Price, Quote, UnreadableLine
from shared.market.bar import Instrument

#: Monday 2024-03-04 12:00 UTC.
NOON_S = 1_709_553_600
DAY_S = 86_400


class Clocks:
    """This machine's clocks, set by the test."""

    def __init__(self) -> None:
        self.wall_s, self.monotonic_s = float(NOON_S), 0.0

    def go_on(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds


def market_of(clocks: Clocks, *, simulated: bool = False) -> Market:
    return Market(
        Instrument.named("GBP_JPY"),
        lambda: clocks.monotonic_s,
        None if simulated else lambda: clocks.wall_s,
        max_jump_percent=5.0,
    )


def at(seconds: float) -> int:
    return int((NOON_S + seconds) * NANOSECONDS)


def price(seconds: float, bid: float | None = 190.0, ask: float | None = 190.04, **changes: object) -> Price:
    made = Price("GBP_JPY", at(seconds), bid, ask, tradeable=True)
    return replace(made, **changes)  # type: ignore[arg-type]


def candle(minute: int, close: float = 190.0, **changes: object) -> Candle:
    made = Candle(NOON_S + 60 * minute, 4, complete=True, mid=Quote(close, close, close, close))
    return replace(made, **changes)  # type: ignore[arg-type]


# -- prices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "refusal"),
    [
        (price(2, 171.0, 170.999), Refusal.CROSSED),
        (price(2, 0.0, 190.04), Refusal.CROSSED),
        (price(2, -1.0, -0.5), Refusal.CROSSED),
        (price(2, 190.0, math.inf), Refusal.CROSSED),
        (price(2, math.nan, 190.0), Refusal.CROSSED),
        (price(2, 19_000.0, 19_000.1), Refusal.OUTLIER),
        (price(2, 1.9, 1.901), Refusal.OUTLIER),
        (price(2, instrument="EUR_USD"), Refusal.FOREIGN),
        (price(DAY_S), Refusal.FUTURE),
        (Heartbeat(at(DAY_S)), Refusal.FUTURE),
        (UnreadableLine("field 'bids' is missing"), Refusal.UNREADABLE),
    ],
)
def test_a_bad_line_is_counted_and_changes_neither_price_time_nor_bar(
    item: Price | Heartbeat | UnreadableLine, refusal: Refusal
) -> None:
    clocks = Clocks()
    market = market_of(clocks)
    good = price(1)
    market.on_item(good)
    assert market.on_item(item) is None
    assert market.refused == {refusal: 1}
    assert market.quoted is not None
    assert market.quoted.price == good, "the last good price stays in use"
    assert market.time_ns <= at(2)
    assert market.on_item(price(3, 190.1, 190.14)) is None
    assert market.quoted.price.bid == 190.1, "the next good price replaces it"
    clocks.go_on(60)
    assert market.on_item(Heartbeat(at(60))) == NOON_S, "the bar closes when its minute is over"


def test_a_minute_with_only_bad_prices_closes_so_that_its_candle_is_read() -> None:
    clocks = Clocks()
    market = market_of(clocks)
    market.on_item(price(1, 2.0, 1.0))
    clocks.go_on(60)
    assert market.on_item(Heartbeat(at(59))) is None
    assert market.on_item(Heartbeat(at(60))) == NOON_S
    assert market.on_item(Heartbeat(at(65))) is None, "a bar closes once"


def test_a_repeated_price_does_not_count_as_fresh() -> None:
    clocks = Clocks()
    market = market_of(clocks)
    market.on_item(price(1))
    clocks.go_on(30.0)
    market.on_item(price(1))
    assert market.num_late == 1
    assert market.price_age_seconds() == 30.0
    market.on_item(price(0.5))
    assert market.num_late == 2


def test_the_age_of_a_snapshot_is_taken_from_its_own_time() -> None:
    """When a stream opens, OANDA sends the current price, however old it is."""
    clocks = Clocks()
    market = market_of(clocks)
    market.on_item(price(-300))
    market.on_item(Heartbeat(at(0)))
    assert market.price_age_seconds() == 300.0
    clocks.go_on(5.0)
    assert market.price_age_seconds() == 305.0
    market.on_item(price(5))
    assert market.price_age_seconds() == 0.0
    clocks.go_on(1.0)
    assert market.price_age_seconds() == 1.0


@given(
    st.lists(
        st.one_of(
            st.builds(
                Price,
                st.sampled_from(["GBP_JPY", "EUR_USD", ""]),
                st.integers(0, 4_102_444_799 * NANOSECONDS),
                st.none() | st.floats(),
                st.none() | st.floats(),
                st.booleans(),
            ),
            st.builds(Heartbeat, st.integers(0, 4_102_444_799 * NANOSECONDS)),
            st.just(UnreadableLine("x")),
        ),
        max_size=30,
    ),
    st.booleans(),
)
@settings(max_examples=200)
def test_no_line_raises_an_error_and_no_bad_price_is_accepted(
    items: list[Price | Heartbeat | UnreadableLine], simulated: bool
) -> None:
    clocks = Clocks()
    market = market_of(clocks, simulated=simulated)
    for item in items:
        market.on_item(item)
        market.minutes_to_close()
        quoted = market.quoted
        if (
            quoted
            and quoted.price.tradeable
            and quoted.price.bid is not None
            and quoted.price.ask is not None
        ):
            assert 0 < quoted.price.bid <= quoted.price.ask < math.inf
            assert quoted.price.instrument == "GBP_JPY"
        if not simulated:
            assert market.time_ns / NANOSECONDS <= clocks.wall_s + 5.001


_FIRST_BARS = """
from numba.core.registry import CPUDispatcher
from services.trader.market import Market, compile_kernels
from shared.adapters.oanda.records import Candle, Quote
from shared.environment import position
from shared.environment.action import Side
from shared.features import kernels
from shared.market.bar import Instrument

def compiled():
    modules = (kernels, position)
    found = [f for m in modules for f in vars(m).values() if isinstance(f, CPUDispatcher)]
    return {f.__name__: len(f.signatures) for f in found}

gbp_jpy = Instrument.named("GBP_JPY")
compile_kernels(gbp_jpy)
before = compiled()
market = Market(gbp_jpy, lambda: 0.0, None, max_jump_percent=5.0)
market.take([Candle(60 * n, 1, True, Quote(190.0, 190.0, 190.0, 190.0)) for n in range(200)])
position.Position(0.01).after_entry(Side.SHORT, 190.0, 4.0).charge(1.5).at_close(190.25).static()
assert market.window() is not None
assert any(before.values()) and compiled() == before, (before, compiled())
"""


def test_compile_kernels_leaves_nothing_to_compile_at_a_bar() -> None:
    """Compilation takes half a minute with a cold cache; on the event loop it would stop everything."""
    subprocess.run([sys.executable, "-c", _FIRST_BARS], check=True, timeout=300)


# -- time --------------------------------------------------------------------------------------------


def test_a_slow_clock_is_accepted_once_lines_agree_unless_it_is_a_day_off() -> None:
    times = BrokerTimes()
    ahead = 120.0
    verdicts = [times.judge(at(ahead + s), NOON_S + s, heartbeat=True) for s in range(0, 20, 5)]
    assert verdicts == [Verdict.REFUSED, Verdict.REFUSED, Verdict.ACCEPTED, Verdict.ACCEPTED]
    # After the clock has been corrected, a line two minutes ahead is refused again.
    assert times.judge(at(20), NOON_S + 20, heartbeat=True) is Verdict.ACCEPTED
    assert times.judge(at(20 + ahead), NOON_S + 20, heartbeat=True) is Verdict.REFUSED
    assert {times.judge(at(DAY_S + s), NOON_S + s, heartbeat=True) for s in range(25, 600, 5)} == {
        Verdict.REFUSED
    }


@pytest.mark.parametrize("seconds", [(0.0, 1.0, 2.0, 9.9), (0.0, 30.0)], ids=["quick", "few"])
def test_quick_or_few_agreeing_lines_do_not_show_a_slow_clock(seconds: tuple[float, ...]) -> None:
    times, ahead = BrokerTimes(), 120.0
    assert {times.judge(at(ahead + s), NOON_S + s, heartbeat=True) for s in seconds} == {Verdict.REFUSED}


def test_single_wrong_times_are_always_refused() -> None:
    times = BrokerTimes()
    for s in range(0, 600, 5):
        assert times.judge(at(s), NOON_S + s, heartbeat=True) is Verdict.ACCEPTED
        assert times.judge(at(s + 300), NOON_S + s, heartbeat=True) is Verdict.REFUSED


@pytest.mark.parametrize(("ahead", "skew"), [(-30.0, 30.0), (3.0, -3.0)])
def test_clock_skew_is_positive_when_this_clock_is_ahead(ahead: float, skew: float) -> None:
    market = market_of(Clocks())
    market.on_item(price(-3_600))
    assert market.clock_skew_seconds is None, "a price does not show the clock skew"
    market.on_item(Heartbeat(at(ahead)))
    assert market.clock_skew_seconds == skew


def test_a_wrong_time_is_forgotten_with_its_connection() -> None:
    market = market_of(Clocks(), simulated=True)
    market.on_item(price(0))
    market.on_item(price(DAY_S))
    market.on_item(price(DAY_S + 1))
    assert market.time_ns == at(DAY_S + 1)
    market.warm_up([candle(0)])
    market.on_item(price(61))
    assert market.time_ns == at(61)


def test_silence_is_measured_from_the_start_of_the_connection() -> None:
    """The first line may be refused; silence before the connection does not count."""
    clocks = Clocks()
    market = market_of(clocks)
    clocks.go_on(60)
    market.warm_up([candle(0)])
    market.on_item(price(DAY_S))
    assert market.heard == clocks.monotonic_s


def test_a_replay_jump_confirmed_by_a_second_price_closes_the_bar_before() -> None:
    market = market_of(Clocks(), simulated=True)
    market.on_item(price(59))
    assert market.on_item(Heartbeat(at(2 * DAY_S))) is None
    assert market.refused == {Refusal.FUTURE: 1}, "a heartbeat never jumps"
    assert market.on_item(price(2 * DAY_S, 191.0, 191.04)) == NOON_S
    assert market.time_ns == at(59)
    assert market.on_item(price(2 * DAY_S + 20, 191.0, 191.04)) is None
    assert market.time_ns == at(2 * DAY_S + 20)
    assert market.refused == {Refusal.FUTURE: 1}


def test_an_unconfirmed_replay_jump_is_refused_and_its_bar_reopened() -> None:
    market = market_of(Clocks(), simulated=True)
    market.on_item(price(0))
    assert market.on_item(price(DAY_S)) == NOON_S
    assert market.on_item(price(20)) is None
    assert market.refused == {Refusal.FUTURE: 1}
    assert market.time_ns == at(20)
    assert market.on_item(price(61)) == NOON_S, "the bar closes again once its minute is over"


@pytest.mark.parametrize(("gap", "lines"), [(2, 0), (20, 3), (29, 1)])
def test_a_gap_in_a_replay_does_not_age_the_bar_before_it(gap: int, lines: int) -> None:
    """No line is sent in a gap, so the decision on the bar before it is made and filled at the next open."""
    market = market_of(Clocks(), simulated=True)
    market.on_item(price(59))
    assert market.on_item(price(60 * gap)) == NOON_S
    assert market.bar_age_seconds(NOON_S) == 0
    for line in range(lines):
        market.on_item(price(60 * gap + 20 * (line + 1)))
    assert market.bar_age_seconds(NOON_S) == 20 * lines


def test_in_real_time_a_bar_ages_with_the_market_time() -> None:
    clocks = Clocks()
    market = market_of(clocks)
    clocks.go_on(59)
    market.on_item(price(59))
    clocks.go_on(241)
    assert market.on_item(Heartbeat(at(300))) == NOON_S
    assert market.bar_age_seconds(NOON_S) == 240


def test_a_replay_jump_is_not_confirmed_by_an_earlier_jump() -> None:
    times = ReplayTimes(NOON_S)
    assert times.judge(at(DAY_S), 0.0, heartbeat=False) is Verdict.HELD
    assert times.judge(at(DAY_S / 2), 0.0, heartbeat=False) is Verdict.HELD
    assert times.judge(at(DAY_S / 2 + 20), 0.0, heartbeat=False) is Verdict.ACCEPTED


def test_heartbeats_do_not_confirm_a_replay_jump() -> None:
    times = ReplayTimes(NOON_S)
    assert times.judge(at(DAY_S), 0.0, heartbeat=False) is Verdict.HELD
    assert times.judge(at(DAY_S + 1), 0.0, heartbeat=True) is Verdict.REFUSED


# -- levels ------------------------------------------------------------------------------------------


def test_a_new_level_needs_prices_and_a_candle_to_confirm_them() -> None:
    level = PriceLevel(5.0)
    assert level.accepts_price(190.0)
    assert not any(level.accepts_price(mid) for mid in (170.0, 170.1, 170.2, 170.1))
    assert level.accepts_closes([170.0]) == [True]
    assert level.accepts_price(170.1)
    assert not level.accepts_price(190.0)


@pytest.mark.parametrize(("num_prices", "accepted"), [(2, False), (3, True)])
def test_three_prices_near_each_other_make_a_level_for_a_candle(num_prices: int, accepted: bool) -> None:
    level = PriceLevel(5.0)
    assert level.accepts_price(190.0)
    assert not any(level.accepts_price(170.0) for _ in range(num_prices))
    assert level.accepts_closes([170.0]) == [accepted]


def test_prices_alone_or_a_candle_alone_do_not_move_the_level() -> None:
    level = PriceLevel(5.0)
    assert level.accepts_price(190.0)
    assert not any(level.accepts_price(19_000.0) for _ in range(1_000))
    assert level.accepts_price(190.1)
    assert level.accepts_closes([19_000.0, 19_000.0, 190.2]) == [False, False, True]


def test_prices_far_from_each_other_make_no_new_level() -> None:
    level = PriceLevel(5.0)
    assert level.accepts_price(190.0)
    for mid in (170.0, 100.0, 170.0, 100.0):
        assert not level.accepts_price(mid)
    assert level.accepts_closes([170.0]) == [False]


def test_a_history_accepts_a_jump_only_if_the_next_candle_confirms_it() -> None:
    level = PriceLevel(5.0)
    assert level.accepts_closes([19_000.0, 190.0, 190.1, 1.9, 190.0, 170.0, 170.1]) == [
        False, True, True, False, True, True, True,
    ]  # fmt: skip


def test_the_jump_limit_is_relative_and_infinity_disables_it() -> None:
    level = PriceLevel(5.0)
    assert level.accepts_price(100.0)
    assert level.accepts_price(105.0 - 1e-9)
    assert not level.accepts_price(110.26)
    assert PriceLevel(math.inf).accepts_price(1.0)


# -- candles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"mid": None}, "no mid prices"),
        ({"time_s": NOON_S + 7}, "not the opening of a minute"),
        ({"time_s": NOON_S + DAY_S}, "in the future"),
        ({"mid": Quote(190.0, 189.0, 191.0, 190.0)}, "expected 0 < low"),
        ({"mid": Quote(190.0, 190.0, 190.0, 190.1)}, "expected 0 < low"),
        ({"mid": Quote(190.0, 190.0, 0.0, 190.0)}, "expected 0 < low"),
        ({"mid": Quote(190.0, math.inf, 190.0, 190.0)}, "expected 0 < low"),
        ({"mid": Quote(190.0, 190.0, 190.0, math.nan)}, "expected 0 < low"),
    ],
)
def test_a_bad_candle_is_refused_once_however_often_it_is_read(changes: dict[str, object], text: str) -> None:
    clocks = Clocks()
    clocks.go_on(600)
    market = market_of(clocks)
    bad = candle(1, **changes)  # type: ignore[arg-type]
    assert text in fault_of(bad, clocks.wall_s)
    for _ in range(3):
        assert market.take([candle(0), bad, candle(2)]) in ([(NOON_S, 190.0), (NOON_S + 120, 190.0)], [])
    assert market.refused == {Refusal.CANDLE: 1}
    assert text in market.refusals[Refusal.CANDLE]
    assert market.last_bar_s == NOON_S + 120


def test_unordered_and_repeated_candles_are_taken_in_order_and_once() -> None:
    clocks = Clocks()
    clocks.go_on(600)
    market = market_of(clocks)
    assert [time_s for time_s, _ in market.take([candle(2), candle(0), candle(1), candle(1)])] == [
        NOON_S,
        NOON_S + 60,
        NOON_S + 120,
    ]
    assert market.take([candle(1), candle(2)]) == []
    assert not market.refused
