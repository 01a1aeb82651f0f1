"""One session replayed from a list of actions: the single-lane view of the lockstep environment."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from shared.environment.environment import EnvironmentConfig, Prices, reset, step
from shared.environment.trade import Trade
from shared.errors import DataError
from shared.numeric import Float32, Float64, Int8, Int64


@dataclass(frozen=True)
class Episode:
    """The course of one session; a row per decision."""

    bars: Int64  # [T] the bar at whose close the decision was made
    actions: Int8  # [T]
    rewards: Float32  # [T] pips, earned by the decision's step
    pnl: Float64  # [T] unrealised pips of the position at the decision, 0 when flat
    static: Float32  # [T, 6] at the decision
    trades: tuple[Trade, ...]


def replay(start_bar: int, actions: Sequence[int], prices: Prices, config: EnvironmentConfig) -> Episode:
    """Execute a list of actions; the episode is as long as the list.

    Args:
        start_bar: the bar at whose close the first decision is made.
        actions: `Action` values, one per bar; a position open after the last fill is closed at the same open.
        prices: prices of the data set.
        config: costs and rewards; its session length is not used.
    Raises:
        IllegalActionError: an action is not one of the four, or the position does not allow it.
        DataError: the list is empty, or the data set ends before the last action executes.
    """
    if not actions:
        raise DataError("no action to replay: expected at least one")
    config = replace(config, session_bars=len(actions))
    lanes = reset(np.array([start_bar]))
    rewards = np.empty(len(actions), np.float32)
    pnl = np.empty(len(actions))
    static = np.empty((len(actions), 6), np.float32)
    trades: list[Trade] = []
    for row, action in enumerate(actions):
        pnl[row], static[row] = lanes.pnl[0], lanes.static()[0]
        transition = step(lanes, np.array([action]), prices, config)
        lanes, rewards[row] = transition.lanes, transition.reward[0]
        trades.extend(transition.trades.of_lane(0))
    bars = start_bar + np.arange(len(actions))
    return Episode(bars, np.array(actions, np.int8), rewards, pnl, static, tuple(trades))
