"""The trading environment: B sessions in lockstep, as pure functions of their state.

A decision at the close of bar t executes at the open of bar t + 1. A step therefore books the reward of
the decision at that open, then marks the position at that bar's close, where the next decision is made.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shared.environment.action import LEGAL, NUM_ACTIONS, SUCCESSOR, Action, Side
from shared.environment.position import mark, static_features, unrealised_pips
from shared.environment.reward import RewardScheme, RewardWeights, decision_reward, exit_reward
from shared.environment.trade import TradeColumns, TradeLog
from shared.errors import DataError, IllegalActionError, ShapeError
from shared.market.bar import BarSeries
from shared.market.calendar import rollover_nights
from shared.market.session import SESSION_BARS
from shared.numeric import Bool, Float32, Float64, Int8, Int64, kernel, require_shape
from shared.setting import Count, Finite, NonNegative, check_group, setting

_FLAT, _HOLD, _CLOSE = int(Side.FLAT), int(Action.HOLD), int(Action.CLOSE)


@dataclass(frozen=True)
class EnvironmentConfig:
    """The `[environment]` group: costs and rewards, in pips.

    Raises:
        SettingsError: a value is out of range.
    """

    spread_pips: NonNegative = setting(4.0, "spread per round trip, charged at the entry")
    reward: RewardScheme = setting(RewardScheme.AMDDP1, "reward scheme")
    commission_pips: NonNegative = setting(0.0, "commission per round trip, charged at the entry")
    slippage_pips: NonNegative = setting(0.0, "slippage per fill, two per round trip, charged at the entry")
    financing_pips_per_night: Finite = setting(
        0.0, "charged at each 17:00 New York; negative if holding earns"
    )
    session_bars: Count = setting(SESSION_BARS, "decisions in one episode")
    entry_bonus: NonNegative = setting(1.0, "reward of an entry")
    idle_penalty: NonNegative = setting(0.05, "reward lost by holding while flat")
    drawdown_penalty: NonNegative = setting(0.01, "reward lost at the exit per pip of the largest drawdown")

    def __post_init__(self) -> None:
        """Check every range."""
        check_group("environment", self)

    @property
    def round_trip_pips(self) -> float:
        """The cost of one trade, in pips."""
        return self.round_trip_at(self.spread_pips)

    def round_trip_at(self, spread_pips: float) -> float:
        """The cost of one trade at a given spread, such as that of the trader's quote."""
        return spread_pips + self.commission_pips + 2.0 * self.slippage_pips

    @property
    def reward_weights(self) -> RewardWeights:
        """The weights of the configured scheme."""
        if self.reward == RewardScheme.PNL:
            return RewardWeights(0.0, 0.0, 0.0)
        return RewardWeights(float(self.entry_bonus), float(self.idle_penalty), float(self.drawdown_penalty))


@dataclass(frozen=True)
class Prices:
    """The columns of a data set that the environment reads; each is `[T]`."""

    open: Float64
    close: Float64
    rollover_nights: Int8  # nights financed between this bar's open and the next bar's
    pip: float  # in units of price

    def __post_init__(self) -> None:
        """Check that all columns are equally long."""
        require_shape("close", self.close, len(self.open))
        require_shape("rollover_nights", self.rollover_nights, len(self.open))

    def __len__(self) -> int:
        return len(self.open)

    @classmethod
    def of(cls, bars: BarSeries) -> "Prices":
        """The prices of a bar series."""
        return cls(
            np.ascontiguousarray(bars.open),
            np.ascontiguousarray(bars.close),
            rollover_nights(bars.time_s),
            bars.instrument.pip,
        )


