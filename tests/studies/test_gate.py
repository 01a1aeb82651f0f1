"""Simulated runs: the gates reject lucky versions and pass a real edge. `./run gate` prints the rates."""

from collections.abc import Iterator

import numba
import numpy as np
import pytest

from cli.settings import UpSettings
from services.validator.baselines import walk_baselines, walk_rule
from services.validator.evaluate import mark_to_market
from shared.adapters.tables.dataset import build_dataset
from shared.environment.action import Action, Side
from shared.environment.environment import EnvironmentConfig, Lanes, Prices
from shared.market.session import SessionConfig, Split, SplitConfig
from shared.market.synthetic import Market, synthesize
from shared.numeric import Int8
from studies.gate import (
    EDGES,
    POPULATIONS,
    Population,
    could_pass,
    judge_version,
    judged_in_order,
    luck_of,
    power_of,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: the kernels are too short to gain from several."""
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(threads)


@pytest.mark.parametrize("population", POPULATIONS, ids=lambda population: population.name)
def test_runs_without_an_edge_stay_unproven(population: Population) -> None:
    luck = luck_of(population, runs=100, seed=POPULATIONS.index(population))
    assert luck.runs_live <= 1
    assert luck.runs_beyond_unproven <= 10


def test_an_edge_passes_the_deflated_sharpe_after_ruinous_versions() -> None:
    power = power_of(EDGES[0], runs=100, seed=0)
    assert power.deflated_sharpe >= 0.8
    assert power.paper >= 0.7


def test_the_default_market_is_long_enough_to_prove_an_edge() -> None:
    """A mean-reversion rule passes the paper gate on the market of `up`, after 199 versions of noise."""
    bars = synthesize(Market.OU, UpSettings.model_fields["market_bars"].default, seed=1)
    data = build_dataset(bars, "synthetic", SessionConfig(), SplitConfig())
    prices, starts = Prices.of(data.bars), data.sessions.non_overlapping(Split.VALIDATION)
    above = np.full(len(bars.close), np.nan)
    sums = np.concatenate(([0.0], np.cumsum(bars.close)))
    above[119:] = (bars.close[119:] - (sums[120:] - sums[:-120]) / 120) / bars.instrument.pip

    def comes_back(lanes: Lanes) -> Int8:
        pips, actions = above[lanes.bar], np.full(len(lanes.bar), Action.HOLD, np.int8)
        actions[(lanes.side == Side.FLAT) & (pips > 12)] = Action.SELL
        actions[(lanes.side == Side.FLAT) & (pips < -12)] = Action.BUY
        actions[lanes.side * pips > 0] = Action.CLOSE
        return actions

    environment = EnvironmentConfig()
    walked = walk_rule(comes_back, prices, starts, environment)
    daily = mark_to_market(walked, data.bars).daily_pips
    rules = {
        rule.name: mark_to_market(rule.walk, data.bars).daily_pips
        for rule in walk_baselines(prices, starts, environment)
    }
    others = np.random.default_rng(1).normal(0.0, 30.0, (len(daily), 199))
    _, verdict = judge_version(walked.trades.columns.pips, daily, others, rules, None)
    assert daily.sum() / len(starts) < 15.0  # pips a session: about a third of what can be earned
    assert "paper" in verdict.passed


def test_versions_that_are_not_judged_would_not_have_passed() -> None:
    """The versions are about three standard errors better than noise, so many are close to the limit."""
    rng = np.random.default_rng(5)
    daily = POPULATIONS[2].draw(rng, 500, 40)
    daily += np.where(daily != 0.0, 9.0, 0.0)
    judged = {version for version, _ in judged_in_order(daily, 1, rng)}
    assert 5 < len(judged) < 35
    rules = {"flat": np.zeros(500)}
    for column in (daily[:, version] for version in range(40) if version not in judged):
        assert judge_version(column[column != 0.0], column, np.zeros((500, 0)), rules, None)[1].passed == ()


def test_a_profit_of_few_standard_errors_but_a_small_p_value_is_judged() -> None:
    """31 winning days, one of them very large: 1.3 standard errors, and a p-value of 2^-31."""
    daily = np.zeros(500)
    daily[:31] = 3.0
    daily[7] = 300.0
    assert could_pass(daily)
    assert not could_pass(-daily)
