"""How often the validator's gates pass versions by luck, and how often versions with a real edge.

Runs of versions without any edge are drawn as daily results. The validator's own functions (`summarise`,
`evidence` and `judge`) judge them in order, each with knowledge of the versions before it. Two shortcuts
do not change verdicts: a version whose p-value fails even as the first of its run is not judged further,
and Monte Carlo runs are few.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numba
import numpy as np

from services.validator.gate import GateConfig, Incumbent, Verdict, judge
from services.validator.report import evidence, rival_of
from shared.metrics.equity import DAYS_PER_YEAR
from shared.metrics.monte_carlo import MonteCarloConfig
from shared.metrics.significance import adjusted_p_value, sign_flip_p_value
from shared.metrics.sizing import SizingConfig
from shared.metrics.summary import MetricsConfig, Summary, summarise
from shared.numeric import Float64

#: Versions in a run, and trading days by which each is judged; enough for both gates.
NUM_VERSIONS = 200
NUM_DAYS = 500

#: Years of the data set, as given to the live gate.
DATA_YEARS = 4.0

#: Standard deviation of a day's result: 0.16 % of the account.
DAY_PIPS = 16.0

#: The validator's metrics, with fewer runs where no gate depends on them.
METRICS = MetricsConfig(
    interval_runs=50,
    monte_carlo=MonteCarloConfig(runs=1),
    sizing=SizingConfig(horizon_days=252, curves=100, repeats=1),
)

#: Draws the daily results `[D, V]` of a run's versions.
Draw = Callable[[np.random.Generator, int, int], Float64]


@dataclass(frozen=True)
class Population:
    """A kind of version without an edge."""

    name: str
    draw: Draw
    trades_a_day: int = 4  # 1: every day with a non-zero result is one trade


def independent(rng: np.random.Generator, num_days: int, num_versions: int) -> Float64:
    """Versions are independent."""
    return rng.normal(0.0, DAY_PIPS, (num_days, num_versions))


def correlated(rng: np.random.Generator, num_days: int, num_versions: int) -> Float64:
    """Versions share nine tenths of their variance, as versions of one run do."""
    shared = rng.normal(0.0, DAY_PIPS, (num_days, 1))
    daily: Float64 = np.sqrt(0.9) * shared + np.sqrt(0.1) * independent(rng, num_days, num_versions)
    return daily


def few_trades(rng: np.random.Generator, num_days: int, num_versions: int) -> Float64:
    """Each version trades once a day on 10 to 150 of the days, with fat tails."""
    chance = rng.uniform(10, 150, num_versions) / num_days
    pips = rng.standard_t(3, (num_days, num_versions)) * DAY_PIPS
    return np.where(rng.random((num_days, num_versions)) < chance, pips, 0.0)


def with_ruinous(rng: np.random.Generator, num_days: int, num_versions: int) -> Float64:
    """Each tenth version loses 4 pips in each of 50 trades a day."""
    daily = independent(rng, num_days, num_versions)
    daily[:, ::10] = rng.normal(-200.0, 100.0, daily[:, ::10].shape)
    return daily


def with_flat(rng: np.random.Generator, num_days: int, num_versions: int) -> Float64:
    """Every second version never trades."""
    daily = independent(rng, num_days, num_versions)
    daily[:, ::2] = 0.0
    return daily


POPULATIONS = (
    Population("independent", independent),
    Population("correlated, rho 0.9", correlated),
    Population("few trades", few_trades, trades_a_day=1),
    Population("with ruinous versions", with_ruinous),
    Population("with flat versions", with_flat),
)


@dataclass(frozen=True)
class LuckRow:
    """Results of runs of versions without an edge."""

    population: str
    num_runs: int
    num_versions: int
    runs_beyond_unproven: int
    runs_live: int
    versions_beyond_unproven: int


@dataclass(frozen=True)
class Edge:
    """A version with a real edge, and the versions that were judged before it."""

    sharpe: float  # true, annual
    num_days: int
    trades_a_day: float  # below 1: probability of one trade on a day
    before: Population | None
    num_before: int

    @property
    def name(self) -> str:
        """Name in tables."""
        before = f"{self.num_before} {self.before.name}" if self.before else "no version"
        trades = f"{self.trades_a_day:g} trades a day"
        return f"Sharpe {self.sharpe:g}, {self.num_days} days, {trades}, after {before}"


def ruinous(rng: np.random.Generator, num_days: int, num_versions: int) -> Float64:
    """Versions that lose 4 pips in each of 50 trades a day."""
    return rng.normal(-200.0, 100.0, (num_days, num_versions))


_RUINOUS = Population("ruinous", ruinous)

EDGES = (
    Edge(3.0, NUM_DAYS, 4, _RUINOUS, 20),
    Edge(3.0, NUM_DAYS, 4, POPULATIONS[0], 20),
    Edge(3.0, NUM_DAYS, 4, POPULATIONS[0], NUM_VERSIONS),
    Edge(3.0, NUM_DAYS, 4, POPULATIONS[1], NUM_VERSIONS),
    Edge(3.0, NUM_DAYS, 0.4, POPULATIONS[1], NUM_VERSIONS),
    Edge(5.0, NUM_DAYS, 1, POPULATIONS[0], NUM_VERSIONS),
    Edge(5.0, 140, 4, POPULATIONS[1], NUM_VERSIONS),
    Edge(15.0, 31, 4, POPULATIONS[1], NUM_VERSIONS),
)


@dataclass(frozen=True)
class PowerRow:
    """How often a version with a real edge passed, as shares of the runs."""

    edge: str
    num_runs: int
    deflated_sharpe: float  # runs in which it reached the live gate's limit
    paper: float
    live: float


def bench_luck(*, runs: int = 100, seed: int = 0) -> list[LuckRow]:
    """Judge runs of every kind of version without an edge."""
    return [luck_of(kind, runs=runs, seed=seed + number) for number, kind in enumerate(POPULATIONS)]


def luck_of(population: Population, *, runs: int, seed: int, num_versions: int = NUM_VERSIONS) -> LuckRow:
    """Judge runs of one kind of version."""
    rng = np.random.default_rng(seed)
    paper_runs = live_runs = versions = 0
    for _ in range(runs):
        daily = population.draw(rng, NUM_DAYS, num_versions)
        passed = [verdict.passed for _, verdict in judged_in_order(daily, population.trades_a_day, rng)]
        versions += sum(bool(gates) for gates in passed)
        paper_runs += any(passed)
        live_runs += any("live" in gates for gates in passed)
    return LuckRow(population.name, runs, num_versions, paper_runs, live_runs, versions)


def judged_in_order(
    daily: Float64, trades_a_day: int, rng: np.random.Generator
) -> Iterator[tuple[int, Verdict]]:
    """Yield each version that could pass, with its verdict; the incumbent is the last one that passed."""
    rules = simple_rules(len(daily), rng)
    incumbent: Incumbent | None = None
    for version in np.flatnonzero([could_pass(column) for column in daily.T]):
        pips = trades_of(daily[:, version], trades_a_day, rng)
        summary, verdict = judge_version(pips, daily[:, version], daily[:, :version], rules, incumbent)
        if "paper" in verdict.passed:
            incumbent = Incumbent(int(version), summary.trades.sqn100)
        yield int(version), verdict


def could_pass(daily: Float64) -> bool:
    """True if the days meet the paper gate's p-value limit for a run's first version, which is the highest.

    A cheap test comes first: a profit within one standard error has a p-value of at least 1/20
    (Oleszkiewicz 1996).
    """
    if daily.sum() <= np.sqrt(daily @ daily):
        return False
    p_value = sign_flip_p_value(daily)
    return p_value is not None and adjusted_p_value(p_value, 1.0) <= GateConfig.paper_max_p_value


def simple_rules(num_days: int, rng: np.random.Generator) -> dict[str, Float64]:
    """Daily results of the validator's baselines on a market without drift."""
    return {
        "flat": np.zeros(num_days),
        "random": rng.normal(-10.0 * DAY_PIPS, 3.0 * DAY_PIPS, num_days),
        "always long": rng.normal(0.0, DAY_PIPS, num_days),
        "moving-average cross": rng.normal(-2.0 * DAY_PIPS, 2.0 * DAY_PIPS, num_days),
    }


