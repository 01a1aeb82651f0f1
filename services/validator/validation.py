"""Judges one version, from its network to its report; the service and the command line both use it."""

import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from services.validator.baselines import Baseline, walk_baselines
from services.validator.config import ValidationConfig
from services.validator.evaluate import (
    Progress,
    choose_sessions,
    mark_to_market,
    require_sessions,
    walk,
)
from services.validator.gate import GateConfig, Incumbent
from services.validator.report import History, Purpose, Subject, ValidationReport, compose
from shared.adapters.tables.dataset import Dataset
from shared.adapters.tables.validations import Candidate, ValidationRow, ValidationScope, ValidationStore
from shared.agent.agent import Agent
from shared.agent.rollout import MarketView
from shared.environment.environment import EnvironmentConfig, Prices
from shared.market.session import Split
from shared.messages.schemas import ValidationReported, now
from shared.metrics.monte_carlo import MonteCarloConfig
from shared.metrics.sizing import SizingConfig
from shared.metrics.summary import MetricsConfig
from shared.search.config import SearchConfig

#: Seed of the random baseline.
BASELINE_SEED = 0


@dataclass(frozen=True)
class Standards:
    """The settings that affect judgements."""

    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    monte_carlo: MonteCarloConfig = field(default_factory=MonteCarloConfig)
    sizing: SizingConfig = field(default_factory=SizingConfig)
    gate: GateConfig = field(default_factory=GateConfig)

    @property
    def metrics(self) -> MetricsConfig:
        """The settings of the metrics."""
        return MetricsConfig(
            annual_min_days=self.validation.annual_min_days,
            monte_carlo=self.monte_carlo,
            sizing=self.sizing,
        )

    def document(self) -> dict[str, object]:
        """All of these settings, seeds included, as the report and the database store them."""
        return {
            "environment": asdict(self.environment),
            "search": asdict(self.search),
            "max_sessions": self.validation.max_sessions,
            "metrics": asdict(self.metrics),
            "gate": asdict(self.gate),
            "random_baseline_seed": BASELINE_SEED,
        }


@dataclass(frozen=True)
class Provenance:
    """The judged weights, and the purpose of the judgement."""

    weights_sha256: str
    purpose: Purpose = "on-demand"
    superseded_by: int | None = None  # newer version, published before this one was judged


class Validator:
    """Judges versions on one split of one data set; every version walks the same sessions."""

    def __init__(self, dataset: Dataset, split: Split, standards: Standards) -> None:
        """Choose the sessions and walk the baselines through them.

        Raises:
            DataError: the split has no session.
        """
        self.scope = ValidationScope(dataset.fingerprint, split)
        self._dataset, self._standards = dataset, standards
        all_starts = dataset.sessions.non_overlapping(split)
        self._num_sessions_in_split = len(all_starts)
        self._starts = choose_sessions(all_starts, standards.validation.max_sessions)
        require_sessions(self._starts)
        prices = Prices.of(dataset.bars)
        self._market = MarketView(dataset.features, prices, dataset.outcomes, dataset.fingerprint)
        self._baselines: tuple[Baseline, ...] = walk_baselines(
            prices, self._starts, standards.environment, seed=BASELINE_SEED
        )
        self._days = mark_to_market(self._baselines[0].walk, dataset.bars).days  # the same for every version

    @property
    def standards(self) -> Standards:
        """The settings that affect judgements."""
        return self._standards

    @property
    def num_sessions(self) -> int:
        """Number of sessions that every version walks."""
        return len(self._starts)

    @property
    def first_bar_at(self) -> datetime:
        """Opening time of the first bar of the first session."""
        return datetime.fromtimestamp(int(self._dataset.bars.time_s[self._starts[0]]), UTC)

    def validate(
        self,
        agent: Agent,
        provenance: Provenance,
        *,
        records: ValidationStore | None = None,
        best: int | None = None,
        progress: Progress | None = None,
    ) -> ValidationReport:
        """Judge one version.

        Args:
            agent: the version.
            provenance: its weights, and the purpose of the judgement.
            records: the database of earlier trials; None judges this version alone.
            best: the version that the `best` pointer names. It must be beaten if it is another version
                and was judged on the same bars and split.
            progress: called after every step; an exception that it raises stops the validation.
        """
        started = time.perf_counter()
        standards = self._standards
        walked = walk(
            agent,
            self._market,
            self._starts,
            standards.environment,
            standards.search,
            lanes=standards.validation.lanes,
            progress=progress,
        )
        bars = self._dataset.bars
        return compose(
            Subject(
                version=agent.version,
                split=self.scope.split,
                dataset=self.scope.dataset,
                instrument=bars.instrument.name,
                weights_sha256=provenance.weights_sha256,
                purpose=provenance.purpose,
                standards=standards.document(),
                superseded_by=provenance.superseded_by,
            ),
            walked,
            self._baselines,
            bars,
            num_sessions_in_split=self._num_sessions_in_split,
            metrics=standards.metrics,
            gate=standards.gate,
            history=self._history(
                Candidate(self.scope, bars.instrument.name, agent.version, provenance.weights_sha256),
                records,
            ),
            incumbent=self._incumbent(agent.version, best, records),
            seconds=time.perf_counter() - started,
            created_at=now(),
        )

    def _history(self, candidate: Candidate, records: ValidationStore | None) -> History:
        if records is None:
            return History.none(len(self._days))
        return History(*records.history(candidate, self._days))

    def _incumbent(self, version: int, best: int | None, records: ValidationStore | None) -> Incumbent | None:
        if records is None or best is None or best == version:
            return None
        judged, sqn100 = records.sqn100(self.scope, best)
        return Incumbent(best, sqn100) if judged else None


def row_of(report: ValidationReport, report_sha256: str) -> ValidationRow:
    """The report's row in the table of validations.

    Args:
        report: a report of the service.
        report_sha256: SHA-256 of the file that `write_report` wrote.
    """
    summary, trades, daily = report.summary, report.summary.trades, report.summary.daily
    safe_f = summary.sizing.safe_f
    return ValidationRow(
        version=report.version,
        dataset=report.dataset,
        split=report.split,
        created_at=report.created_at,
        num_sessions=report.num_sessions,
        num_trades=trades.num_trades,
        net_pips=report.net_pips,
        expectancy_pips=trades.expectancy_pips,
        win_rate=trades.win_rate,
        profit_factor=trades.profit_factor,
        sqn=trades.sqn,
        sqn100=trades.sqn100,
        sharpe=daily.sharpe,
        sortino=daily.sortino,
        max_drawdown_pips=summary.max_drawdown_pips,
        max_drawdown=summary.max_drawdown,
        safe_f=safe_f.fraction if safe_f else None,
        car25_percent=summary.sizing.car25_percent,
        deflated_sharpe=summary.honesty.deflated_sharpe,
        overfitting=report.overfitting.probability,
        passed_gates=",".join(report.passed_gates),
        seconds=report.seconds,
        report_sha256=report_sha256,
        instrument=report.instrument,
        weights_sha256=report.weights_sha256,
    )


def announcement_of(report: ValidationReport) -> ValidationReported:
    """The message that announces a report."""
    trades = report.summary.trades
    return ValidationReported(
        version=report.version,
        split=report.split,
        num_sessions=report.num_sessions,
        num_trades=trades.num_trades,
        expectancy_pips=trades.expectancy_pips,
        sqn=trades.sqn100,
        net_pips=report.net_pips,
        max_drawdown_pips=report.summary.max_drawdown_pips,
        passed_gates=report.passed_gates,
        reasons=report.reasons,
        seconds=report.seconds,
    )
