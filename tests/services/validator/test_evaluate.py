import numpy as np
import pytest

from services.validator.evaluate import choose_sessions, evaluate, mark_to_market, walk
from shared.agent.rollout import MarketView
from shared.environment.action import NUM_ACTIONS
from shared.environment.episode import replay
from shared.errors import DataError
from shared.market.calendar import trading_day
from shared.metrics.summary import MetricsConfig
from tests.services.validator.cases import (
    ENVIRONMENT,
    STANDARDS,
    agent,
    prices,
    small_dataset,
    starts,
    walked,
)

METRICS = MetricsConfig(interval_runs=100, monte_carlo=STANDARDS.monte_carlo, sizing=STANDARDS.sizing)


def market() -> MarketView:
    data = small_dataset()
    return MarketView(data.features, prices(), data.outcomes, data.fingerprint)


def test_the_number_of_lanes_does_not_affect_the_result() -> None:
    few, many = (
        walk(agent(1), market(), starts()[:7], ENVIRONMENT, STANDARDS.search, lanes=lanes)
        for lanes in (2, 64)
    )
    assert len(few.trades) > 0
    assert few.action_counts.tolist() == many.action_counts.tolist()
    assert [trade for _, trade in few.trades] == [trade for _, trade in many.trades]


def test_every_decision_is_counted_and_reported_as_progress() -> None:
    calls: list[tuple[int, int]] = []
    result = walk(
        agent(1),
        market(),
        starts()[:5],
        ENVIRONMENT,
        STANDARDS.search,
        lanes=3,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert result.action_counts.sum() == 5 * 36
    assert calls[0] == (3, 180)
    assert calls[-1] == (180, 180)
    assert (np.diff(result.trades.columns.exit_bar) >= 0).all()


def test_an_exception_from_progress_stops_the_walk() -> None:
    def stop_after_ten(done: int, total: int) -> None:
        if done > 10:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        walk(
            agent(1), market(), starts()[:5], ENVIRONMENT, STANDARDS.search, lanes=3, progress=stop_after_ten
        )


def test_a_walk_without_a_session_is_refused() -> None:
    with pytest.raises(DataError, match="no valid session"):
        walk(agent(1), market(), np.zeros(0, np.int64), ENVIRONMENT, STANDARDS.search)


def test_sessions_are_spread_over_time() -> None:
    every = np.arange(0, 1000, 10)
    assert choose_sessions(every, 0) is every
    assert choose_sessions(every, 200) is every
    assert choose_sessions(every, 3).tolist() == [0, 500, 990]


def test_the_equity_of_one_session_matches_a_replay() -> None:
    """The rule is always long, so its equity is the close less the entry price and the spread."""
    start = int(starts()[0])
    actions = [1] + [0] * 35
    episode = replay(start, actions, prices(), ENVIRONMENT)
    result = walked("long")
    first = next(iter(result.trades))[1]
    assert first == episode.trades[0]
    marked = mark_to_market(result, small_dataset().bars)
    assert marked.equity_pips[0] == 0.0
    assert marked.equity_pips[1:36] == pytest.approx(episode.pnl[1:])
    assert marked.equity_pips[36] == pytest.approx(first.pips)


def test_summary_days_and_months_add_up_to_the_trades() -> None:
    result = walked("random")
    judged = evaluate(result, small_dataset().bars, METRICS)
    total = result.trades.columns.pips.sum()
    assert judged.summary.trades.total_pips == pytest.approx(total)
    assert judged.daily_pips.sum() == pytest.approx(total)
    assert sum(month.pips for month in judged.months) == pytest.approx(total)
    assert sum(month.num_trades for month in judged.months) == len(result.trades)
    assert judged.activity.num_decisions == len(starts()) * 36
    shares = judged.activity.action_shares
    assert shares is not None
    assert len(shares) == NUM_ACTIONS
    assert sum(shares) == pytest.approx(1.0)


def test_only_days_with_a_session_count() -> None:
    bars = small_dataset().bars
    result = walked("flat")
    session_days = {int(day) for start in starts() for day in trading_day(bars.time_s[start : start + 37])}
    judged = evaluate(result, bars, METRICS)
    assert set(judged.days.tolist()) == session_days
    assert (judged.daily_pips == 0.0).all()
