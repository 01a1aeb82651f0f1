"""When to wait: the trainer lags behind.

The trainer takes in no more than its samples-per-insert account allows, so the length of the stream
is all that a worker needs to look at. It looks with every pipeline that it sends, so once the stream is
over the mark each worker adds one more at most: the stream holds no more than `high_water` and, for every
worker, a pipeline (`shared.adapters.streams.bus.PIPELINE`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Backlog:
    """Whether to send and play on, with hysteresis: from the high-water mark until below half of it, wait."""

    high_water: int
    waiting: bool = False

    def seen(self, length: int) -> "Backlog":
        """After a look at how many trajectories wait in the stream."""
        waiting = length > self.high_water if not self.waiting else 2 * length >= self.high_water
        return Backlog(self.high_water, waiting)
