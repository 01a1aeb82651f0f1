"""Records when each service was present and how often it restarted, from its heartbeats."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from shared.messages.schemas import Heartbeat
from shared.messages.streams import HEARTBEAT_TTL_SECONDS

#: An expired heartbeat disappears at least this long after it was sent; a withdrawn one disappears sooner.
_EXPIRED_AFTER = timedelta(seconds=HEARTBEAT_TTL_SECONDS - 5)

#: Longest time that a heartbeat can outlive its process.
_LINGER = timedelta(seconds=HEARTBEAT_TTL_SECONDS + 5)

#: Maximum number of remembered processes. If the heartbeat of one returns, it does not count as a start.
_MAX_STARTS = 256

#: A process is identified by its instance name and its start time.
_Process = tuple[str, datetime]


@dataclass
class Attendance:
    """The presence of one service so far."""

    seen_at: datetime | None = None  # last check that found the service
    absent_since: datetime | None = None  # first check that did not find it
    ran_out: bool = False  # its last heartbeat expired: it was killed or hangs; otherwise it was withdrawn
    last: Heartbeat | None = None  # newest heartbeat, preferably one that reports a position
    starts: deque[datetime] = field(default_factory=deque)
    ends: deque[datetime] = field(default_factory=deque)
    heard: dict[_Process, datetime] = field(default_factory=dict)  # time of the last new heartbeat
    beats: dict[_Process, Heartbeat] = field(default_factory=dict)  # at the last check
    known: dict[_Process, None] = field(default_factory=dict)  # every process seen, oldest first

    @property
    def restarts(self) -> int:
        """Processes that were replaced within the window; added or removed replicas do not count."""
        replaced, ends = 0, list(self.ends)
        for start in self.starts:
            # If the instance name changes, the old heartbeat may outlive even the start of the next process.
            if replaced < len(ends) and start >= ends[replaced] - _LINGER:
                replaced += 1
        return replaced


class Roster:
    """The attendance of every service.

    Args:
        window: time during which a restart counts.
    """

    def __init__(self, window: timedelta) -> None:
        self._window = window
        self._services: dict[str, Attendance] = {}
        self._first = True

    def of(self, service: str) -> Attendance:
        """The attendance of a service; empty if it was never present and never expected."""
        return self._services.get(service, Attendance())

    def update(self, expected: Sequence[str], heartbeats: Sequence[Heartbeat], now: datetime) -> None:
        """Update all services from the present heartbeats. Skip this call while Redis cannot be read."""
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
            seen.ran_out = any(now - seen.heard[process] >= _EXPIRED_AFTER for process in gone)
        seen.heard = {process: seen.heard[process] for process in beats}
        seen.beats = beats
        self._forget(seen, now)

    def _forget(self, seen: Attendance, now: datetime) -> None:
        for times in (seen.starts, seen.ends):
            while times and (now - times[0] > self._window or len(times) > _MAX_STARTS):
                times.popleft()
        while len(seen.known) > _MAX_STARTS:
            del seen.known[next(iter(seen.known))]
