"""Walks held-out sessions greedily, and calculates metrics from the trades."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shared.agent.agent import Agent
from shared.agent.rollout import MarketView, play
from shared.environment.action import NUM_ACTIONS
from shared.environment.environment import EnvironmentConfig
from shared.environment.trade import Trade, TradeColumns, TradeLog
from shared.errors import DataError
from shared.market.bar import BarSeries
from shared.market.calendar import trading_day
from shared.metrics.equity import Month, daily_pips, equity_curve, in_time_order, months
from shared.metrics.summary import MetricsConfig, Summary, summarise
from shared.metrics.trades import Activity, activity
from shared.numeric import Float64, Int64
from shared.search.config import SearchConfig

#: Called after every step with the number of decisions made and their total. An exception stops the walk.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Walk:
    """Sessions, trades and actions of an agent or a rule."""

    starts: Int64  # [S] first bar of each session, ascending
    session_bars: int
    trades: TradeLog  # in time order
    action_counts: Int64  # [A]

    @property
    def num_sessions(self) -> int:
        """Number of sessions, S."""
        return len(self.starts)

    @property
    def last_bar(self) -> int:
        """The bar at whose open a position of the last session is closed, if one is still open."""
        return int(self.starts[-1]) + self.session_bars


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a walk."""

    summary: Summary
    activity: Activity
    months: tuple[Month, ...]
    days: Int64  # [D] trading days on which a session ran
    daily_pips: Float64  # [D] marked to market


def choose_sessions(starts: Int64, limit: int) -> Int64:
    """All sessions, or `limit` of them spread evenly over time; 0 means no limit."""
    if limit == 0 or limit >= len(starts):
        return starts
    return starts[np.linspace(0, len(starts) - 1, limit).round().astype(np.int64)]


def walk(
    agent: Agent,
    market: MarketView,
    starts: Int64,
    environment: EnvironmentConfig,
    search: SearchConfig,
    *,
    lanes: int = 64,
    progress: Progress | None = None,
) -> Walk:
    """Play every session greedily, without noise, in batches of lanes.

    Args:
        agent: the version to judge.
        market: the bars of the data set.
        starts: `[S]` first bars of sessions that do not overlap, ascending.
        environment: costs and session length.
        search: settings of the search.
        lanes: number of sessions in lockstep; affects results only by rounding.
        progress: called after every step.
    Raises:
        DataError: there is no session.
    """
    require_sessions(starts)
    trades: list[Trade] = []
    action_counts = np.zeros(NUM_ACTIONS, np.int64)
    total = len(starts) * environment.session_bars
    done = 0
    for first in range(0, len(starts), lanes):
        batch = starts[first : first + lanes]
        seeds = np.zeros(len(batch), np.int64)  # unused: greedy play draws no random numbers
        for finished in play(agent, market, batch, environment, search, seeds=seeds, worker="validator"):
            done += len(batch)
            if progress:
                progress(done, total)
            for trajectory in finished:
                trades.extend(trajectory.trades)
                action_counts += np.bincount(trajectory.actions, minlength=NUM_ACTIONS)
    return Walk(starts, environment.session_bars, in_time_order(log_of(trades)), action_counts)


def require_sessions(starts: Int64) -> None:
    """Check that there is a session to walk.

    Raises:
        DataError: there is none.
    """
    if len(starts) == 0:
        raise DataError(
            "the split has no valid session, at least one required: use a data set with more bars"
        )


def log_of(trades: Sequence[Trade]) -> TradeLog:
    """The trades as columns, with every lane number set to 0."""
    log = TradeLog.blank(len(trades))
    log.columns.lane[:] = 0
    for name in TradeColumns._fields[1:]:
        getattr(log.columns, name)[:] = [getattr(trade, name) for trade in trades]
    return log


@dataclass(frozen=True)
class Marked:
    """Equity and daily profit of a walk, marked to market."""

    equity_pips: (
        Float64  # [T] at each bar close, from the first bar of the first session to the end of the last
    )
    day_of_bar: Int64  # [T] trading day of each of these bars
    days: Int64  # [D] trading days on which a session ran
    daily_pips: Float64  # [D]


def mark_to_market(walked: Walk, bars: BarSeries) -> Marked:
    """Calculate a walk's equity at every close, and its profit per trading day.

    A trading day starts at 17:00 New York time. It counts if a session ran on it, with or without a trade.
    """
    first_bar, last_bar = int(walked.starts[0]), walked.last_bar
    curve = equity_curve(
        walked.trades, bars.close, pip=bars.instrument.pip, first_bar=first_bar, last_bar=last_bar
    )
    day_of_bar = trading_day(bars.time_s[first_bar : last_bar + 1])
    days, pips = daily_pips(curve, day_of_bar)
    decided = np.isin(days, day_of_bar[_walked_bars(walked) - first_bar])
    return Marked(curve, day_of_bar, days[decided], pips[decided])


def evaluate(
    walked: Walk,
    bars: BarSeries,
    config: MetricsConfig,
    *,
    others: Float64 | None = None,
    num_more: int = 0,
) -> Evaluation:
    """Calculate the metrics of a walk.

    Args:
        walked: a walk over these bars.
        bars: all bars of the data set.
        config: settings of the metrics, such as runs, seeds and tolerances.
        others: `[D, V]` daily profit of earlier trials, NaN on days on which a trial was not judged.
        num_more: number of even earlier trials, whose daily results are not compared.
    """
    trades = walked.trades.columns
    marked = mark_to_market(walked, bars)
    exit_days = marked.day_of_bar[trades.exit_bar - walked.starts[0]]
    return Evaluation(
        summary=summarise(
            trades.pips, marked.equity_pips, marked.daily_pips, config, others=others, num_more=num_more
        ),
        activity=activity(
            walked.action_counts, int(trades.bars_held.sum()), len(walked.trades), len(marked.days)
        ),
        months=months(marked.days, marked.daily_pips, exit_days, trades.pips),
        days=marked.days,
        daily_pips=marked.daily_pips,
    )


def _walked_bars(walked: Walk) -> Int64:
    """Every bar of every session, including the bar of its last execution."""
    offsets = np.arange(walked.session_bars + 1)
    bars: Int64 = (walked.starts[:, None] + offsets).ravel()
    return bars
