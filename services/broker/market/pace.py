"""How fast a replay really runs, and when to say that it is slower than asked."""

from collections import deque

from shared.market.bar import BAR_SECONDS

#: Bars over which the speed is measured.
_BARS = 60

#: A replay this many times slower than asked is told of.
_TOLERANCE = 1.2


class Pace:
    """Mean time, over the latest bars, that the replay waited for its client beyond each bar's due time."""

    def __init__(self, speed: float) -> None:
        """No bar has passed; `speed` is the one asked for, in market seconds per second."""
        self._asked = speed
        self._waits: deque[float] = deque(maxlen=_BARS)
        self._told = False

    def waited(self, seconds: float) -> None:
        """Note how long one bar waited, 0 included."""
        self._waits.append(seconds)

    @property
    def speed(self) -> float:
        """Market seconds per second over the latest bars."""
        mean = sum(self._waits) / len(self._waits) if self._waits else 0.0
        return BAR_SECONDS / (BAR_SECONDS / self._asked + mean)

    def is_news(self) -> bool:
        """True once: the first time that the replay is clearly slower than asked."""
        if self._told or len(self._waits) < _BARS or self.speed * _TOLERANCE > self._asked:
            return False
        self._told = True
        return True
