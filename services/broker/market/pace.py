"""Measures the speed of a replay and detects that it is slower than configured."""

from collections import deque

from shared.market.bar import BAR_SECONDS

#: Number of latest bars over which the speed is measured.
_BARS = 60

#: The replay is too slow when it is this many times slower than configured.
_TOLERANCE = 1.2


class Pace:
    """Speed of the replay, calculated from its waits for the client at the latest bars."""

    def __init__(self, speed: float) -> None:
        """`speed` is the configured speed, in market seconds per second."""
        self._configured = speed
        self._waits: deque[float] = deque(maxlen=_BARS)  # seconds
        self._reported = False

    def add_wait(self, seconds: float) -> None:
        """Add the time that the replay waited at one bar; 0 if it did not."""
        self._waits.append(seconds)

    @property
    def speed(self) -> float:
        """Market seconds per second over the latest bars."""
        mean = sum(self._waits) / len(self._waits) if self._waits else 0.0
        return BAR_SECONDS / (BAR_SECONDS / self._configured + mean)

    def became_too_slow(self) -> bool:
        """Return True once: at the first call that finds the replay clearly slower than configured."""
        if self._reported or len(self._waits) < _BARS or self.speed * _TOLERANCE > self._configured:
            return False
        self._reported = True
        return True
