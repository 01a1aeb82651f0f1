"""Simulated time: an accelerated clock that can be set."""

import time
from collections.abc import Callable

NANOSECONDS = 1_000_000_000


class SimulatedClock:
    """Runs `speed` times as fast as a monotonic clock."""

    def __init__(
        self, start_ns: int, speed: float, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Start at `start_ns`, nanoseconds since 1970 UTC."""
        self._monotonic = monotonic
        self.speed = speed
        self.set(start_ns)

    def set(self, time_ns: int) -> None:
        """Continue from this time, in nanoseconds since 1970 UTC."""
        self._set_ns, self._set_at = time_ns, self._monotonic()

    def now_ns(self) -> int:
        """Simulated time in nanoseconds."""
        return self._set_ns + int((self._monotonic() - self._set_at) * self.speed * NANOSECONDS)

    def seconds_until(self, time_ns: int) -> float:
        """Real seconds until simulated time reaches `time_ns`; 0 if it has passed."""
        return max(0.0, (time_ns - self.now_ns()) / NANOSECONDS / self.speed)