class Lanes(NamedTuple):
    """State of B sessions at the close of their current bars; every field is `[B]`."""

    bar: Int64  # the bar that has just closed
    step: Int64  # decisions made so far
    side: Int8  # values of `Side`
    entry_price: Float64
    entry_bar: Int64  # the bar at whose open the position was entered
    charged_pips: Float64  # costs of the round trip, and financing so far
    pnl: Float64  # pips at this close, net of charges
    peak: Float64  # highest pnl at a close since the entry, at least 0
    max_drawdown: Float64  # largest drop from the peak, in pips
    accumulated_drawdown: Float64  # sum over closes of the drop from the peak, in pips
    bars_held: Int64  # closes since the entry

    def static(self) -> Float32:
        """The six static features of each lane, `[B, 6]`."""
        return static_features(
            self.side, self.pnl, self.bars_held, self.peak, self.max_drawdown, self.accumulated_drawdown
        )

    def legal(self) -> Bool:
        """The actions that each lane allows, `[B, 4]`."""
        mask: Bool = LEGAL[self.side + 1]
        return mask


@dataclass(frozen=True)
class Transition:
    """The result of one step."""

    lanes: Lanes
    reward: Float32  # [B] pips
    done: Bool  # [B]
    trades: TradeLog  # closed in this step


def reset(start_bars: Int64) -> Lanes:
    """Start sessions: each is flat and at its first decision.

    Args:
        start_bars: `[B]` the bar at whose close each session's first decision is made.
    Raises:
        DataError: a start is negative. The first `step` refuses a start that is too late for a full session.
    """
    starts = np.array(start_bars, np.int64)
    require_shape("start_bars", starts, None)
    if (starts < 0).any():
        raise DataError(f"session start {starts.min()}: expected a bar index from 0 on")
    floats = [np.zeros(len(starts)) for _ in range(6)]
    entry_price, charged, pnl, peak, max_drawdown, accumulated = floats
    return Lanes(
        bar=starts,
        step=np.zeros_like(starts),
        side=np.zeros(len(starts), np.int8),
        entry_price=entry_price,
        entry_bar=np.full_like(starts, -1),
        charged_pips=charged,
        pnl=pnl,
        peak=peak,
        max_drawdown=max_drawdown,
        accumulated_drawdown=accumulated,
        bars_held=np.zeros_like(starts),
    )


def step(lanes: Lanes, actions: Int8 | Int64, prices: Prices, config: EnvironmentConfig) -> Transition:
    """Execute one decision in every lane and advance to the close of the next bar.

    The last decision of a session executes at the open of the bar after it. A position that is then
    open is closed at the same open, and its reward is added to that of the last step.

    Args:
        lanes: the state; it is not modified.
        actions: `[B]` values of `Action`.
        prices: prices of the data set.
        config: costs and rewards.
    Raises:
        IllegalActionError: an action is not one of the four, or the position does not allow it, or the
            session is over.
        DataError: the data set ends before a lane's session does.
        ShapeError: the actions are not one integer per lane.
    Source: docs/algorithm.md, Environment. Oracle: tests/oracles/environment.py.
    """
    require_shape("actions", actions, len(lanes.bar))
    if not np.issubdtype(actions.dtype, np.integer):
        raise ShapeError("actions", f"of type {actions.dtype}", "whole numbers")
    chosen: Int64 = actions.astype(np.int64)
    _require_legal(lanes, chosen, prices, config)
    after = Lanes._make(column.copy() for column in lanes)
    reward = np.empty(len(chosen), np.float32)
    log = TradeLog.blank(len(chosen))
    num_trades = _step(
        after,
        chosen,
        prices.open,
        prices.close,
        prices.rollover_nights,
        float(prices.pip),
        float(config.round_trip_pips),
        float(config.financing_pips_per_night),
        config.reward_weights,
        config.session_bars,
        reward,
        log.columns,
    )
    return Transition(after, reward, after.step == config.session_bars, log[:num_trades])


