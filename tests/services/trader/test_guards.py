"""Every guard: when it trips, when it does not, and which actions it permits."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trader.config import GuardConfig
from services.trader.guards import (
    Effect,
    Guard,
    Situation,
    TraderState,
    Trip,
    forced_exit,
    permit,
    state_of,
    tripped,
)
from services.trader.risk import RiskBook
from shared.environment.action import LEGAL, Action, Side

LIMITS = GuardConfig()

CALM = Situation(
    side=Side.FLAT,
    bars_held=0,
    silence_seconds=0.2,
    price_age_seconds=0.5,
    spread_pips=3.0,
    tradeable=True,
    replay_over=False,
    minutes_to_close=3_000.0,
    clock_skew_seconds=0.1,
    decision_age_seconds=1.0,
    decision_age_limit_seconds=60.0,
    missing_minutes=3,
    orders_last_hour=5,
    risk=RiskBook(),
    control="running",
    killed_by="",
    has_lease=True,
    unknown_orders=0,
    foreign_position="",
    outbox_full=False,
    version_live=None,
    version_unproven=False,
)


def test_no_guard_trips_in_a_normal_situation() -> None:
    assert tripped(CALM, LIMITS) == ()
    assert state_of(()) is TraderState.ACTIVE
    assert permit(Action.BUY, Side.FLAT, ()).action is Action.BUY


#: A change of the normal situation, the guard that it trips, its effect, and a value just inside the limit.
CASES: list[tuple[dict[str, Any], Guard, Effect, dict[str, Any]]] = [
    ({"silence_seconds": 10.1}, Guard.STALE_PRICE, Effect.NO_DECISION, {"silence_seconds": 10.0}),
    ({"price_age_seconds": 120.1}, Guard.QUIET_PRICE, Effect.NO_DECISION, {"price_age_seconds": 120.0}),
    ({"spread_pips": 8.1}, Guard.SPREAD, Effect.NO_ENTRY, {"spread_pips": 8.0}),
    ({"spread_pips": None}, Guard.SPREAD, Effect.NO_DECISION, {"spread_pips": 0.0}),
    ({"tradeable": False}, Guard.MARKET_CLOSED, Effect.NO_ORDER, {}),
    ({"minutes_to_close": 0.0}, Guard.MARKET_CLOSED, Effect.NO_ORDER, {"minutes_to_close": 5.1}),
    ({"minutes_to_close": 5.0}, Guard.MARKET_CLOSING, Effect.FLATTEN, {"minutes_to_close": 5.1}),
    ({"clock_skew_seconds": -5.1}, Guard.CLOCK_SKEW, Effect.NO_ENTRY, {"clock_skew_seconds": -5.0}),
    ({"clock_skew_seconds": 300.0}, Guard.CLOCK_SKEW, Effect.NO_ENTRY, {"clock_skew_seconds": None}),
    ({"decision_age_seconds": 60.1}, Guard.OLD_BAR, Effect.NO_DECISION, {"decision_age_seconds": 60.0}),
    ({"missing_minutes": 61}, Guard.MISSING_BARS, Effect.NO_ENTRY, {"missing_minutes": 60}),
    ({"risk": RiskBook(daily_broken=True)}, Guard.DAILY_LOSS, Effect.FLATTEN, {"risk": RiskBook()}),
    ({"risk": RiskBook(weekly_broken=True)}, Guard.WEEKLY_LOSS, Effect.FLATTEN, {"risk": RiskBook()}),
    ({"risk": RiskBook(drawdown_broken=True)}, Guard.DRAWDOWN, Effect.FLATTEN, {"risk": RiskBook()}),
    ({"side": Side.LONG, "bars_held": 360}, Guard.HELD_LONG, Effect.FLATTEN, {"bars_held": 359}),
    ({"orders_last_hour": 40}, Guard.ORDER_RATE, Effect.NO_ENTRY, {"orders_last_hour": 39}),
    ({"risk": RiskBook(rejects=3)}, Guard.REJECTS, Effect.NO_ENTRY, {"risk": RiskBook(rejects=2)}),
    ({"unknown_orders": 1}, Guard.OUTCOME_UNKNOWN, Effect.NO_ENTRY, {}),
    ({"foreign_position": "2 units"}, Guard.FOREIGN_POSITION, Effect.NO_DECISION, {}),
    ({"control": "killed"}, Guard.KILLED, Effect.FLATTEN, {"control": "running"}),
    ({"control": "paused"}, Guard.PAUSED, Effect.NO_ENTRY, {"control": "running"}),
    ({"has_lease": False}, Guard.NO_LEASE, Effect.NO_ENTRY, {}),
    ({"outbox_full": True}, Guard.OUTBOX_FULL, Effect.NO_ENTRY, {}),
    ({"version_live": False}, Guard.VERSION_NOT_LIVE, Effect.NO_ENTRY, {"version_live": True}),
    ({"version_unproven": True}, Guard.VERSION_UNPROVEN, Effect.NO_ENTRY, {"version_unproven": False}),
]


@pytest.mark.parametrize(("change", "guard", "effect", "inside"), CASES, ids=[str(c[1]) for c in CASES])
def test_each_guard_trips_exactly_at_its_bound(
    change: dict[str, Any], guard: Guard, effect: Effect, inside: dict[str, Any]
) -> None:
    (trip,) = tripped(replace(CALM, **change), LIMITS)
    assert (trip.guard, trip.effect) == (guard, effect)
    assert trip.detail
    assert tripped(replace(CALM, **inside), LIMITS) == ()


def test_every_guard_has_a_case() -> None:
    assert {case[1] for case in CASES} == set(Guard)


def test_silence_of_a_closed_market_trips_no_price_guard() -> None:
    over = replace(CALM, tradeable=False, minutes_to_close=-9.0, replay_over=True)
    assert tripped(over, LIMITS) == ()
    closed = replace(CALM, tradeable=False, silence_seconds=1e5, price_age_seconds=1e5, spread_pips=None)
    assert [trip.guard for trip in tripped(closed, LIMITS)] == [Guard.MARKET_CLOSED]


def test_infinity_disables_a_limit() -> None:
    off = replace(LIMITS, max_spread_pips=float("inf"), max_orders_per_hour=float("inf"))
    assert tripped(replace(CALM, spread_pips=500.0, orders_last_hour=10_000), off) == ()


@pytest.mark.parametrize(
    ("effect", "side", "wanted", "done"),
    [
        (Effect.NO_ENTRY, Side.FLAT, Action.BUY, Action.HOLD),
        (Effect.NO_ENTRY, Side.FLAT, Action.SELL, Action.HOLD),
        (Effect.NO_ENTRY, Side.LONG, Action.CLOSE, Action.CLOSE),
        (Effect.NO_ENTRY, Side.LONG, Action.HOLD, Action.HOLD),
        (Effect.FLATTEN, Side.LONG, Action.HOLD, Action.CLOSE),
        (Effect.FLATTEN, Side.SHORT, Action.CLOSE, Action.CLOSE),
        (Effect.FLATTEN, Side.FLAT, Action.BUY, Action.HOLD),
        (Effect.NO_DECISION, Side.LONG, Action.CLOSE, Action.HOLD),
        (Effect.NO_DECISION, Side.FLAT, Action.BUY, Action.HOLD),
        (Effect.NO_ORDER, Side.LONG, Action.CLOSE, Action.HOLD),
        (Effect.NO_ORDER, Side.FLAT, Action.SELL, Action.HOLD),
    ],
)
def test_each_effect_permits_certain_actions(
    effect: Effect, side: Side, wanted: Action, done: Action
) -> None:
    permission = permit(wanted, side, [Trip(Guard.SPREAD, effect, "why")])
    assert permission.action is done
    assert permission.reason == ("" if done is wanted else "spread: why")


@given(
    effects=st.lists(st.sampled_from(list(Effect)), max_size=4),
    side=st.sampled_from(list(Side)),
    wanted=st.sampled_from(list(Action)),
)
def test_guards_make_neither_an_entry_nor_an_illegal_action(
    effects: list[Effect], side: Side, wanted: Action
) -> None:
    if not LEGAL[side + 1, wanted]:
        return
    trips = [Trip(Guard.SPREAD, effect, "why") for effect in effects]
    done = permit(wanted, side, trips).action
    assert LEGAL[side + 1, done]
    if effects:
        assert done not in (Action.BUY, Action.SELL)
    if Effect.NO_ORDER in effects:
        assert done is Action.HOLD
        assert state_of(trips) is TraderState.HALTED


@given(
    others=st.sets(st.sampled_from([case[1] for case in CASES])),
    forced=st.sampled_from([case for case in CASES if case[2] is Effect.FLATTEN]),
    side=st.sampled_from([Side.LONG, Side.SHORT]),
)
def test_only_a_closed_market_delays_a_forced_exit(
    others: set[Guard], forced: tuple[dict[str, Any], Guard, Effect, dict[str, Any]], side: Side
) -> None:
    """Neither other guards nor the agent's decision delay it."""
    beside = {name: value for case in CASES if case[1] in others for name, value in case[0].items()}
    trips = tripped(replace(CALM, **{**beside, **forced[0], "side": side}), LIMITS)
    assert str(forced[1]) in forced_exit(trips) or Guard.MARKET_CLOSED in {trip.guard for trip in trips}
    closed = any(trip.guard is Guard.MARKET_CLOSED for trip in trips)
    for wanted in (Action.HOLD, Action.CLOSE):
        assert permit(wanted, side, trips).action is (Action.HOLD if closed else Action.CLOSE)
