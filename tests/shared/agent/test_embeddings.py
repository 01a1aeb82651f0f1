"""Cached embeddings equal those of the network, and each bar is encoded once per version."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.agent.agent import Agent
from shared.agent.embeddings import SPAN_BARS, EmbeddingCache
from shared.errors import DataError, SettingsError
from shared.features.window import windows
from shared.numeric import Float32, Int64
from tests.shared.agent.markets import small_agent, small_market
from tests.shared.model.networks import SMALL, randomized_network

FIRST_BAR = 200
ROW_BYTES = 4 * SMALL.temporal_channels


class CountingAgent(Agent):
    """Records the number of bars of each encoding call."""

    def __init__(self, seed: int = 34, version: int = 7) -> None:
        super().__init__(randomized_network(SMALL, seed=seed), version)
        self.encoded: list[int] = []  # bars per call

    def embed_span(self, rows: Float32) -> Float32:
        self.encoded.append(len(rows) - SMALL.window_bars + 1)
        return super().embed_span(rows)


def bars(*spans: tuple[int, int]) -> Int64:
    """The bars of half-open spans."""
    return np.unique(np.concatenate([np.arange(*span) for span in spans]))


def by_windows(agent: Agent, of: Int64) -> Float32:
    return agent.embed_windows(windows(small_market().features, of))


@given(
    calls=st.lists(
        st.lists(st.integers(FIRST_BAR, FIRST_BAR + 120), min_size=1, max_size=40, unique=True),
        min_size=1,
        max_size=6,
    ),
    rows_cached=st.integers(0, 150),
)
def test_a_cache_of_any_size_gives_the_embeddings_of_the_windows(
    calls: list[list[int]], rows_cached: int
) -> None:
    cache = EmbeddingCache(rows_cached * ROW_BYTES)
    for call in calls:
        wanted = np.sort(call)
        got = cache.rows(small_agent(), small_market().features, wanted)
        np.testing.assert_allclose(got, by_windows(small_agent(), wanted), atol=1e-5)


def test_only_runs_of_missing_bars_are_encoded() -> None:
    agent, cache = CountingAgent(), EmbeddingCache(1_000 * ROW_BYTES)
    features = small_market().features
    first = cache.rows(agent, features, bars((300, 340), (400, 410)))
    assert agent.encoded == [40, 10]
    again = cache.rows(agent, features, bars((300, 340), (400, 410)))
    assert agent.encoded == [40, 10]
    assert again.tobytes() == first.tobytes()
    cache.rows(agent, features, bars((290, 345), (405, 420)))
    assert agent.encoded == [40, 10, 10, 5, 10]


def test_the_oldest_embeddings_are_evicted() -> None:
    agent, cache = CountingAgent(), EmbeddingCache(50 * ROW_BYTES)
    features = small_market().features
    cache.rows(agent, features, bars((300, 330)))
    cache.rows(agent, features, bars((400, 430)))  # evicts 300..309
    assert agent.encoded == [30, 30]
    cache.rows(agent, features, bars((310, 330), (400, 430)))
    assert agent.encoded == [30, 30]
    cache.rows(agent, features, bars((305, 315)))  # 305..309 were evicted
    assert agent.encoded == [30, 30, 5]


def test_another_version_finds_an_empty_cache() -> None:
    cache, features, wanted = EmbeddingCache(1_000 * ROW_BYTES), small_market().features, bars((300, 320))
    old, new = CountingAgent(seed=34), CountingAgent(seed=35)  # both have version 7
    before = cache.rows(old, features, wanted)
    after = cache.rows(new, features, wanted)
    assert new.encoded == [20]
    np.testing.assert_allclose(after, by_windows(new, wanted), atol=1e-5)
    assert np.abs(after - before).max() > 0.1
    other = np.ascontiguousarray(features[::-1])
    other[np.isnan(other)] = 0.0
    np.testing.assert_allclose(
        cache.rows(new, other, wanted), new.embed_windows(windows(other, wanted)), atol=1e-5
    )


def test_a_long_run_is_encoded_in_several_passes() -> None:
    agent, cache, wanted = CountingAgent(), EmbeddingCache(0), bars((FIRST_BAR, 1_400))
    got = cache.rows(agent, small_market().features, wanted)
    assert agent.encoded == [SPAN_BARS, 1_400 - FIRST_BAR - SPAN_BARS]
    np.testing.assert_allclose(got, by_windows(agent, wanted), atol=1e-5)


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(SettingsError, match="-1 bytes"):
        EmbeddingCache(-1)
    with pytest.raises(DataError, match="not finite"):
        EmbeddingCache(0).rows(small_agent(), small_market().features, bars((100, 140)))