@kernel
def _step(
    lanes: Lanes,
    actions: Int64,
    open_: Float64,
    close: Float64,
    rollover_nights: Int8,
    pip: float,
    round_trip_pips: float,
    financing_pips_per_night: float,
    weights: RewardWeights,
    session_bars: int,
    reward: Float32,
    trades: TradeColumns,
) -> int:
    """Update the lanes and write the rewards; return the number of rows written to the trade log."""
    num_trades = 0
    for lane in range(len(actions)):
        bar = lanes.bar[lane] + 1
        price = open_[bar]
        side, action = lanes.side[lane], actions[lane]
        earned = decision_reward(weights, side == _FLAT, action)
        if side != _FLAT:
            lanes.charged_pips[lane] += financing_pips_per_night * rollover_nights[bar - 1]
        elif action != _HOLD:
            side = SUCCESSOR[1, action] - 1
            _set_position(lanes, lane, side, price, bar, round_trip_pips)
        last = lanes.step[lane] + 1 == session_bars
        if side != _FLAT and (last or action == _CLOSE):
            pips = unrealised_pips(side, lanes.entry_price[lane], lanes.charged_pips[lane], price, pip)
            earned += exit_reward(weights, pips, lanes.max_drawdown[lane])
            _record(lanes, lane, bar, price, pips, trades, num_trades)
            num_trades += 1
            side = _FLAT
            _set_position(lanes, lane, side, 0.0, -1, 0.0)
        if side != _FLAT:
            pnl = unrealised_pips(side, lanes.entry_price[lane], lanes.charged_pips[lane], close[bar], pip)
            lanes.pnl[lane] = pnl
            lanes.peak[lane], lanes.max_drawdown[lane], lanes.accumulated_drawdown[lane] = mark(
                pnl, lanes.peak[lane], lanes.max_drawdown[lane], lanes.accumulated_drawdown[lane]
            )
            lanes.bars_held[lane] += 1
        lanes.bar[lane] = bar
        lanes.step[lane] += 1
        reward[lane] = earned
    return num_trades


@kernel
def _set_position(lanes: Lanes, lane: int, side: int, price: float, bar: int, charged_pips: float) -> None:
    """Set a lane to flat, or to a new position before its first mark."""
    lanes.side[lane] = side
    lanes.entry_price[lane] = price
    lanes.entry_bar[lane] = bar
    lanes.charged_pips[lane] = charged_pips
    lanes.pnl[lane] = 0.0
    lanes.peak[lane] = 0.0
    lanes.max_drawdown[lane] = 0.0
    lanes.accumulated_drawdown[lane] = 0.0
    lanes.bars_held[lane] = 0


@kernel
def _record(
    lanes: Lanes, lane: int, bar: int, price: float, pips: float, trades: TradeColumns, row: int
) -> None:
    """Write a lane's position, closed at a bar's open, to a row of the trade log."""
    trades.lane[row] = lane
    trades.entry_bar[row] = lanes.entry_bar[lane]
    trades.exit_bar[row] = bar
    trades.side[row] = lanes.side[lane]
    trades.entry_price[row] = lanes.entry_price[lane]
    trades.exit_price[row] = price
    trades.pips[row] = pips
    trades.max_drawdown_pips[row] = lanes.max_drawdown[lane]
    trades.bars_held[row] = lanes.bars_held[lane]


def _require_legal(lanes: Lanes, actions: Int64, prices: Prices, config: EnvironmentConfig) -> None:
    """Raise if a lane cannot execute its action; see `step`."""
    over = lanes.step >= config.session_bars
    if over.any():
        lane = int(np.argmax(over))
        raise IllegalActionError(
            f"lane {lane}, bar {lanes.bar[lane]}: the session is over after {config.session_bars} decisions, "
            "no action is legal"
        )
    last_fill = lanes.bar - lanes.step + config.session_bars
    if (last_fill >= len(prices)).any():
        lane = int(np.argmax(last_fill >= len(prices)))
        raise DataError(
            f"lane {lane}: its session of {config.session_bars} decisions ends at the open of bar "
            f"{last_fill[lane]}, but the last bar is {len(prices) - 1}"
        )
    known = (actions >= 0) & (actions < NUM_ACTIONS)
    legal = known & LEGAL[lanes.side + 1, np.where(known, actions, 0)]
    if not legal.all():
        lane = int(np.argmin(legal))
        side = Side(int(lanes.side[lane]))
        action = Action(int(actions[lane])).name if known[lane] else f"action {actions[lane]}"
        allowed = ", ".join(one.name for one in Action if LEGAL[side + 1, one])
        raise IllegalActionError(
            f"lane {lane}, bar {lanes.bar[lane]}, position {side.name}: {action} is illegal, "
            f"expected one of {allowed}"
        )
