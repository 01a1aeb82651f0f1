"""Guards: conditions under which the trader may not trade, as pure functions of a situation.

A guard forbids no more than its reason requires. Only a closed market keeps the kill switch or a limit from
closing the position. A stale price, a missing lease or an unknown order are reasons against an entry, not
against an exit, because a position that nobody manages is the larger risk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from services.trader.config import GuardConfig
from services.trader.risk import RiskBook
from shared.environment.action import Action, Side


class Guard(StrEnum):
    """The guards, named as in alerts and metrics."""

    STALE_PRICE = "stale_price"
    QUIET_PRICE = "quiet_price"
    SPREAD = "spread"
    MARKET_CLOSED = "market_closed"
    MARKET_CLOSING = "market_closing"
    CLOCK_SKEW = "clock_skew"
    DAILY_LOSS = "daily_loss"
    WEEKLY_LOSS = "weekly_loss"
    DRAWDOWN = "drawdown"
    ORDER_RATE = "order_rate"
    REJECTS = "rejects"
    HELD_LONG = "held_long"
    MISSING_BARS = "missing_bars"
    OLD_BAR = "old_bar"
    KILLED = "killed"
    PAUSED = "paused"
    NO_LEASE = "no_lease"
    OUTCOME_UNKNOWN = "outcome_unknown"
    FOREIGN_POSITION = "foreign_position"
    OUTBOX_FULL = "outbox_full"
    VERSION_NOT_LIVE = "version_not_live"
    VERSION_UNPROVEN = "version_unproven"


#: Guards that trip in ordinary operation: every market closes, and a new system has no version that passed a
#: gate yet. They are shown but raise no alert.
ORDINARY_GUARDS = frozenset((Guard.MARKET_CLOSED, Guard.VERSION_UNPROVEN))


class Effect(IntEnum):
    """Effect of a guard; the largest one wins."""

    NO_ENTRY = 1  # the agent may still close
    NO_DECISION = 2  # the agent's decisions are ignored; exits forced by a guard are still sent
    FLATTEN = 3  # the position is closed; no entry
    NO_ORDER = 4  # no order at all


class TraderState(StrEnum):
    """Orders that the trader may send."""

    ACTIVE = "active"  # entries and exits
    REDUCING = "reducing"  # exits only
    HALTED = "halted"  # only exits forced by the kill switch or a limit, and only while the market is open


@dataclass(frozen=True)
class Trip:
    """A guard that is tripped now."""

    guard: Guard
    effect: Effect
    detail: str


_HALTING = (Effect.NO_DECISION, Effect.NO_ORDER)


@dataclass(frozen=True)
class Situation:
    """Input of the guards. Ages are in wall-clock time unless noted: a replay is faster than real time."""

    side: Side
    bars_held: int  # bars that closed since the entry; 0 when flat
    silence_seconds: float  # since the last tick or heartbeat
    price_age_seconds: float  # since the last tick
    spread_pips: float | None  # spread of the quote; None while the book is empty
    tradeable: bool  # the broker's flag of the newest price
    replay_over: bool  # the paper broker's replay has ended and its last bar was decided on
    minutes_to_close: float  # until Friday's close; 0 or less after it
    clock_skew_seconds: float | None  # None where the market's time is simulated
    decision_age_seconds: float  # market time since the end of the bar decided on
    decision_age_limit_seconds: float
    missing_minutes: int  # open minutes without a bar among the bars used for the features
    orders_last_hour: int
    risk: RiskBook
    control: str  # running, paused or killed
    killed_by: str  # author of the kill file and the command that lifts it, as text
    has_lease: bool
    unknown_orders: int  # orders that were sent and whose outcome is not known
    foreign_position: str  # description of a position that is not this trader's; empty if there is none
    outbox_full: bool
    version_live: bool | None  # None where the mode does not require a live version
    version_unproven: bool  # the deciding version passed no gate, and no setting allows its entries


def tripped(now: Situation, limits: GuardConfig) -> tuple[Trip, ...]:
    """Every tripped guard, those with the largest effect first."""
    trips = [trip for check in _CHECKS for trip in check(now, limits)]
    return tuple(sorted(trips, key=lambda trip: -trip.effect))


@dataclass(frozen=True)
class Permission:
    """The permitted action, and why it differs from the decision; the reason is empty if it does not."""

    action: Action
    reason: str = ""


def permit(action: Action, side: Side, trips: Sequence[Trip]) -> Permission:
    """The permitted action: the decided one, a CLOSE forced by a guard, or HOLD."""
    effect = max((trip.effect for trip in trips), default=None)
    if effect is None:
        return Permission(action)
    allowed = action
    if effect in _HALTING:
        allowed = Action.HOLD
    elif effect is Effect.FLATTEN:
        allowed = Action.HOLD if side is Side.FLAT else Action.CLOSE
    elif action in (Action.BUY, Action.SELL):
        allowed = Action.HOLD
    return Permission(
        allowed, "" if allowed is action else "; ".join(f"{t.guard}: {t.detail}" for t in trips)
    )


def state_of(trips: Sequence[Trip]) -> TraderState:
    """The trader's state while these guards are tripped."""
    effect = max((trip.effect for trip in trips), default=None)
    if effect is None:
        return TraderState.ACTIVE
    return TraderState.HALTED if effect in _HALTING else TraderState.REDUCING


