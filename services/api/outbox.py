"""Alerts on their way to the webhook: bounded, the urgent ones first, repeats put together."""

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass
from uuid import UUID

from shared.messages.conditions import Condition
from shared.messages.schemas import AlertRaised

#: Alerts that wait, of each urgency; beyond it the oldest is given up.
MOST_WAITING = 200

#: Alerts whose ids are remembered, so that one that comes by two ways is posted once.
_MOST_KNOWN = 2_000

#: Sources whose alerts go before those of the others: money is at risk, or nothing else can be seen.
_URGENT_SOURCES = ("trader", "broker", "redis")


@dataclass
class _Repeats:
    """Events of one kind since one of them was last let through."""

    admitted_s: float
    withheld: AlertRaised | None = None  # the newest, with the number of all


class Outbox:
    """Takes alerts in and hands them out one by one.

    An event is let through unless one of its kind was within `repeat_seconds`; those withheld become one
    alert when that time is over. Beginnings and ends of conditions are never withheld. Alerts of one
    condition keep their order, so that the last one posted tells whether it holds.
    """

    def __init__(self, repeat_seconds: float) -> None:
        self._repeat_seconds = repeat_seconds
        self._urgent: deque[AlertRaised] = deque()
        self._others: deque[AlertRaised] = deque()
        self._known: OrderedDict[UUID, None] = OrderedDict()
        self._repeats: dict[Condition, _Repeats] = {}
        self.arrived = asyncio.Event()  # set when an alert was added
        self.given_up = 0  # alerts that found no room

    def put(self, alert: AlertRaised, now_s: float) -> None:
        """Take an alert in; one that was taken in before is left out."""
        if alert.alert_id in self._known:
            return
        self._known[alert.alert_id] = None
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        if alert.phase != "event" or not self._withhold(alert, now_s):
            self._add(alert)

    def put_back(self, alert: AlertRaised) -> None:
        """Take back an alert that was not delivered; it is the next of its urgency."""
        self._queue(alert).appendleft(alert)

    def take(self, now_s: float) -> AlertRaised | None:
        """The next alert to post, or None."""
        self._release(now_s)
        for queue in (self._urgent, self._others):
            if queue:
                return queue.popleft()
        return None

    def seconds_to_release(self, now_s: float) -> float | None:
        """Time until withheld events are let through; None while there are none."""
        waits = [
            repeats.admitted_s + self._repeat_seconds - now_s
            for repeats in self._repeats.values()
            if repeats.withheld
        ]
        return max(0.0, min(waits)) if waits else None

    def _withhold(self, alert: AlertRaised, now_s: float) -> bool:
        kind = Condition(alert.source, alert.name)
        repeats = self._repeats.get(kind)
        if repeats is None or (
            repeats.withheld is None and now_s - repeats.admitted_s >= self._repeat_seconds
        ):
            self._repeats[kind] = _Repeats(now_s)
            return False
        before = repeats.withheld.occurrences if repeats.withheld else 0
        repeats.withheld = alert.model_copy(update={"occurrences": before + alert.occurrences})
        return True

    def _release(self, now_s: float) -> None:
        for kind, repeats in list(self._repeats.items()):
            if now_s - repeats.admitted_s < self._repeat_seconds:
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
        if len(queue) > MOST_WAITING:
            queue.popleft()
            self.given_up += 1

    def _queue(self, alert: AlertRaised) -> deque[AlertRaised]:
        return self._urgent if alert.source in _URGENT_SOURCES else self._others
