"""The search benchmark measures what it says: whole decisions against their own network calls."""

from benchmarks.search import bench_search
from shared.search.config import SearchConfig, Selection
from tests.shared.agent.markets import small_agent


def test_every_batch_is_measured_against_its_own_network_calls() -> None:
    config = SearchConfig(Selection.PUCT)
    rows = bench_search(small_agent(), config=config, batches=(1, 8), simulations=(1, 5), seconds=0.01)
    assert [(row.simulations, row.batch) for row in rows] == [(1, 1), (1, 8), (5, 1), (5, 8)]
    for row in rows:
        assert row.decisions_per_second > 0.0
        assert row.bound_per_second > 0.0
        assert row.share_of_bound == row.decisions_per_second / row.bound_per_second
