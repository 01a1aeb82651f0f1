"""Alerts that wait for the webhook: bounded, urgent ones first, repeated ones combined."""

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass
from uuid import UUID

from shared.messages.conditions import Condition
from shared.messages.schemas import AlertRaised

#: Maximum number of waiting alerts per urgency; the oldest one is dropped to make room.
MAX_WAITING = 200

#: Maximum number of remembered alert ids. They keep an alert from being posted twice.
_MAX_KNOWN = 2_000

#: Sources whose alerts are posted first: money is at risk, or the system cannot be observed.
_URGENT_SOURCES = ("trader", "broker", "redis")


@dataclass
class _Repeats:
    """Events of one kind since the last one that was queued."""

    queued_at_s: float
    withheld: AlertRaised | None = None  # the newest event; its `occurrences` counts all of them


class Outbox:
    """A queue of alerts.

    An event is withheld if one of its kind was queued within the last `repeat_seconds`. When that time is
    over, the withheld events are queued as one alert. The beginning and the end of a condition are never
    withheld. Alerts of one condition keep their order, so the last one posted shows whether it still holds.
    """

    def __init__(self, repeat_seconds: float) -> None:
        self._repeat_seconds = repeat_seconds
        self._urgent: deque[AlertRaised] = deque()
        self._others: deque[AlertRaised] = deque()
        self._known: OrderedDict[UUID, None] = OrderedDict()
        self._repeats: dict[Condition, _Repeats] = {}
        self.arrived = asyncio.Event()  # set when an alert was added
        self.num_dropped = 0  # alerts dropped since the last report

    def put(self, alert: AlertRaised, now_s: float) -> None:
        """Add an alert; one that was added before is ignored."""
        if alert.alert_id in self._known:
            return
        self._known[alert.alert_id] = None
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        if alert.phase != "event" or not self._withhold(alert, now_s):
            self._add(alert)

    def put_back(self, alert: AlertRaised) -> None:
        """Return an alert that was not delivered; it becomes the next one of its urgency."""
        self._queue(alert).appendleft(alert)

    def take(self, now_s: float) -> AlertRaised | None:
        """Remove and return the next alert to post; None if there is none."""
        self._release(now_s)
        for queue in (self._urgent, self._others):
            if queue:
                return queue.popleft()
        return None

    def seconds_to_release(self, now_s: float) -> float | None:
        """Time until withheld events are queued; None if there are none."""
        waits = [
            repeats.queued_at_s + self._repeat_seconds - now_s
            for repeats in self._repeats.values()
            if repeats.withheld
        ]
        return max(0.0, min(waits)) if waits else None

    def _withhold(self, alert: AlertRaised, now_s: float) -> bool:
        kind = Condition(alert.source, alert.name)
        repeats = self._repeats.get(kind)
        if repeats is None or (
            repeats.withheld is None and now_s - repeats.queued_at_s >= self._repeat_seconds
        ):
            self._repeats[kind] = _Repeats(now_s)
            return False
        before = repeats.withheld.occurrences if repeats.withheld else 0
        repeats.withheld = alert.model_copy(update={"occurrences": before + alert.occurrences})
        return True

    def _release(self, now_s: float) -> None:
        for kind, repeats in list(self._repeats.items()):
            if now_s - repeats.queued_at_s < self._repeat_seconds:
                continue
            if repeats.withheld is None:
                del self._repeats[kind]
            else:
                self._add(repeats.withheld)
                self._repeats[kind] = _Repeats(now_s)

    def _add(self, alert: AlertRaised) -> None:
        queue = self._queue(alert)
        queue.append(alert)
        self.arrived.set()
        if len(queue) > MAX_WAITING:
            queue.popleft()
            self.num_dropped += 1

    def _queue(self, alert: AlertRaised) -> deque[AlertRaised]:
        return self._urgent if alert.source in _URGENT_SOURCES else self._others
