"""Every None of a summary has a reason, and no other number has one."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.metrics.monte_carlo import MonteCarloConfig
from shared.metrics.sizing import SizingConfig
from shared.metrics.summary import MetricsConfig, document, summarise
from shared.metrics.undefined import UNEXPLAINED, reasons, why

CONFIG = MetricsConfig(
    interval_runs=20,
    monte_carlo=MonteCarloConfig(runs=5),
    sizing=SizingConfig(curves=10, repeats=1, horizon_days=20),
)


def nulls(value: Any, path: tuple[str, ...] = ()) -> set[str]:
    """Paths of the nulls in a JSON document, without those of fields `reason`."""
    if value is None:
        return set() if path[-1] == "reason" else {".".join(path)}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {found for name, item in items for found in nulls(item, (*path, str(name)))}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([-8.0, -5.0, -5.0 - 1e-13, 0.0, 1e-13, 6.0, 6.0 + 1e-12, 1e6]), max_size=70),
    st.sampled_from(["days", "no times", "trades per year"]),
)
def test_every_null_has_a_reason(trades: list[float], kind: str) -> None:
    pips = np.array(trades, np.float64)
    daily = pips if kind == "days" else None
    per_year = 250.0 if kind == "trades per year" else None
    summary = summarise(pips, np.cumsum(pips), daily, CONFIG, trades_per_year=per_year)
    written, found = json.loads(json.dumps(document(summary), allow_nan=False)), reasons(summary)
    assert set(found) == nulls(written)
    assert UNEXPLAINED not in found.values()


@pytest.mark.parametrize(
    ("num", "kind", "path", "reason"),
    [
        (5, "days", "daily.sharpe", "5 days: fewer than 60, not annualised"),
        (1, "days", "daily.sortino", "1 day: fewer than 60, not annualised"),
        (59, "days", "daily.sharpe", "59 days: fewer than 60, not annualised"),
        (60, "days", "daily.sharpe", None),
        (5_000, "no times", "daily.sharpe", "the trades have no times, so there are no days"),
        (5_000, "no times", "sizing.safe_f", "the trades have no times, so there are no days"),
        (5_000, "no times", "sizing.safe_f.car25_percent", "the trades have no times, so there are no days"),
        (100, "trades per year", "daily.sharpe", "50 days: fewer than 60, not annualised"),
        (200, "trades per year", "daily.sharpe", None),
    ],
)
def test_few_days_or_no_times_give_no_number_per_year(
    num: int, kind: str, path: str, reason: str | None
) -> None:
    """504 trades per year are two per trading day."""
    pips = np.random.default_rng(0).normal(1.0, 15.0, num)
    daily = pips if kind == "days" else None
    per_year = 504.0 if kind == "trades per year" else None
    summary = summarise(pips, np.cumsum(pips), daily, CONFIG, trades_per_year=per_year)
    found = reasons(summary)
    if reason is None:
        assert path not in found
        assert summary.daily.sharpe == pytest.approx(
            pips.mean() / pips.std(ddof=1) * np.sqrt(per_year or 252.0)
        )
    else:
        assert why(found, path) == reason
