"""Which services were seen when, and how often they began again: pure, from one look to the next."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from shared.messages.schemas import Heartbeat
from shared.messages.streams import HEARTBEAT_TTL_SECONDS

#: A withdrawn heartbeat disappears within a few seconds of the last one; one that expires does so later.
_RAN_OUT = timedelta(seconds=HEARTBEAT_TTL_SECONDS - 5)

_LINGER = timedelta(seconds=HEARTBEAT_TTL_SECONDS + 5)

#: Process starts that are remembered, so that a process whose heartbeat returns does not count as a new one.
_MOST_STARTS = 256

#: A process: its instance and when it started.
_Process = tuple[str, datetime]


@dataclass
class Attendance:
    """What the looks so far know of one service."""

    seen_at: datetime | None = None  # newest look at which it was there
    absent_since: datetime | None = None  # first of the looks at which it was not there, up to the last one
    ran_out: bool = False  # its last heartbeat expired: it was killed or hangs; else it was withdrawn
    last: Heartbeat | None = None  # newest heartbeat of the instance that was seen last
    starts: deque[datetime] = field(default_factory=deque)
    ends: deque[datetime] = field(default_factory=deque)
    heard: dict[_Process, datetime] = field(default_factory=dict)  # when each process's newest beat was new
    beats: dict[_Process, Heartbeat] = field(default_factory=dict)  # of the processes at the last look
    known: dict[_Process, None] = field(default_factory=dict)  # every process seen, oldest first

    @property
    def restarts(self) -> int:
        """Processes that ended and were replaced within the window, not replicas added or removed."""
        replaced, ends = 0, list(self.ends)
        for start in self.starts:
            # Under another name the old heartbeat outlives its process, and perhaps the start of the next.
            if replaced < len(ends) and start >= ends[replaced] - _LINGER:
                replaced += 1
        return replaced


class Roster:
    """Attendance of each service.

    Args:
        window: how long a restart counts.
    """

    def __init__(self, window: timedelta) -> None:
        self._window = window
        self._services: dict[str, Attendance] = {}
        self._first = True

    def of(self, service: str) -> Attendance:
        """What is known of a service; empty where it was never seen or missed."""
        return self._services.get(service, Attendance())

    def look(self, expected: Sequence[str], heartbeats: Sequence[Heartbeat], now: datetime) -> None:
        """Take one look; not to be called while the heartbeats cannot be read."""
        for name in dict.fromkeys([*expected, *self._services, *(beat.service for beat in heartbeats)]):
            attendance = self._services.setdefault(name, Attendance())
            beats = {(b.instance, b.started_at): b for b in heartbeats if b.service == name}
            self._compare(attendance, beats, now)
        self._services = {
            name: attendance
            for name, attendance in self._services.items()
            if attendance.beats or name in expected
        }
        self._first = False

    def _compare(self, seen: Attendance, beats: dict[_Process, Heartbeat], now: datetime) -> None:
        for process, beat in beats.items():
            before = seen.beats.get(process)
            if before is None or before.created_at != beat.created_at:
                seen.heard[process] = now
            if before is None and process not in seen.known and not self._first:
                seen.starts.append(now)
            seen.known[process] = None
        gone = [process for process in seen.beats if process not in beats]
        seen.ends.extend(now for _ in gone)
        if beats:
            seen.seen_at, seen.absent_since = now, None
            seen.last = max(beats.values(), key=lambda beat: ("side" in beat.detail, beat.created_at))
        elif seen.absent_since is None:
            seen.absent_since = now
            seen.ran_out = any(now - seen.heard[process] >= _RAN_OUT for process in gone)
        seen.heard = {process: seen.heard[process] for process in beats}
        seen.beats = beats
        self._forget(seen, now)

    def _forget(self, seen: Attendance, now: datetime) -> None:
        for times in (seen.starts, seen.ends):
            while times and (now - times[0] > self._window or len(times) > _MOST_STARTS):
                times.popleft()
        while len(seen.known) > _MOST_STARTS:
            del seen.known[next(iter(seen.known))]
