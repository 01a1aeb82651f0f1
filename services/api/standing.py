"""Decides when conditions begin and end, and which of them the gateway announces."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from services.api.config import AlertConfig
from services.api.views import ActiveAlert
from shared.messages.conditions import Condition, ConditionTracker
from shared.messages.schemas import AlertRaised

#: Conditions that the gateway can detect without Redis.
_WITHOUT_REDIS = ("redis_unavailable", "disk_low")

#: Conditions on training metrics, which fluctuate, above all in the first minutes of a run.
_TRAINING = ("training_diverging", "policy_collapsed", "hold_only")

#: Conditions that a restart or a reconnect causes for a few seconds.
_PASSING = (
    "service_missing",
    "service_degraded",
    "broker_unavailable",
    "trader_standby",
    "trader_halted",
    "guard_tripped",
)

#: Conditions that the trader announces itself, one alert per guard. The gateway only shows them.
_ANNOUNCED_BY_TRADER = ("guard_tripped", "broker_unavailable", "trader_standby")


class ConditionHistory:
    """Passes the conditions of each check to trackers, one per kind of condition with its own delays.

    While Redis is unavailable, only this fact and the free disk space are known. The other conditions
    neither begin nor end then, and that time does not count towards their delays.
    """

    def __init__(self, config: AlertConfig) -> None:
        end = config.end_seconds
        self._without_redis = ConditionTracker(end_seconds=end)
        self._at_once = ConditionTracker(end_seconds=end)
        self._passing = ConditionTracker(begin_seconds=config.missing_seconds, end_seconds=end)
        self._training = ConditionTracker(
            begin_seconds=config.training_seconds, end_seconds=config.training_seconds
        )
        self._since: dict[Condition, datetime] = {}
        self._active: dict[Condition, ActiveAlert] = {}
        self._known_s = 0.0  # total time during which Redis answered
        self._last_s: float | None = None  # time of the last check; None if Redis did not answer

    def resume(self, begun: Mapping[Condition, str], now_s: float) -> None:
        """Continue with the conditions that an earlier gateway announced; `now_s` is monotonic."""
        for condition, detail in begun.items():
            tracker = self._tracker(condition.name)
            tracker.resume(condition, detail, self._clock(tracker, now_s))

    def update(
        self, alerts: Sequence[ActiveAlert], now_s: float, *, redis_answers: bool
    ) -> list[AlertRaised]:
        """Add the conditions of one check, and return those that begin or end with it.

        Args:
            alerts: conditions that hold now.
            now_s: monotonic time.
            redis_answers: whether all conditions are known, not only those that need no Redis.
        """
        if redis_answers:
            self._known_s += now_s - self._last_s if self._last_s is not None else 0.0
        self._last_s = now_s if redis_answers else None
        known = [alert for alert in alerts if redis_answers or alert.name in _WITHOUT_REDIS]
        self._active = {Condition(alert.source, alert.name): alert for alert in known}
        raised = []
        for tracker in self._trackers:
            if tracker is not self._without_redis and not redis_answers:
                continue
            held = {c: alert.detail for c, alert in self._active.items() if self._tracker(c.name) is tracker}
            raised += tracker.update(held, self._clock(tracker, now_s))
        for alert in raised:
            self._record(alert)
        return [alert for alert in raised if alert.name not in _ANNOUNCED_BY_TRADER]

    def active(self) -> list[ActiveAlert]:
        """Conditions that have begun and still hold, in the order of the last check."""
        begun = {condition for tracker in self._trackers for condition in tracker.begun()}
        return [
            alert.model_copy(update={"since": self._since.get(condition)})
            for condition, alert in self._active.items()
            if condition in begun
        ]

    @property
    def _trackers(self) -> tuple[ConditionTracker, ...]:
        return (self._without_redis, self._at_once, self._passing, self._training)

    def _tracker(self, name: str) -> ConditionTracker:
        if name in _WITHOUT_REDIS:
            return self._without_redis
        if name in _TRAINING:
            return self._training
        return self._passing if name in _PASSING else self._at_once

    def _clock(self, tracker: ConditionTracker, now_s: float) -> float:
        """The time of a tracker; for conditions that need Redis it stops while Redis is unavailable."""
        return now_s if tracker is self._without_redis else self._known_s

    def _record(self, alert: AlertRaised) -> None:
        condition = Condition(alert.source, alert.name)
        if alert.phase == "began":
            self._since[condition] = alert.created_at
        else:
            self._since.pop(condition, None)
