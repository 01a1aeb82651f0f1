"""Players' earnings in the same sessions, as pips and as shares of the best policy's earnings."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shared.agent.agent import Agent
from shared.agent.rollout import MarketView, play
from shared.environment.environment import EnvironmentConfig, Lanes, Prices, reset, step
from shared.metrics.bootstrap import Interval, resample
from shared.numeric import Float64, Int8, Int64
from shared.search.config import SearchConfig

#: A player without a network; returns its action in every lane, `[B]`.
Rule = Callable[[Lanes], Int8]

#: Confidence level and bootstrap draws of the intervals.
CONFIDENCE = 0.95
RUNS = 2_000

#: Sessions that an agent plays in lockstep.
LANES = 64


@dataclass(frozen=True)
class Scores:
    """Results of one player's S sessions; every field is `[S]`."""

    pips: Float64  # net
    reward: Float64  # by the reward scheme, in pips
    trades: Int64

    @classmethod
    def blank(cls, num_sessions: int) -> "Scores":
        """Scores that are all zero."""
        return cls(np.zeros(num_sessions), np.zeros(num_sessions), np.zeros(num_sessions, np.int64))


@dataclass(frozen=True)
class Estimate:
    """A figure with its bootstrap interval over sessions."""

    value: float
    interval: Interval


def score_rule(rule: Rule, prices: Prices, starts: Int64, environment: EnvironmentConfig) -> Scores:
    """Play all sessions by a rule, in lockstep."""
    scores, lanes = Scores.blank(len(starts)), reset(starts)
    for _ in range(environment.session_bars):
        transition = step(lanes, rule(lanes), prices, environment)
        lanes = transition.lanes
        closed = transition.trades.columns
        scores.reward[:] += transition.reward
        scores.pips[closed.lane] += closed.pips  # a step closes at most one trade per lane
        scores.trades[closed.lane] += 1
    return scores


def score_agent(
    agent: Agent, market: MarketView, starts: Int64, environment: EnvironmentConfig, search: SearchConfig
) -> Scores:
    """Play all sessions by an agent's greedy decisions."""
    scores = Scores.blank(len(starts))
    for first in range(0, len(starts), LANES):
        batch = starts[first : first + LANES]
        for finished in play(agent, market, batch, environment, search, seeds=np.zeros_like(batch)):
            for lane, trajectory in enumerate(finished, start=first):
                scores.reward[lane] = trajectory.rewards.sum()
                scores.pips[lane] = sum(trade.pips for trade in trajectory.trades)
                scores.trades[lane] = len(trajectory.trades)
    return scores


def mean(values: Float64) -> Estimate:
    """Mean over sessions, with its bootstrap interval."""
    drawn = values[_drawn_sessions(len(values))].mean(axis=1)
    return Estimate(float(values.mean()), _interval(drawn))


def share(values: Float64, best: Float64) -> Estimate | None:
    """A player's earnings as a share of the best policy's earnings in the same sessions.

    The bootstrap draws both players' sessions in pairs, so that luck common to both cancels out.

    Args:
        values: `[S]` earnings of the player.
        best: `[S]` earnings of the best policy.
    Returns:
        None if the best policy earns nothing in at least one draw, because a share is then meaningless.
    """
    sessions = _drawn_sessions(len(values))
    bests = best[sessions].mean(axis=1)
    if bests.min() <= 0.0:
        return None
    return Estimate(float(values.mean() / best.mean()), _interval(values[sessions].mean(axis=1) / bests))


def _drawn_sessions(num_sessions: int) -> Int64:
    """`[RUNS, S]` sessions drawn with replacement, the same on every call."""
    drawn = resample(np.arange(float(num_sessions)), num_runs=RUNS, num_steps=num_sessions, seed=0)
    return drawn.astype(np.int64)


def _interval(samples: Float64) -> Interval:
    low, high = np.quantile(samples, [(1.0 - CONFIDENCE) / 2.0, (1.0 + CONFIDENCE) / 2.0])
    return Interval(float(low), float(high))