def judge_version(
    pips: Float64,
    daily: Float64,
    others: Float64,
    rules: dict[str, Float64],
    incumbent: Incumbent | None,
    gate: GateConfig | None = None,
) -> tuple[Summary, Verdict]:
    """Judge a version's trades and days as the validator does."""
    summary = summarise(pips, np.cumsum(daily), daily, METRICS, others=others)
    rivals = tuple(rival_of(name, daily, rule) for name, rule in rules.items())
    return summary, judge(evidence(summary, rivals, DATA_YEARS), incumbent, gate or GateConfig())


def trades_of(daily: Float64, trades_a_day: int, rng: np.random.Generator) -> Float64:
    """Trades that add up to the days' results: normal variables, conditional on their sum."""
    active: Float64 = daily[daily != 0.0]
    if trades_a_day == 1:
        return active
    noise = rng.normal(0.0, DAY_PIPS / np.sqrt(trades_a_day), (len(active), trades_a_day))
    pips: Float64 = active[:, None] / trades_a_day + noise - noise.mean(axis=1, keepdims=True)
    return pips.ravel()


def bench_power(*, runs: int = 100, seed: int = 0) -> list[PowerRow]:
    """Judge versions with a real edge after versions without one."""
    return [power_of(edge, runs=runs, seed=seed + number) for number, edge in enumerate(EDGES)]


