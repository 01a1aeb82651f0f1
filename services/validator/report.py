"""Builds the validation report of one version and writes it as JSON.

Its schema is docs/schemas/validation-report-2.json.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Final, Literal

import numpy as np

from services.validator.baselines import Baseline
from services.validator.evaluate import Walk, evaluate, mark_to_market
from services.validator.gate import Evidence, GateConfig, Incumbent, Rival, Verdict, judge
from shared.adapters.files import write_atomically
from shared.market.bar import BAR_SECONDS, BarSeries
from shared.metrics.equity import Month, max_drawdown_pips, sharpe
from shared.metrics.honesty import could_be_chosen
from shared.metrics.overfitting import Overfitting, backtest_overfitting
from shared.metrics.significance import sign_flip_p_value
from shared.metrics.summary import MetricsConfig, Summary, document
from shared.metrics.trades import NO_TRADE, Activity, trade_statistics
from shared.metrics.undefined import reasons
from shared.numeric import Float64, Int64

SCHEMA_VERSION: Final = 2

#: Origin of a report. Only a report of the validator service can promote its version.
Purpose = Literal["service", "on-demand"]

ON_DEMAND = "made on demand: only a report of the validator service can pass a gate"

_YEAR_SECONDS = 365.25 * 86_400


@dataclass(frozen=True)
class Subject:
    """The judged version, with the bars and settings used for the judgement."""

    version: int
    split: str
    dataset: str  # fingerprint of the bars
    instrument: str
    weights_sha256: str
    purpose: Purpose
    standards: Mapping[str, object]  # every setting that affects the judgement
    superseded_by: int | None  # newer version, published before this one was judged


@dataclass(frozen=True)
class History:
    """Earlier trials whose days overlap those of this validation, from any run and any data set."""

    daily_pips: Float64  # [D, V]; NaN on days on which the version was not judged
    num_older: int  # number of even earlier trials, whose daily results are not compared

    @classmethod
    def none(cls, num_days: int) -> "History":
        """No earlier trials."""
        return cls(np.zeros((num_days, 0)), 0)


@dataclass(frozen=True)
class Comparison:
    """Results of a baseline on the same sessions."""

    name: str
    num_trades: int
    expectancy_pips: float | None
    net_pips: float
    sqn100: float | None
    sharpe: float | None  # daily, annualised
    max_drawdown_pips: float  # marked to market
    rival: Rival  # daily results of the version minus those of the baseline

    def undefined(self) -> Mapping[str, str]:
        """The reason for each number that is None."""
        sqn_reason = (
            NO_TRADE
            if self.num_trades == 0
            else "no losing trade, fewer than 2 trades, or all trades are equal"
        )
        return {
            "expectancy_pips": NO_TRADE,
            "sqn100": sqn_reason,
            "sharpe": "too few days to annualise, or all daily results are equal",
        }


@dataclass(frozen=True)
class ValidationReport:
    """Everything known about one version on one split."""

    schema_version: Literal[2]
    purpose: Purpose
    version: int
    weights_sha256: str
    superseded_by: int | None  # newer version, published before this one was judged
    split: str
    dataset: str
    instrument: str
    created_at: str  # ISO 8601, UTC
    seconds: float  # duration of the validation
    first_bar_at: str  # of the evaluated sessions; ISO 8601, UTC
    last_bar_at: str
    data_years: float  # span of the whole data set
    num_sessions: int
    num_sessions_in_split: int  # non-overlapping sessions; all are evaluated unless a setting limits them
    passed_gates: tuple[str, ...]  # empty in a report made on demand
    reasons: tuple[str, ...]  # why each of the other gates was not passed
    incumbent: int | None  # version that this one must beat; None if there is no such version
    summary: Summary
    activity: Activity
    overfitting: Overfitting  # among this version and the earlier ones that could have been chosen
    num_versions_tried: int
    baselines: tuple[Comparison, ...]
    months: tuple[Month, ...]
    realised_pips: Float64  # [G] actual profit at each trade count of the Monte Carlo fan
    days: Int64  # [D] since 1970-01-01; trading days
    daily_pips: Float64  # [D] marked to market
    undefined: dict[str, str]  # reason for each null number, by its dotted path
    standards: dict[str, object]  # settings by group, including seeds
    code_version: str

    @property
    def net_pips(self) -> float:
        """Net pips of all trades."""
        return self.summary.trades.total_pips


def compose(
    subject: Subject,
    walked: Walk,
    baselines: tuple[Baseline, ...],
    bars: BarSeries,
    *,
    num_sessions_in_split: int,
    metrics: MetricsConfig,
    gate: GateConfig,
    history: History,
    incumbent: Incumbent | None,
    seconds: float,
    created_at: datetime,
) -> ValidationReport:
    """Build the report: compare the version with baselines and earlier trials, and apply the gates.

    Args:
        subject: the version, the bars and the settings.
        walked: decisions and trades of the version.
        baselines: decisions and trades of the simple rules in the same sessions.
        bars: all bars of the data set.
        num_sessions_in_split: number of non-overlapping sessions of the split, evaluated or not.
        metrics: settings of the metrics.
        gate: thresholds of the gates.
        history: earlier trials, excluding this version.
        incumbent: the version that this one must beat; None if there is no such version.
        seconds: duration of the walk.
        created_at: the present time, in UTC.
    """
    evaluation = evaluate(walked, bars, metrics, others=history.daily_pips, num_more=history.num_older)
    summary = evaluation.summary
    compared = tuple(
        _compare(baseline, bars, evaluation.daily_pips, metrics.annual_min_days) for baseline in baselines
    )
    data_years = float(bars.time_s[-1] - bars.time_s[0] + BAR_SECONDS) / _YEAR_SECONDS
    verdict = judge(evidence(summary, tuple(rule.rival for rule in compared), data_years), incumbent, gate)
    if subject.purpose == "on-demand":
        verdict = Verdict(passed=(), reasons=(ON_DEMAND, *verdict.reasons))
    overfitting = overfitting_of(evaluation.daily_pips, history.daily_pips)
    return ValidationReport(
        schema_version=SCHEMA_VERSION,
        purpose=subject.purpose,
        version=subject.version,
        weights_sha256=subject.weights_sha256,
        superseded_by=subject.superseded_by,
        split=subject.split,
        dataset=subject.dataset,
        instrument=subject.instrument,
        created_at=created_at.isoformat(timespec="seconds"),
        seconds=seconds,
        first_bar_at=_time_of(bars, int(walked.starts[0])),
        last_bar_at=_time_of(bars, walked.last_bar),
        data_years=data_years,
        num_sessions=walked.num_sessions,
        num_sessions_in_split=num_sessions_in_split,
        passed_gates=verdict.passed,
        reasons=verdict.reasons,
        incumbent=incumbent.version if incumbent else None,
        summary=summary,
        activity=evaluation.activity,
        overfitting=overfitting,
        num_versions_tried=summary.honesty.trials.num_tried,
        baselines=compared,
        months=evaluation.months,
        realised_pips=_realised(walked, summary),
        days=evaluation.days,
        daily_pips=evaluation.daily_pips,
        undefined={
            **reasons(summary, "summary"),
            **reasons(evaluation.activity, "activity"),
            **reasons(compared, "baselines"),
            **reasons(evaluation.months, "months"),
            **reasons(overfitting, "overfitting"),
        },
        standards=dict(subject.standards),
        code_version=installed_version("micro-stochastic-muzero"),
    )


def evidence(summary: Summary, rivals: tuple[Rival, ...], data_years: float) -> Evidence:
    """The numbers that the gates check. CAR25 is the smaller of the values of the two resampling methods."""
    expectancy = summary.intervals.expectancy_pips
    return Evidence(
        num_trades=summary.trades.num_trades,
        num_days=summary.daily.num_days,
        num_tried=summary.honesty.trials.num_tried,
        data_years=data_years,
        expectancy_high_pips=expectancy.high if expectancy else None,
        adjusted_p_value=summary.honesty.adjusted_p_value,
        rivals=rivals,
        sqn100=summary.trades.sqn100,
        car25_percent=summary.sizing.car25_percent,
        deflated_sharpe=summary.honesty.deflated_sharpe,
        min_track_record_days=summary.honesty.min_track_record_days,
        max_drawdown=summary.max_drawdown,
    )


def rival_of(name: str, daily_pips: Float64, rule_pips: Float64) -> Rival:
    """Compare the daily pips, `[D]`, of a version and of a rule on the same days."""
    excess = daily_pips - rule_pips
    return Rival(name, float(excess.mean()), sign_flip_p_value(excess))


def overfitting_of(daily_pips: Float64, others: Float64) -> Overfitting:
    """Probability of backtest overfitting among this version and the others.

    Only versions that were judged on all of these days and could have been chosen are compared.
    """
    versions = np.column_stack([others[:, ~np.isnan(others).any(axis=0)], daily_pips])
    return backtest_overfitting(versions[:, could_be_chosen(versions)])


def _realised(walked: Walk, summary: Summary) -> Float64:
    if not summary.monte_carlo:
        return np.zeros(0)
    profit = np.concatenate(([0.0], np.cumsum(walked.trades.columns.pips)))
    return profit[summary.monte_carlo[0].fan_trades]


def _compare(baseline: Baseline, bars: BarSeries, daily_pips: Float64, min_days: int) -> Comparison:
    marked = mark_to_market(baseline.walk, bars)
    statistics = trade_statistics(baseline.walk.trades.columns.pips)
    return Comparison(
        name=baseline.name,
        num_trades=statistics.num_trades,
        expectancy_pips=statistics.expectancy_pips,
        net_pips=statistics.total_pips,
        sqn100=statistics.sqn100,
        sharpe=sharpe(marked.daily_pips) if len(marked.days) >= min_days else None,
        max_drawdown_pips=max_drawdown_pips(marked.equity_pips),
        rival=rival_of(baseline.name, daily_pips, marked.daily_pips),
    )


def _time_of(bars: BarSeries, bar: int) -> str:
    return datetime.fromtimestamp(int(bars.time_s[bar]), UTC).isoformat(timespec="seconds")


def report_document(report: ValidationReport) -> dict[str, object]:
    """The report as a JSON document; undefined numbers are null."""
    converted = document(report)
    assert isinstance(converted, dict)
    return converted


def write_report(report: ValidationReport, path: Path) -> str:
    """Write the JSON report atomically, and return its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report_document(report), indent=1, allow_nan=False).encode()
    write_atomically(path, text)
    return hashlib.sha256(text).hexdigest()
