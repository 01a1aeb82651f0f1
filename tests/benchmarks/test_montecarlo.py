import numpy as np
import pytest

from benchmarks.montecarlo import bench_montecarlo, numpy_loop, streaky_trades
from shared.metrics.bootstrap import Resampling
from shared.metrics.monte_carlo import MonteCarloConfig, simulate


@pytest.mark.parametrize("resampling", list(Resampling))
def test_yardstick_and_kernel_give_the_same_results(resampling: Resampling) -> None:
    """Different draws of the same distribution agree within the sampling error of each percentile."""
    pips = streaky_trades(300, seed=1)
    config = MonteCarloConfig(runs=4000, seed=2, starting_equity_pips=1000.0, mean_block_trades=6.0)
    kernel = simulate(pips, resampling, config)
    loop = numpy_loop(pips, kernel.mean_block_trades, config, kernel.fan_trades)
    spread = np.ptp(kernel.fan_pips[:, -1])
    assert loop.fan_pips == pytest.approx(kernel.fan_pips, abs=0.06 * spread)
    assert loop.max_drawdown_pips == pytest.approx(kernel.max_drawdown_pips, rel=0.1)
    assert loop.probability_of_ruin == pytest.approx(kernel.probability_of_ruin, abs=0.04)


def test_every_kind_of_resampling_is_measured() -> None:
    rows = bench_montecarlo(runs=5, trades=50, repeats=1)
    assert [row.name.rpartition(", ")[2] for row in rows] == list(Resampling)
    assert all(row.ratio > 0.0 for row in rows)
    assert rows[0].goal_value == pytest.approx(0.3 * 250 / 5_000_000)
