"""Temporal embeddings of bars, each worked out once a version.

A bar's embedding depends on the weights and on the bars up to it, never on who asks. So lanes whose
sessions overlap share it, and so do episodes as long as one version plays.
"""

from dataclasses import dataclass

import numpy as np

from shared.agent.agent import Agent
from shared.errors import SettingsError
from shared.numeric import Float32, Int32, Int64

#: Bars in one pass of the encoder, at most: what it holds between its layers stays small.
SPAN_BARS = 1_024


class EmbeddingCache:
    """Embeddings of one version's bars, at most so many bytes of them; the oldest make room.

    Another agent, or another array of features, finds it empty. All of its memory is taken at its
    first use, so that a process does not grow while it fills.
    """

    def __init__(self, max_bytes: int) -> None:
        """Empty.

        Args:
            max_bytes: of embeddings; 0 keeps none.
        Raises:
            SettingsError: `max_bytes` is negative.
        """
        if max_bytes < 0:
            raise SettingsError(f"an embedding cache of {max_bytes} bytes: expected 0 or more")
        self._max_bytes = max_bytes
        self._kept: _Kept | None = None

    def rows(self, agent: Agent, features: Float32, bars: Int64) -> Float32:
        """Embeddings of some bars, `[U, E]`; what is not known yet is encoded, run by run.

        Args:
            agent: the version that encodes.
            features: `[T, F]` of the whole data set, which never change.
            bars: `[U]` ascending, each once, with a window before the first.
        Raises:
            DataError: a feature is not finite, as before the first valid bar.
        """
        kept = self._kept_for(agent, features)
        embeddings = np.empty((len(bars), agent.config.temporal_channels), np.float32)
        slots = kept.slot_of_bar[bars]
        known = slots >= 0
        embeddings[known] = kept.embeddings[slots[known]]
        before = agent.config.window_bars - 1
        missing = np.flatnonzero(~known)
        for run in np.split(missing, np.flatnonzero(np.diff(bars[missing]) > 1) + 1):
            for begin in range(0, len(run), SPAN_BARS):
                part = run[begin : begin + SPAN_BARS]
                first, last = bars[part[0]], bars[part[-1]]
                embeddings[part] = agent.embed_span(features[first - before : last + 1])
        kept.remember(bars[missing], embeddings[missing])
        return embeddings

    def _kept_for(self, agent: Agent, features: Float32) -> "_Kept":
        kept = self._kept
        if kept is None or kept.features is not features or not kept.fits(agent):
            kept = _Kept.blank(agent, features, self._max_bytes)
        elif kept.agent is not agent:
            kept = kept.emptied_for(agent)
        self._kept = kept
        return kept


@dataclass
class _Kept:
    """A ring of embeddings, and where in it a bar's lies."""

    agent: Agent
    features: Float32  # [T, F]
    slot_of_bar: Int32  # [T], -1 where not kept
    bar_of_slot: Int64  # [S], -1 where empty
    embeddings: Float32  # [S, E]
    next_slot: int = 0

    @classmethod
    def blank(cls, agent: Agent, features: Float32, max_bytes: int) -> "_Kept":
        channels = agent.config.temporal_channels
        num_slots = min(max_bytes // (4 * channels), len(features))
        return cls(
            agent,
            features,
            np.full(len(features), -1, np.int32),
            np.full(num_slots, -1, np.int64),
            np.full((num_slots, channels), np.nan, np.float32),  # written, and so resident, from now on
        )

    def fits(self, agent: Agent) -> bool:
        return bool(self.embeddings.shape[1] == agent.config.temporal_channels)

    def emptied_for(self, agent: Agent) -> "_Kept":
        """The same memory for another version."""
        self.slot_of_bar.fill(-1)
        self.bar_of_slot.fill(-1)
        return _Kept(agent, self.features, self.slot_of_bar, self.bar_of_slot, self.embeddings)

    def remember(self, bars: Int64, embeddings: Float32) -> None:
        """Keep embeddings of bars that are not kept yet, in the place of the oldest."""
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
