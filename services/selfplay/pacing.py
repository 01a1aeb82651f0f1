"""Backpressure: a worker pauses while the trainer lags behind.

The trainer's ratio of samples per insert limits how fast it ingests, so a worker only needs to know the
length of the stream. It reads the length with every pipeline that it sends. Above the high-water mark each
worker therefore adds at most one more pipeline: the stream holds at most `high_water` trajectories plus one
pipeline per worker (`shared.adapters.streams.bus.ENTRIES_PER_APPEND`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Backlog:
    """Hysteresis: waiting begins above the high-water mark and ends below half of it."""

    high_water: int
    waiting: bool = False

    def seen(self, length: int) -> "Backlog":
        """The state after the stream was seen to hold `length` trajectories."""
        waiting = length > self.high_water if not self.waiting else 2 * length >= self.high_water
        return Backlog(self.high_water, waiting)
