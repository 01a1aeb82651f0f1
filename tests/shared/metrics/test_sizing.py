import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from risk_normalization.risk_normalization import risk_normalization

from shared.errors import SettingsError
from shared.metrics.bootstrap import Resampling, resample
from shared.metrics.sizing import (
    SizingConfig,
    compound_annual_percent,
    grow,
    kelly_continuous,
    kelly_discrete,
    risk_normalize,
    safe_fraction,
    size,
)

#: Daily gains of three years, on which Bandy's own package was run.
GAINS = np.random.default_rng(1).normal(0.0008, 0.01, 756)


def test_growth_equals_the_value_computed_by_hand() -> None:
    final, deepest = grow(np.array([[0.5, -0.2, -0.5, 1.0]]), 1.0)
    assert final[0] == pytest.approx(1.5 * 0.8 * 0.5 * 2.0)
    assert deepest[0] == pytest.approx(1.0 - 0.8 * 0.5)
    final, deepest = grow(np.array([[0.5, -0.2]]), 0.5)
    assert final[0] == pytest.approx(1.25 * 0.9)
    assert deepest[0] == pytest.approx(0.1)


def test_ruin_is_permanent() -> None:
    final, deepest = grow(np.array([[0.1, -3.0, 5.0]]), 1.0)
    assert final[0] == 0.0
    assert deepest[0] == 1.0


def test_agrees_with_a_stored_run_of_bandys_package_over_two_years() -> None:
    # risk-normalization 1.1.2 on these gains: safe-f 0.543 (sd 0.004), CAR25 -1.20 (sd 0.15)
    result = risk_normalize(GAINS, Resampling.IID, SizingConfig())
    assert result.fraction == pytest.approx(0.543, abs=0.015)
    assert result.car25_percent == pytest.approx(-1.20, abs=0.35)
    assert result.dd95 == pytest.approx(0.20, abs=1e-4)
    assert not result.capped


def test_agrees_with_bandys_package() -> None:
    """Over 60 trades, because two years take the package half a minute. It needs 61 days for 60 trades."""
    random.seed(7)
    fraction, fraction_sd, rate, rate_sd = risk_normalization(  # type: ignore[no-untyped-call]
        GAINS.tolist(), 61, 60, 1.0, 5, 0.05, 400, 4
    )
    result = risk_normalize(
        GAINS, Resampling.IID, SizingConfig(horizon_days=60, drawdown_tolerance=0.05, max_fraction=5.0)
    )
    assert result.fraction == pytest.approx(fraction, abs=4 * fraction_sd + 0.01)
    assert result.car25_percent == pytest.approx(rate, abs=4 * rate_sd)


@given(st.integers(0, 50), st.floats(0.05, 3.0), st.floats(1.01, 2.0))
def test_a_larger_fraction_never_has_a_smaller_drawdown(seed: int, fraction: float, times: float) -> None:
    curves = np.random.default_rng(seed).normal(0.001, 0.02, (20, 60))
    assert (grow(curves, fraction * times)[1] >= grow(curves, fraction)[1] - 1e-12).all()


@settings(max_examples=20)
@given(st.integers(0, 50), st.floats(0.02, 0.5))
def test_safe_fraction_is_the_largest_within_the_tolerance(seed: int, tolerance: float) -> None:
    config = SizingConfig(drawdown_tolerance=tolerance, max_fraction=4.0)
    curves = resample(np.random.default_rng(seed).normal(0, 0.02, 60), num_runs=100, num_steps=50, seed=seed)
    fraction = safe_fraction(curves, config)
    assert np.quantile(grow(curves, fraction)[1], 0.95) <= tolerance
    if fraction < 4.0:
        assert np.quantile(grow(curves, fraction * 1.001)[1], 0.95) > tolerance


def test_kelly_fractions_equal_values_computed_by_hand() -> None:
    # wins 3 of 5 decided trades, mean win 2, mean loss 1: 0.6 - 0.4 / 2
    assert kelly_discrete(np.array([2.0, 2.0, 2.0, -1.0, -1.0, 0.0])) == pytest.approx(0.4)
    assert kelly_discrete(np.array([1.0, -2.0])) == pytest.approx(-0.5)
    assert kelly_discrete(np.array([1.0, 2.0])) is None
    assert kelly_continuous(np.array([0.01, 0.03])) == pytest.approx(0.02 / 0.0002)
    assert kelly_continuous(np.array([0.01, 0.01])) is None


