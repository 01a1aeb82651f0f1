import json

import numpy as np
import pytest

from shared.errors import SettingsError
from shared.metrics.monte_carlo import MonteCarloConfig
from shared.metrics.sizing import SizingConfig
from shared.metrics.summary import MetricsConfig, Summary, document, summarise

CONFIG = MetricsConfig(
    interval_runs=200, monte_carlo=MonteCarloConfig(runs=50), sizing=SizingConfig(curves=50, repeats=1)
)


def summary_of(pips: np.ndarray, others: np.ndarray | None = None) -> Summary:
    return summarise(pips, np.cumsum(pips), pips, CONFIG, others=others)


def test_a_summary_has_every_statistic_and_converts_to_json() -> None:
    pips = np.random.default_rng(0).normal(2.0, 15.0, 120)
    summary = summary_of(pips)
    assert summary.trades.num_trades == 120
    assert summary.intervals.expectancy_pips is not None
    assert (
        summary.intervals.expectancy_pips.low
        < (summary.trades.expectancy_pips or 0)
        < summary.intervals.expectancy_pips.high
    )
    assert [paths.resampling for paths in summary.monte_carlo] == ["iid", "block"]
    assert json.loads(json.dumps(document(summary)))["monte_carlo"][0]["fan_pips"][2][0] == 0.0


def test_a_summary_of_no_trades() -> None:
    summary = summary_of(np.zeros(0))
    assert summary.trades.num_trades == 0
    assert summary.max_drawdown == 0.0
    assert summary.monte_carlo == ()
    assert summary.sizing.fraction == 0.0
    assert summary.daily.sharpe is None


def test_other_versions_deflate_a_result() -> None:
    pips = np.random.default_rng(0).normal(5.0, 15.0, 120)
    others = np.random.default_rng(1).normal(0.0, 15.0, (120, 40))
    alone, chosen = summary_of(pips).honesty, summary_of(pips, others).honesty
    assert (alone.trials.num_tried, chosen.trials.num_tried) == (1, 41)
    assert (chosen.deflated_sharpe or 0) < (alone.deflated_sharpe or 0)
    assert chosen.p_value == alone.p_value
    assert (chosen.adjusted_p_value or 0) > (alone.adjusted_p_value or 0)


def test_the_same_seed_gives_the_same_report() -> None:
    pips = np.random.default_rng(0).normal(2.0, 15.0, 120)
    assert document(summary_of(pips)) == document(summary_of(pips))


def test_settings_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"metrics\.confidence is 1.0"):
        MetricsConfig(confidence=1.0)
    with pytest.raises(SettingsError, match=r"metrics\.interval_runs is 0"):
        MetricsConfig(interval_runs=0)
