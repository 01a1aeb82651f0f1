"""Simple trading rules that a version must beat, in the same sessions and the same environment."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from services.validator.evaluate import Walk, require_sessions
from shared.environment.action import NUM_ACTIONS, Action, Side
from shared.environment.environment import EnvironmentConfig, Lanes, Prices, reset, step
from shared.environment.trade import TradeLog
from shared.metrics.equity import in_time_order
from shared.numeric import Bool, Float64, Int8, Int64

#: Closes in the fast and in the slow mean of the moving-average cross.
FAST_BARS, SLOW_BARS = 10, 50

#: Chooses the action of every lane, `[B]`; it may use the bars up to the present bar of each lane.
Rule = Callable[[Lanes], Int8]


@dataclass(frozen=True)
class Baseline:
    """A rule's name and its walk."""

    name: str
    walk: Walk


def walk_baselines(
    prices: Prices, starts: Int64, environment: EnvironmentConfig, *, seed: int = 0
) -> tuple[Baseline, ...]:
    """Walk every baseline through the sessions.

    Args:
        prices: prices of the data set.
        starts: `[S]` first bars of sessions that do not overlap, ascending.
        environment: costs and session length.
        seed: seed of the random baseline.
    Raises:
        DataError: there is no session.
    """
    require_sessions(starts)
    rules = {
        "flat": flat,
        "random": random_legal(np.random.default_rng(seed)),
        "always long": always_long,
        "moving-average cross": moving_average_cross(prices.close),
    }
    return tuple(Baseline(name, walk_rule(rule, prices, starts, environment)) for name, rule in rules.items())


def walk_rule(rule: Rule, prices: Prices, starts: Int64, environment: EnvironmentConfig) -> Walk:
    """Walk one rule through all sessions in lockstep."""
    lanes = reset(starts)
    logs = []
    action_counts = np.zeros(NUM_ACTIONS, np.int64)
    for _ in range(environment.session_bars):
        actions = rule(lanes)
        action_counts += np.bincount(actions, minlength=NUM_ACTIONS)
        transition = step(lanes, actions, prices, environment)
        lanes = transition.lanes
        logs.append(transition.trades)
    return Walk(starts, environment.session_bars, in_time_order(TradeLog.joined(logs)), action_counts)


def flat(lanes: Lanes) -> Int8:
    """Never trade."""
    return np.full(len(lanes.bar), Action.HOLD, np.int8)


def always_long(lanes: Lanes) -> Int8:
    """Buy at the session's first bar and hold until its end."""
    return np.where(lanes.side == Side.FLAT, Action.BUY, Action.HOLD).astype(np.int8)


def random_legal(rng: np.random.Generator) -> Rule:
    """Draw a legal action, each equally likely."""

    def rule(lanes: Lanes) -> Int8:
        draws = np.where(lanes.legal(), rng.random((len(lanes.bar), NUM_ACTIONS)), -1.0)
        actions: Int8 = draws.argmax(axis=1).astype(np.int8)
        return actions

    return rule


def moving_average_cross(close: Float64) -> Rule:
    """Long while the mean of the last 10 closes is above that of the last 50, short while below.

    Args:
        close: `[T]` closes. The rule is flat until there are 50 of them.
    """
    above = trend(close)

    def rule(lanes: Lanes) -> Int8:
        wanted = above[lanes.bar]
        entry = np.where(wanted == Side.LONG, Action.BUY, Action.SELL)
        actions = np.full(len(lanes.bar), Action.HOLD, np.int8)
        enter: Bool = (lanes.side == Side.FLAT) & (wanted != Side.FLAT)
        leave: Bool = (lanes.side != Side.FLAT) & (wanted != lanes.side)
        actions[enter] = entry[enter]
        actions[leave] = Action.CLOSE
        return actions

    return rule


def trend(close: Float64) -> Int8:
    """`[T]` LONG where the fast mean is above the slow one, SHORT where below; FLAT if equal or too early."""
    total = np.concatenate(([0.0], np.cumsum(close - close[0])))
    fast, slow = (np.full(len(close), np.nan) for _ in range(2))
    for mean, bars in ((fast, FAST_BARS), (slow, SLOW_BARS)):
        mean[bars - 1 :] = (total[bars:] - total[:-bars]) / bars
    side = np.zeros(len(close), np.int8)
    side[fast > slow] = Side.LONG
    side[fast < slow] = Side.SHORT
    return side
