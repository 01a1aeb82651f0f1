"""When conditions begin and end, also while Redis is unavailable."""

from services.api.config import AlertConfig
from services.api.standing import ConditionHistory
from services.api.views import ActiveAlert
from shared.messages.conditions import Condition

REDIS = ActiveAlert(name="redis_unavailable", source="redis", detail="x")
MISSING = ActiveAlert(name="service_missing", source="trainer", detail="gone")
HOLDING = ActiveAlert(name="hold_only", source="trainer", detail="1.9 %")
DEAD = ActiveAlert(name="dead_letters", source="streams", detail="2")
CONFIG = AlertConfig(missing_seconds=30, training_seconds=300, end_seconds=60)


def updated(history: ConditionHistory, now_s: float, *alerts: ActiveAlert) -> list[tuple[str, str]]:
    raised = history.update(alerts, now_s, redis_answers=REDIS not in alerts)
    return [(alert.name, alert.phase) for alert in raised]


def shown(history: ConditionHistory) -> list[str]:
    return [alert.name for alert in history.active()]


def test_each_kind_of_condition_has_its_own_delay() -> None:
    history = ConditionHistory(CONFIG)
    alerts = (DEAD, MISSING, HOLDING)
    assert updated(history, 0, *alerts) == [("dead_letters", "began")]
    assert updated(history, 29, *alerts) == []
    assert updated(history, 30, *alerts) == [("service_missing", "began")]
    assert shown(history) == ["dead_letters", "service_missing"]
    assert updated(history, 300, *alerts) == [("hold_only", "began")]
    assert updated(history, 310) == []
    assert shown(history) == []
    assert updated(history, 360) == [("dead_letters", "ended"), ("service_missing", "ended")]
    assert updated(history, 600) == [("hold_only", "ended")]


def test_conditions_that_the_trader_announces_are_shown_but_not_announced() -> None:
    history = ConditionHistory(CONFIG)
    unavailable = ActiveAlert(name="broker_unavailable", source="trader", detail="x")
    for second in (0, 30, 60):
        assert updated(history, second, unavailable) == []
    assert shown(history) == ["broker_unavailable"]
    assert updated(history, 200) == []


def test_a_metric_that_fluctuates_around_its_threshold_raises_one_alert() -> None:
    history = ConditionHistory(CONFIG)
    raised = [
        phase
        for second in range(0, 3600, 5)
        for phase in updated(history, second, *([HOLDING] if second < 900 or second % 240 < 60 else []))
    ]
    assert raised == [("hold_only", "began")]


def test_other_conditions_neither_begin_nor_end_while_redis_is_unavailable() -> None:
    history = ConditionHistory(CONFIG)
    assert updated(history, 0, DEAD, MISSING) == [("dead_letters", "began")]
    assert updated(history, 5, REDIS, DEAD, HOLDING) == [("redis_unavailable", "began")]
    assert shown(history) == ["redis_unavailable"]
    assert updated(history, 1_000, REDIS) == []
    # All heartbeats expired meanwhile, so the services get time to return.
    assert updated(history, 1_005, DEAD, MISSING) == []
    assert updated(history, 1_034, DEAD, MISSING) == []
    assert updated(history, 1_035, DEAD, MISSING) == [("service_missing", "began")]
    assert updated(history, 1_065, DEAD, MISSING) == [("redis_unavailable", "ended")]


def test_low_disk_space_is_announced_while_redis_is_unavailable() -> None:
    history = ConditionHistory(CONFIG)
    low = ActiveAlert(name="disk_low", source="disk", detail="9 MB")
    assert updated(history, 0, REDIS, low) == [("redis_unavailable", "began"), ("disk_low", "began")]
    assert updated(history, 100, REDIS) == [("disk_low", "ended")]


def test_a_condition_of_an_earlier_gateway_ends_after_the_same_delay() -> None:
    history = ConditionHistory(CONFIG)
    history.resume(
        {Condition("redis", "redis_unavailable"): "x", Condition("streams", "dead_letters"): "2"}, 9_000
    )
    assert updated(history, 9_000) == []
    assert updated(history, 9_059) == []
    assert sorted(updated(history, 9_060)) == [("dead_letters", "ended"), ("redis_unavailable", "ended")]


def test_only_the_end_of_a_condition_of_an_earlier_gateway_is_announced() -> None:
    history = ConditionHistory(CONFIG)
    history.resume({Condition("streams", "dead_letters"): "2", Condition("trainer", "hold_only"): "x"}, 0.0)
    assert updated(history, 0, DEAD) == []
    assert shown(history) == ["dead_letters"]
    assert updated(history, 100, DEAD) == []
    assert updated(history, 300, DEAD) == [("hold_only", "ended")]
