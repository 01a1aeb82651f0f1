"""A cache of temporal embeddings, so that each bar is encoded once per version.

An embedding depends only on the weights and on the bars up to its bar. So lanes whose sessions overlap share
it, and so do the episodes that one version plays.
"""

from dataclasses import dataclass

import numpy as np

from shared.agent.agent import Agent
from shared.errors import SettingsError
from shared.numeric import Float32, Int32, Int64

#: Largest number of bars in one pass of the encoder; it bounds the memory for activations.
SPAN_BARS = 1_024


class EmbeddingCache:
    """A ring buffer of embeddings of one version, limited in bytes; the oldest are evicted first.

    A call with another agent or another array of features empties it. All memory is allocated at the first
    use, so that the process does not grow while the cache fills.
    """

    def __init__(self, max_bytes: int) -> None:
        """Create an empty cache.

        Args:
            max_bytes: largest total size of the embeddings; 0 disables the cache.
        Raises:
            SettingsError: `max_bytes` is negative.
        """
        if max_bytes < 0:
            raise SettingsError(f"the embedding cache has {max_bytes} bytes, expected 0 or more")
        self._max_bytes = max_bytes
        self._ring: _Ring | None = None

    def rows(self, agent: Agent, features: Float32, bars: Int64) -> Float32:
        """Embeddings of bars, `[U, E]`. Missing ones are encoded, one span per run of consecutive bars.

        Args:
            agent: the version that encodes.
            features: `[T, F]` features of the data set, which must not change.
            bars: `[U]` ascending, distinct bars; a full window must end at the first one.
        Raises:
            DataError: a feature is not finite, for example before the first valid bar.
        """
        ring = self._ring_for(agent, features)
        embeddings = np.empty((len(bars), agent.config.temporal_channels), np.float32)
        slots = ring.slot_of_bar[bars]
        cached = slots >= 0
        embeddings[cached] = ring.embeddings[slots[cached]]
        before = agent.config.window_bars - 1
        missing = np.flatnonzero(~cached)
        for run in np.split(missing, np.flatnonzero(np.diff(bars[missing]) > 1) + 1):
            for begin in range(0, len(run), SPAN_BARS):
                part = run[begin : begin + SPAN_BARS]
                first, last = bars[part[0]], bars[part[-1]]
                embeddings[part] = agent.embed_span(features[first - before : last + 1])
        ring.insert(bars[missing], embeddings[missing])
        return embeddings

    def _ring_for(self, agent: Agent, features: Float32) -> "_Ring":
        ring = self._ring
        if ring is None or ring.features is not features or not ring.fits(agent):
            ring = _Ring.blank(agent, features, self._max_bytes)
        elif ring.agent is not agent:
            ring = ring.emptied_for(agent)
        self._ring = ring
        return ring


@dataclass
class _Ring:
    """A ring buffer of embeddings with an index from bars to slots."""

    agent: Agent
    features: Float32  # [T, F]
    slot_of_bar: Int32  # [T], -1 if not cached
    bar_of_slot: Int64  # [S], -1 if empty
    embeddings: Float32  # [S, E]
    next_slot: int = 0

    @classmethod
    def blank(cls, agent: Agent, features: Float32, max_bytes: int) -> "_Ring":
        channels = agent.config.temporal_channels
        num_slots = min(max_bytes // (4 * channels), len(features))
        return cls(
            agent,
            features,
            np.full(len(features), -1, np.int32),
            np.full(num_slots, -1, np.int64),
            np.full((num_slots, channels), np.nan, np.float32),  # unlike np.empty, this allocates the pages
        )

    def fits(self, agent: Agent) -> bool:
        return bool(self.embeddings.shape[1] == agent.config.temporal_channels)

    def emptied_for(self, agent: Agent) -> "_Ring":
        """Reuse the memory for another version."""
        self.slot_of_bar.fill(-1)
        self.bar_of_slot.fill(-1)
        return _Ring(agent, self.features, self.slot_of_bar, self.bar_of_slot, self.embeddings)

    def insert(self, bars: Int64, embeddings: Float32) -> None:
        """Insert embeddings of bars that are not cached, replacing the oldest."""
        num_slots = len(self.bar_of_slot)
        if num_slots == 0:
            return
        bars, embeddings = bars[-num_slots:], embeddings[-num_slots:]
        slots = (self.next_slot + np.arange(len(bars))) % num_slots
        replaced = self.bar_of_slot[slots]
        self.slot_of_bar[replaced[replaced >= 0]] = -1
        self.slot_of_bar[bars] = slots
        self.bar_of_slot[slots] = bars
        self.embeddings[slots] = embeddings
        self.next_slot = (self.next_slot + len(bars)) % num_slots