def power_of(edge: Edge, *, runs: int, seed: int) -> PowerRow:
    """Count how often one edge passes."""
    rng = np.random.default_rng(seed)
    deflated = paper = live = 0
    for _ in range(runs):
        others = np.zeros((edge.num_days, 0))
        if edge.before:
            others = edge.before.draw(rng, edge.num_days, edge.num_before)
        daily = edge_daily(edge, rng)
        pips = trades_of(daily, max(1, round(edge.trades_a_day)), rng)
        rules = simple_rules(edge.num_days, rng)
        summary, verdict = judge_version(pips, daily, others, rules, None)
        chance = summary.honesty.deflated_sharpe
        deflated += chance is not None and chance >= GateConfig.live_min_deflated_sharpe
        paper += "paper" in verdict.passed
        live += "live" in verdict.passed
    return PowerRow(edge.name, runs, deflated / runs, paper / runs, live / runs)


def edge_daily(edge: Edge, rng: np.random.Generator) -> Float64:
    """Daily results with the edge's Sharpe ratio; days without a trade are 0."""
    ratio = edge.sharpe / np.sqrt(DAYS_PER_YEAR)
    if edge.trades_a_day >= 1:
        return rng.normal(ratio * DAY_PIPS, DAY_PIPS, edge.num_days)
    share = edge.trades_a_day  # ratio² = share m² / (1 + m² (1 - share)), m: ratio of one trade
    trade_ratio = ratio / np.sqrt(share - ratio**2 * (1.0 - share))
    traded = rng.random(edge.num_days) < share
    daily: Float64 = np.where(traded, rng.normal(trade_ratio * DAY_PIPS, DAY_PIPS, edge.num_days), 0.0)
    return daily


@dataclass(frozen=True)
class GateReport:
    """Rates of passing by luck and with an edge."""

    luck: list[LuckRow]
    power: list[PowerRow]


def simulate_gates(*, runs: int = 100, seed: int = 0) -> GateReport:
    """Simulate both kinds of runs on one thread, because the kernels are short."""
    numba.set_num_threads(1)
    return GateReport(bench_luck(runs=runs, seed=seed), bench_power(runs=runs, seed=seed))
