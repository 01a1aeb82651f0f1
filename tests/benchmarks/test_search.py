"""The search benchmark compares decisions with network calls and peers."""

from collections import Counter

import pytest

import benchmarks.search
from benchmarks.peers.process import mctx_missing
from benchmarks.peers.situations import Encoding
from benchmarks.search import PeerSpeed, SearchSpeed, bench_search, compare_search
from shared.engine.precision import Precision
from shared.engine.processor import HAS_BFLOAT16
from shared.search.config import SearchConfig, Selection
from tests.cli.benches import bench_document
from tests.shared.agent.markets import small_agent
from tests.shared.model.networks import randomized_network

PRECISIONS = [Precision.FLOAT32, *([Precision.BFLOAT16] if HAS_BFLOAT16 else [])]


def test_every_batch_is_measured_against_its_own_network_calls() -> None:
    config = SearchConfig(Selection.PUCT)
    rows = bench_search(small_agent(), config=config, batches=(1, 8), simulations=(1, 5), seconds=0.0)
    assert [(row.simulations, row.batch) for row in rows] == [(1, 1), (1, 8), (5, 1), (5, 8)]
    for row in rows:
        assert row.decisions_per_second > 0.0
        assert row.bound_per_second > 0.0
        assert row.measurement.ratio == row.decisions_per_second / row.bound_per_second
        assert row.measurement.goal is None


def test_the_goal_is_for_five_simulations_and_at_least_64_roots() -> None:
    goals = {
        pair: SearchSpeed(*pair, decisions_per_second=1.0, bound_per_second=1.0).measurement.goal_ratio
        for pair in ((64, 5), (256, 5), (16, 5), (64, 25))
    }
    assert goals == {(64, 5): 0.85, (256, 5): 0.85, (16, 5): None, (64, 25): None}


@pytest.mark.skipif(mctx_missing() is not None, reason=mctx_missing() or "")
def test_every_precision_is_measured_against_every_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    visited = []
    monkeypatch.setattr(benchmarks.search, "lightzero_missing", lambda: None)
    monkeypatch.setattr(benchmarks.search, "lightzero_visits", lambda *asked: visited.append(asked))
    rows = compare_search(randomized_network(), batches=(1,), simulations=(2,), seconds=0.0)
    assert [row.precision for row in rows] == PRECISIONS
    for row in rows:
        assert [(peer.peer, peer.encoding) for peer in row.peers] == [
            *(("mctx", encoding) for encoding in Encoding),
            ("LightZero's tree", Encoding.SHARED),
            ("LightZero's tree", Encoding.PLAIN),
            ("node objects", Encoding.SHARED),
            ("node objects", Encoding.PLAIN),
        ]
        for peer in row.peers:
            assert peer.peer_per_second > 0.0
            assert (peer.decisions_per_second == row.decisions_per_second) == (
                peer.encoding is Encoding.SHARED
            )
            assert peer.goal_ratio == (None if peer.peer == "node objects" else 1.0)
    assert {config.simulations for *_, config in visited} == {2}


def test_the_rest_is_measured_without_compiled_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks.search, "mctx_missing", lambda: "not here")
    monkeypatch.setattr(benchmarks.search, "lightzero_missing", lambda: "not here")
    rows = compare_search(randomized_network(), batches=(1, 2), simulations=(2,), seconds=0.0)
    assert [row.batch for row in rows if row.peers] == [1] * len(PRECISIONS)
    assert Counter(peer.peer for row in rows for peer in row.peers) == {"node objects": 2 * len(PRECISIONS)}


def test_goals_against_mctx_are_for_64_roots_and_5_simulations() -> None:
    goal = benchmarks.search._peer_goal
    assert goal("mctx", Encoding.SHARED, Precision.FLOAT32, 64, 5) == 3.0
    assert goal("mctx", Encoding.SHARED, Precision.BFLOAT16, 64, 5) == 5.0
    assert goal("mctx", Encoding.PLAIN, Precision.FLOAT32, 64, 5) == 1.0
    assert goal("mctx", Encoding.SHARED, Precision.FLOAT32, 16, 5) == 1.0
    assert goal("LightZero's tree", Encoding.SHARED, Precision.FLOAT32, 64, 5) == 1.0
    assert goal("node objects", Encoding.SHARED, Precision.FLOAT32, 1, 5) is None


def test_rows_name_sizes_precision_and_encoding() -> None:
    peer = PeerSpeed("mctx", Encoding.PLAIN, decisions_per_second=6.0, peer_per_second=2.0, goal_ratio=1.0)
    speed = SearchSpeed(16, 25, 9.0, 10.0, Precision.BFLOAT16, (peer,))
    alone, against_mctx = speed.measurements
    assert alone == speed.measurement
    assert alone.name == "search, 16 roots, 25 simulations, bfloat16"
    assert against_mctx.name == "search, 16 roots, 25 simulations, bfloat16, windows encoded"
    assert against_mctx.yardstick == "mctx, each window encoded"
    assert (against_mctx.ratio, against_mctx.met) == (3.0, True)


def test_the_command_measures_the_requested_sizes() -> None:
    document = bench_document(
        "search", "--batch", "2", "--batch", "3", "--simulations", "1", "--no-peers", "--seconds", "0"
    )
    assert [row["name"] for row in document["measurements"]] == [
        f"search, {batch} roots, 1 simulation, {precision}" for batch in (2, 3) for precision in PRECISIONS
    ]
