"""Counts and limits wrong API keys per client address: guessing is logged but cannot flood the log."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable

#: Wrong keys per client address and window; further ones are answered with 429.
MAX_WRONG_KEYS = 20
WINDOW_SECONDS = 60.0

#: Maximum number of remembered client addresses; the least recently active one is forgotten first.
_MAX_PEERS = 1_000


class WrongKeys:
    """Times of recent wrong keys, by client address."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Start without wrong keys; `monotonic` returns seconds."""
        self._monotonic = monotonic
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def note(self, peer: str) -> float:
        """Count one wrong key.

        Returns:
            Seconds that the client must wait because it sent too many; otherwise 0. A key that is refused
            for this reason does not prolong the wait.
        """
        now = self._monotonic()
        times = self._times.setdefault(peer, deque())
        self._times.move_to_end(peer)
        if len(self._times) > _MAX_PEERS:
            self._times.popitem(last=False)
        while times and now - times[0] >= WINDOW_SECONDS:
            times.popleft()
        if len(times) >= MAX_WRONG_KEYS:
            return times[0] + WINDOW_SECONDS - now
        times.append(now)
        return 0.0
