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


def test_everything_is_judged_and_fits_into_json() -> None:
    pips = np.random.default_rng(0).normal(2.0, 15.0, 120)
    whole = summary_of(pips)
    assert whole.trades.num_trades == 120
    assert whole.intervals.expectancy_pips is not None
    assert (
        whole.intervals.expectancy_pips.low
        < (whole.trades.expectancy_pips or 0)
        < whole.intervals.expectancy_pips.high
    )
    assert [paths.resampling for paths in whole.monte_carlo] == ["iid", "block"]
    assert json.loads(json.dumps(document(whole)))["monte_carlo"][0]["fan_pips"][2][0] == 0.0


def test_no_trade_is_judged_too() -> None:
    whole = summary_of(np.zeros(0))
    assert whole.trades.num_trades == 0
    assert whole.max_drawdown == 0.0
    assert whole.monte_carlo == ()
    assert whole.sizing.fraction == 0.0
    assert whole.daily.sharpe is None


def test_earlier_trials_deflate() -> None:
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


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(SettingsError, match="confidence"):
        MetricsConfig(confidence=1.0)
    with pytest.raises(SettingsError, match="interval_runs"):
        MetricsConfig(interval_runs=0)