def forced_exit(trips: Sequence[Trip]) -> str:
    """Reason why the position must be closed whatever the agent decides, or an empty text."""
    return "; ".join(f"{trip.guard}: {trip.detail}" for trip in trips if trip.effect is Effect.FLATTEN)


_Check = Callable[[Situation, GuardConfig], list[Trip]]


def _feed(now: Situation, limits: GuardConfig) -> list[Trip]:
    """Prices must arrive, be fresh and have a narrow spread. In a closed market, silence is normal."""
    if now.replay_over:
        return []  # no more prices, no more decisions
    if now.minutes_to_close <= 0 or not now.tradeable:
        return [Trip(Guard.MARKET_CLOSED, Effect.NO_ORDER, "the market is closed")]
    trips = []
    if now.silence_seconds > limits.stale_seconds:
        trips.append(
            _no_decision(Guard.STALE_PRICE, f"no price and no heartbeat for {now.silence_seconds:.1f} s")
        )
    if now.price_age_seconds > limits.quiet_seconds:
        trips.append(_no_decision(Guard.QUIET_PRICE, f"no price for {now.price_age_seconds:.1f} s"))
    if now.minutes_to_close <= limits.close_margin_minutes:
        detail = f"the trading week closes in {now.minutes_to_close:.0f} min"
        trips.append(Trip(Guard.MARKET_CLOSING, Effect.FLATTEN, detail))
    if now.spread_pips is None:
        trips.append(_no_decision(Guard.SPREAD, "the broker quotes no bid or no ask"))
    elif now.spread_pips > limits.max_spread_pips:
        detail = f"the spread is {now.spread_pips:.1f} pips, at most {limits.max_spread_pips:g} are allowed"
        trips.append(Trip(Guard.SPREAD, Effect.NO_ENTRY, detail))
    return trips


def _clocks(now: Situation, limits: GuardConfig) -> list[Trip]:
    trips = []
    skew = now.clock_skew_seconds
    if skew is not None and abs(skew) > limits.max_clock_skew_seconds:
        detail = f"this machine's clock is {skew:+.1f} s off the broker's: synchronise it"
        trips.append(Trip(Guard.CLOCK_SKEW, Effect.NO_ENTRY, detail))
    if now.decision_age_seconds > now.decision_age_limit_seconds:
        trips.append(_no_decision(Guard.OLD_BAR, f"the bar ended {now.decision_age_seconds:.0f} s ago"))
    if now.missing_minutes > limits.max_missing_minutes:
        detail = f"the features' history lacks the bars of {now.missing_minutes} open minutes"
        trips.append(Trip(Guard.MISSING_BARS, Effect.NO_ENTRY, detail))
    return trips


