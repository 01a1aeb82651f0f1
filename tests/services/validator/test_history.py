"""Earlier trials, from the database to the verdict: every trial on a market counts."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from services.validator.gate import GateConfig
from services.validator.report import ValidationReport
from services.validator.validation import Provenance, Validator, announcement_of, row_of
from shared.adapters.tables.dataset import Dataset, build_dataset
from shared.adapters.tables.validations import ValidationStore
from shared.market.bar import Instrument
from shared.market.session import SessionConfig, Split, SplitConfig
from shared.market.synthetic import Market, synthesize
from shared.metrics.significance import share_of_error
from tests.services.validator.cases import STANDARDS, agent

ALL_BARS = 18_000  # 13 days


@cache
def market(num_bars: int = ALL_BARS, name: str = "GBP_JPY") -> Dataset:
    bars = synthesize(Market.OU, ALL_BARS, seed=3, instrument=Instrument.named(name))
    return build_dataset(
        bars[:num_bars],
        "a synthetic market",
        SessionConfig(min_mean_range_pips=0.0),
        SplitConfig(train=0.05, validation=0.9, embargo_days=0),
    )


@cache
def validator(
    num_bars: int = ALL_BARS,
    name: str = "GBP_JPY",
    max_sessions: int = 14,
    gate: GateConfig = STANDARDS.gate,
) -> Validator:
    standards = replace(
        STANDARDS, gate=gate, validation=replace(STANDARDS.validation, max_sessions=max_sessions)
    )
    return Validator(market(num_bars, name), Split.VALIDATION, standards)


def judge(
    judging: Validator, version: int, records: ValidationStore, *, best: int | None = None
) -> ValidationReport:
    weights = f"{version:064x}"
    report = judging.validate(agent(version), Provenance(weights, "service"), records=records, best=best)
    records.record(row_of(report, "ab" * 32), report.days, report.daily_pips, announcement_of(report))
    return report


@pytest.fixture
def records(tmp_path: Path) -> ValidationStore:
    return ValidationStore(tmp_path / "validations.duckdb")


def test_trials_still_count_after_one_more_bar_or_with_other_sessions(records: ValidationStore) -> None:
    first = judge(validator(ALL_BARS - 1), 1, records)
    second = judge(validator(ALL_BARS - 1), 2, records)
    assert len(first.days) >= 10
    third = judge(validator(), 3, records)
    assert third.dataset != first.dataset
    assert [report.num_versions_tried for report in (first, second, third)] == [1, 2, 3]
    fourth = judge(validator(max_sessions=5), 4, records)
    assert fourth.days.tolist() != third.days.tolist()
    assert fourth.num_versions_tried == 4
    other = judge(validator(name="EUR_USD"), 5, records)
    assert other.num_versions_tried == 1


def test_trials_on_other_data_sets_raise_the_adjusted_p_value(records: ValidationStore) -> None:
    """Of twenty independent trials, half cover one more day than version 1 and lack some of its days."""
    judging = validator()
    alone = judge(judging, 1, records)
    rng = np.random.default_rng(0)
    for version in range(10, 30):
        days = alone.days if version % 2 else np.concatenate([alone.days[-11:], alone.days[-1:] + 1])
        row = replace(
            row_of(alone, "ab" * 32),
            version=version,
            dataset=f"{version:064x}",
            weights_sha256=f"{version:064x}",
        )
        records.record(row, days, rng.normal(0.0, 20.0, len(days)), announcement_of(alone))
    again = judge(judging, 1, records)
    before, after = alone.summary.honesty, again.summary.honesty
    assert (before.trials.num_tried, after.trials.num_tried) == (1, 21)
    assert after.trials.effective > 10.0
    assert before.p_value is not None
    assert after.p_value == before.p_value
    assert after.adjusted_p_value == pytest.approx(
        min(1.0, before.p_value / share_of_error(after.trials.effective))
    )


def test_no_losing_version_passes_on_bars_on_which_the_best_was_not_judged(
    records: ValidationStore,
) -> None:
    """The incumbent was judged on other bars and need not be beaten, but the proof is still required."""
    judge(validator(ALL_BARS - 1), 1, records)
    assert records.sqn100(validator(ALL_BARS - 1).scope, 1)[0]  # it passed the open gate
    grown = validator(gate=GateConfig())
    report = judge(grown, 2, records, best=1)
    assert report.summary.trades.total_pips < 0
    assert (report.incumbent, report.passed_gates) == (None, ())
    assert any(reason.startswith("paper: ") for reason in report.reasons)
