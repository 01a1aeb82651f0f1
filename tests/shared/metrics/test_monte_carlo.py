import numba
import numpy as np
import pytest

from shared.errors import DataError, SettingsError
from shared.metrics.bootstrap import Resampling, resample
from shared.metrics.monte_carlo import DRAWDOWN_PERCENTILES, FAN_PERCENTILES, MonteCarloConfig, simulate
from tests.oracles.monte_carlo import walk

PIPS = np.random.default_rng(0).normal(0.5, 20.0, 400)


@pytest.mark.parametrize(("way", "mean_block"), [(Resampling.IID, 1.0), (Resampling.BLOCK, 7.0)])
def test_fan_drawdowns_and_ruin_equal_the_oracle(way: Resampling, mean_block: float) -> None:
    config = MonteCarloConfig(
        runs=150, seed=11, starting_equity_pips=600.0, ruin_loss=0.5, mean_block_trades=7.0
    )
    result = simulate(PIPS, way, config)
    draws = resample(PIPS, num_runs=150, num_steps=400, seed=11, mean_block=mean_block)
    equities, falls, lows = walk(draws)
    at = np.array(equities)[:, result.fan_trades]
    assert result.fan_pips == pytest.approx(np.percentile(at, FAN_PERCENTILES, axis=0))
    assert result.max_drawdown_pips == pytest.approx(np.percentile(falls, DRAWDOWN_PERCENTILES))
    assert result.probability_of_ruin == np.mean(np.array(lows) <= -300.0)
    assert 0.0 < result.probability_of_ruin < 1.0
    assert result.probability_of_loss == np.mean(at[:, -1] < 0.0)
    assert result.mean_block_trades == mean_block


def test_the_fan_of_many_trades_agrees_with_the_normal_distribution() -> None:
    centred = PIPS - PIPS.mean()
    result = simulate(centred, Resampling.IID, MonteCarloConfig(runs=20_000, seed=1))
    spread = np.sqrt(result.fan_trades[1:]) * PIPS.std()
    assert result.fan_pips[4, 1:] == pytest.approx(1.645 * spread, rel=0.1)
    assert result.fan_pips[0, 1:] == pytest.approx(-1.645 * spread, rel=0.1)


def test_equal_trades_have_one_possible_curve() -> None:
    result = simulate(
        np.full(30, -2.0), Resampling.BLOCK, MonteCarloConfig(runs=10, starting_equity_pips=100.0)
    )
    assert (result.fan_pips == -2.0 * result.fan_trades).all()
    assert (result.max_drawdown_pips == 60.0).all()
    assert result.probability_of_ruin == 1.0  # 50 of 100 pips are gone


def test_blocks_show_the_deeper_drawdowns_of_streaks() -> None:
    streaks = np.repeat(np.random.default_rng(2).choice([-10.0, 10.0], 100), 10)
    config = MonteCarloConfig(runs=500, seed=1)
    single, blocks = (simulate(streaks, way, config) for way in (Resampling.IID, Resampling.BLOCK))
    assert blocks.mean_block_trades > 5.0
    assert blocks.max_drawdown_pips[2] > 1.5 * single.max_drawdown_pips[2]


def test_the_seed_determines_the_result_on_any_number_of_threads() -> None:
    config = MonteCarloConfig(runs=100, seed=5)
    wide = simulate(PIPS, Resampling.BLOCK, config)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        narrow = simulate(PIPS, Resampling.BLOCK, config)
    finally:
        numba.set_num_threads(threads)
    assert np.array_equal(wide.fan_pips, narrow.fan_pips)
    other = simulate(PIPS, Resampling.BLOCK, MonteCarloConfig(runs=100, seed=6))
    assert not np.array_equal(wide.fan_pips, other.fan_pips)


def test_the_fan_of_a_long_list_has_few_points() -> None:
    result = simulate(np.tile(PIPS, 20), Resampling.IID, MonteCarloConfig(runs=3))
    assert result.fan_trades[0] == 0
    assert result.fan_trades[-1] == 8000
    assert len(result.fan_trades) <= 51


def test_an_empty_trade_list_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to resample"):
        simulate(np.zeros(0), Resampling.IID, MonteCarloConfig())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("runs", 0),
        ("seed", -1),
        ("seed", 2**63),
        ("starting_equity_pips", 0.0),
        ("ruin_loss", 1.5),
        ("mean_block_trades", 0.5),
        ("mean_block_trades", float("inf")),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"monte_carlo.{field} is"):
        MonteCarloConfig(**{field: value})  # type: ignore[arg-type]