def _losses(now: Situation, limits: GuardConfig) -> list[Trip]:
    risk, trips = now.risk, []
    for broken, guard, loss, limit, until in (
        (risk.daily_broken, Guard.DAILY_LOSS, risk.daily_loss, limits.daily_loss_pips, "the next day"),
        (risk.weekly_broken, Guard.WEEKLY_LOSS, risk.weekly_loss, limits.weekly_loss_pips, "the next week"),
        (
            risk.drawdown_broken,
            Guard.DRAWDOWN,
            risk.drawdown,
            limits.max_drawdown_pips,
            "an operator resumes trading",
        ),
    ):
        if broken:
            detail = f"the limit of {limit:g} pips was reached, now {loss:.1f}: no entry until {until}"
            trips.append(Trip(guard, Effect.FLATTEN, detail))
    return trips


def _orders(now: Situation, limits: GuardConfig) -> list[Trip]:
    trips = []
    if now.orders_last_hour >= limits.max_orders_per_hour:
        detail = f"{now.orders_last_hour} orders within the last hour"
        trips.append(Trip(Guard.ORDER_RATE, Effect.NO_ENTRY, detail))
    if now.risk.rejects >= limits.max_rejects:
        detail = (
            f"{now.risk.rejects} orders in a row were rejected or cancelled: no entry until an order is "
            "filled or an operator resumes trading"
        )
        trips.append(Trip(Guard.REJECTS, Effect.NO_ENTRY, detail))
    if now.bars_held >= limits.max_bars_held:
        detail = f"the position was held for {now.bars_held} bars"
        trips.append(Trip(Guard.HELD_LONG, Effect.FLATTEN, detail))
    if now.unknown_orders:
        detail = (
            f"{now.unknown_orders} orders were sent and their outcome is not known yet; an operator who "
            "resumes trading abandons them"
        )
        trips.append(Trip(Guard.OUTCOME_UNKNOWN, Effect.NO_ENTRY, detail))
    if now.foreign_position:
        trips.append(_no_decision(Guard.FOREIGN_POSITION, now.foreign_position))
    return trips


def _rights(now: Situation, _limits: GuardConfig) -> list[Trip]:
    trips = []
    if now.control == "killed":
        trips.append(Trip(Guard.KILLED, Effect.FLATTEN, f"the kill switch is on {now.killed_by}".rstrip()))
    if now.control == "paused":
        trips.append(Trip(Guard.PAUSED, Effect.NO_ENTRY, "an operator paused trading"))
    if not now.has_lease:
        detail = "this trader does not hold the account's lease: check Redis, and for a second trader"
        trips.append(Trip(Guard.NO_LEASE, Effect.NO_ENTRY, detail))
    if now.outbox_full:
        detail = "too many audit messages are undelivered: check Redis and the trader's DuckDB file"
        trips.append(Trip(Guard.OUTBOX_FULL, Effect.NO_ENTRY, detail))
    if now.version_live is False:
        detail = "the version that decides is not promoted to live: promote one that passed the live gate"
        trips.append(Trip(Guard.VERSION_NOT_LIVE, Effect.NO_ENTRY, detail))
    if now.version_unproven:
        detail = "the version that decides passed no gate: no entry until one does"
        trips.append(Trip(Guard.VERSION_UNPROVEN, Effect.NO_ENTRY, detail))
    return trips


def _no_decision(guard: Guard, detail: str) -> Trip:
    return Trip(guard, Effect.NO_DECISION, detail)


_CHECKS: tuple[_Check, ...] = (_feed, _clocks, _losses, _orders, _rights)