def test_kelly_maximises_growth_of_a_biased_coin() -> None:
    coin = np.array([1.0] * 6 + [-1.0] * 4)
    fractions = np.linspace(0.01, 0.99, 99)
    best = fractions[np.argmax([np.log1p(f * coin).mean() for f in fractions])]
    assert kelly_discrete(coin) == pytest.approx(best, abs=0.01)


def test_the_size_is_the_smaller_of_kelly_and_safe_f() -> None:
    good = np.random.default_rng(3).normal(0.002, 0.01, 500)
    config = SizingConfig(repeats=2, curves=300, max_fraction=10.0)
    careful = size(good, config)
    assert careful.safe_f is not None
    assert careful.kelly is not None
    assert careful.fraction == pytest.approx(min(0.25 * careful.kelly, careful.safe_f.fraction))
    assert careful.fraction > 0.0
    bold = size(good, SizingConfig(repeats=2, curves=300, max_fraction=10.0, kelly_safety=1.0))
    assert bold.safe_f is not None
    assert bold.fraction == bold.safe_f.fraction
    capped = size(good, SizingConfig(repeats=2, curves=300, max_fraction=0.1, kelly_safety=1.0))
    assert capped.fraction == 0.1
    assert "largest fraction" in capped.reason


def test_car25_is_the_smaller_of_both_kinds_of_resampling() -> None:
    """Regression: if both fractions were at the maximum, the greater CAR25 was reported (single days)."""
    noise = np.random.default_rng(0).normal(0.0, 0.0016, 140)
    gains = np.zeros(140)
    for day in range(140):
        gains[day] = 0.6 * gains[day - 1] + noise[day] + 0.00001
    sized = size(gains - gains.mean() + 1e-5, SizingConfig(repeats=2, curves=300))
    assert sized.safe_f is not None
    assert sized.other is not None
    assert sized.safe_f.fraction == sized.other.fraction == 1.0
    assert sized.safe_f.resampling is Resampling.BLOCK
    assert sized.safe_f.car25_percent is not None
    assert sized.other.car25_percent is not None
    assert sized.car25_percent == sized.safe_f.car25_percent < sized.other.car25_percent
    assert sized.fraction == 0.0
    assert size(gains[:10], SizingConfig()).car25_percent is None


def test_clustered_losses_are_sized_by_blocks() -> None:
    gains = np.repeat(np.random.default_rng(4).normal(0.002, 0.01, 100), 8)
    sized = size(gains, SizingConfig(repeats=2, curves=300, max_fraction=10.0))
    assert sized.safe_f is not None
    assert sized.other is not None
    assert sized.safe_f.resampling is Resampling.BLOCK
    assert sized.safe_f.fraction < sized.other.fraction


@pytest.mark.parametrize(
    ("gains", "reason"),
    [
        (np.full(10, 0.01), "10 periods"),
        (np.linspace(0.0, 0.01, 100), "no losing period"),
        (np.random.default_rng(5).normal(-0.01, 0.01, 100), "CAR25 is negative"),
    ],
    ids=["too few", "no loss", "losing"],
)
def test_gains_without_a_known_risk_or_an_edge_have_size_0(gains: np.ndarray, reason: str) -> None:
    sized = size(gains, SizingConfig(repeats=1, curves=100))
    assert sized.fraction == 0.0
    assert reason in sized.reason


def test_compound_annual_rate() -> None:
    assert compound_annual_percent(1.21, 504) == pytest.approx(10.0)
    assert compound_annual_percent(0.0, 504) is None
    assert compound_annual_percent(math.inf, 504) is None
    assert compound_annual_percent(20.0, 1) is None  # 20^252


def test_accounts_beyond_the_largest_float_have_no_rate() -> None:
    """Daily gains of a million times the account, and of 100 times over a horizon of one day."""
    for gain, horizon in ((1e6, 504), (100.0, 1)):
        gains = np.append(np.full(60, gain), -0.01)
        sized = size(gains, SizingConfig(repeats=2, curves=50, horizon_days=horizon))
        assert sized.car25_percent is None
        assert (sized.fraction, sized.reason) == (0.0, "CAR25 is not defined")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("horizon_days", 0),
        ("drawdown_tolerance", 1.0),
        ("tail", 0.0),
        ("seed", 2**63),
        ("max_fraction", math.inf),
        ("kelly_safety", 2.0),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"sizing.{field} is"):
        SizingConfig(**{field: value})  # type: ignore[arg-type]
