"""The search benchmark measures what it says: whole decisions against their own network calls."""

from benchmarks.search import SearchSpeed, bench_search
from shared.search.config import SearchConfig, Selection
from tests.shared.agent.markets import small_agent


def test_every_batch_is_measured_against_its_own_network_calls() -> None:
    config = SearchConfig(Selection.PUCT)
    rows = bench_search(small_agent(), config=config, batches=(1, 8), simulations=(1, 5), seconds=0.01)
    assert [(row.simulations, row.batch) for row in rows] == [(1, 1), (1, 8), (5, 1), (5, 8)]
    for row in rows:
        assert row.decisions_per_second > 0.0
        assert row.bound_per_second > 0.0
        assert row.measurement.ratio == row.decisions_per_second / row.bound_per_second
        assert row.measurement.goal is None


def test_the_goal_holds_for_five_simulations_from_64_roots_on() -> None:
    goals = {
        pair: SearchSpeed(*pair, decisions_per_second=1.0, bound_per_second=1.0).measurement.goal_ratio
        for pair in ((64, 5), (256, 5), (16, 5), (64, 25))
    }
    assert goals == {(64, 5): 0.85, (256, 5): 0.85, (16, 5): None, (64, 25): None}
