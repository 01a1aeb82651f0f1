import numpy as np
import pytest

from shared.errors import DataError
from shared.market.bar import Instrument
from shared.market.calendar import is_open
from shared.market.session import Split, index_sessions
from shared.market.synthetic import (
    DEFAULT_START_S,
    GbmLaw,
    Market,
    OuLaw,
    RegimesLaw,
    synthesize,
    synthesize_with_state,
)
from tests.shared.market.series import seconds

MANY = 400_000


@pytest.mark.parametrize("market", Market)
def test_synthetic_bars_are_valid(market: Market) -> None:
    bars = synthesize(market, 20_000, seed=3)
    assert len(bars) == 20_000
    assert (bars.low <= np.minimum(bars.open, bars.close)).all()
    assert (bars.high >= np.maximum(bars.open, bars.close)).all()
    assert (bars.open[1:] == bars.close[:-1]).all()
    assert (bars.volume >= 1).all()
    assert np.isnan(bars.spread_pips).all()
    quoted = np.concatenate([bars.open, bars.high, bars.low, bars.close])
    assert (quoted == np.round(quoted, 3)).all()  # yen are quoted to a tenth of a pip


@pytest.mark.parametrize("market", Market)
def test_every_minute_of_the_trading_week_has_a_bar(market: Market) -> None:
    bars = synthesize(market, 15_000, seed=0, start_s=seconds("2024-03-08T20:00"))
    every = np.arange(bars.time_s[0], bars.time_s[-1] + 1, 60)
    assert bars.time_s.tolist() == every[is_open(every)].tolist()
    assert bars.time_s[0] == seconds("2024-03-08T20:00")


def test_a_market_starts_with_the_first_open_minute() -> None:
    assert synthesize(Market.GBM, 1, 0).time_s.tolist() == [DEFAULT_START_S]
    saturday = synthesize(Market.GBM, 1, 0, start_s=seconds("2024-03-09T12:00"))
    assert saturday.time_s.tolist() == [seconds("2024-03-10T21:00")]
    between = synthesize(Market.GBM, 1, 0, start_s=seconds("2024-03-06T12:00") + 1)
    assert between.time_s.tolist() == [seconds("2024-03-06T12:01")]


@pytest.mark.parametrize("market", Market)
def test_the_seed_determines_the_bars(market: Market) -> None:
    bars = synthesize(market, 2_000, seed=9)
    assert bars.fingerprint == synthesize(market, 2_000, seed=9).fingerprint
    assert bars.fingerprint != synthesize(market, 2_000, seed=10).fingerprint


def test_regimes_are_calibrated_to_gbp_jpy() -> None:
    ranges = np.concatenate([synthesize(Market.REGIMES, MANY, seed).range_pips for seed in range(3)])
    assert ranges.mean() == pytest.approx(3.87, rel=0.02)
    assert np.quantile(ranges, 0.99) == pytest.approx(16.47, rel=0.04)


def test_ou_has_the_mean_range_of_gbp_jpy_and_reverts_by_its_law() -> None:
    law = OuLaw()
    made = synthesize_with_state(law, MANY, seed=1)
    assert made.bars.range_pips.mean() == pytest.approx(3.87, rel=0.01)
    deviation = made.state
    assert deviation.std() == pytest.approx(law.deviation_pips, rel=0.05)
    slope = (deviation[1:] @ deviation[:-1]) / (deviation[:-1] @ deviation[:-1])
    assert slope == pytest.approx(law.persistence, abs=0.002)
    # The tradable move follows from the state: the next close moves by (persistence - 1) x deviation.
    moves = np.diff(made.bars.close) / made.bars.instrument.pip
    pull = (moves @ deviation[:-1]) / (deviation[:-1] @ deviation[:-1])
    assert pull == pytest.approx(law.persistence - 1, abs=0.002)


def test_gbm_is_a_martingale_with_the_deviation_of_its_law() -> None:
    moves = np.diff(np.log(synthesize(Market.GBM, MANY, seed=2).close)) * 185.0 / 0.01
    assert moves.std() == pytest.approx(GbmLaw().sigma_pips, rel=0.01)
    assert abs(moves.mean()) < 4 * moves.std() / np.sqrt(MANY)
    assert abs(np.corrcoef(moves[1:], moves[:-1])[0, 1]) < 4 / np.sqrt(MANY)


def test_regimes_have_the_drift_deviation_and_duration_of_their_law() -> None:
    law = RegimesLaw()
    assert all(sum(row) == pytest.approx(1) for row in law.transition)
    made = synthesize_with_state(law, MANY, seed=4)
    regime = made.state.astype(int)
    shares = np.bincount(regime) / MANY
    assert shares == pytest.approx(law.stationary(), abs=0.02)
    moves = np.diff(made.bars.close) / made.bars.instrument.pip
    for k in range(len(law.names)):
        here = moves[regime[1:] == k]
        assert here.mean() == pytest.approx(law.drift_pips[k], abs=5 * here.std() / np.sqrt(len(here)))
        assert here.std() == pytest.approx(law.sigma_pips[k], rel=0.03)
        stays = (regime[1:] == k)[regime[:-1] == k].mean()
        assert stays == pytest.approx(law.transition[k][k], abs=0.003)


def test_highs_and_lows_follow_the_law_of_brownian_motion() -> None:
    # E[range] = sqrt(8 / pi) deviations (Feller 1951). The rounding to tenths is negligible.
    ranges = synthesize_with_state(OuLaw(persistence=0.999999), MANY, seed=6).bars.range_pips
    deviation = np.hypot(OuLaw().sigma_pips, OuLaw().mean_sigma_pips)
    assert ranges.mean() == pytest.approx(np.sqrt(8 / np.pi) * deviation, rel=0.01)


def test_another_instrument_has_sessions_in_every_split() -> None:
    bars = synthesize(Market.REGIMES, 30_000, seed=1, instrument=Instrument.named("EUR_USD"))
    assert bars.close[0] == pytest.approx(1.1, abs=0.01)
    assert bars.range_pips.mean() == pytest.approx(3.87, rel=0.15)
    index = index_sessions(bars)
    assert len(index.every(Split.TRAIN)) > 10_000
    assert len(index.non_overlapping(Split.TEST)) >= 5


@pytest.mark.parametrize(
    ("num_bars", "seed", "named"),
    [(0, 0, "0 bars"), (-5, 0, "-5"), (10**12, 0, "1,000,000,000,000"), (9, -1, "seed -1")],
)
def test_arguments_out_of_range_are_refused(num_bars: int, seed: int, named: str) -> None:
    with pytest.raises(DataError, match=named):
        synthesize(Market.GBM, num_bars, seed)


def test_a_law_that_reaches_zero_is_refused() -> None:
    ruin = RegimesLaw(drift_pips=(-50.0, -50.0, -50.0, -50.0))
    with pytest.raises(DataError, match="fall to zero"):
        synthesize_with_state(ruin, 2_000, seed=0)
