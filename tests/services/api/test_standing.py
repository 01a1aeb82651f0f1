"""When a condition that holds has begun, and what is known while Redis is away."""

from services.api.config import AlertConfig
from services.api.standing import Standing
from services.api.views import ActiveAlert
from shared.messages.conditions import Condition

AWAY = ActiveAlert(name="redis_away", source="redis", detail="x")
MISSING = ActiveAlert(name="service_missing", source="trainer", detail="gone")
HOLDING = ActiveAlert(name="hold_only", source="trainer", detail="1.9 %")
DEAD = ActiveAlert(name="dead_letters", source="streams", detail="2")
CONFIG = AlertConfig(missing_seconds=30, training_seconds=300, end_seconds=60)


def look(standing: Standing, now_s: float, *held: ActiveAlert) -> list[tuple[str, str]]:
    raised = standing.look(held, now_s, redis_answers=AWAY not in held)
    return [(alert.name, alert.phase) for alert in raised]


def shown(standing: Standing) -> list[str]:
    return [alert.name for alert in standing.active()]


def test_each_kind_of_condition_has_its_own_hold_off() -> None:
    standing = Standing(CONFIG)
    held = (DEAD, MISSING, HOLDING)
    assert look(standing, 0, *held) == [("dead_letters", "began")]
    assert look(standing, 29, *held) == []
    assert look(standing, 30, *held) == [("service_missing", "began")]
    assert shown(standing) == ["dead_letters", "service_missing"]
    assert look(standing, 300, *held) == [("hold_only", "began")]
    assert look(standing, 310) == []
    assert shown(standing) == []
    assert look(standing, 360) == [("dead_letters", "ended"), ("service_missing", "ended")]
    assert look(standing, 600) == [("hold_only", "ended")]


def test_what_the_trader_announces_itself_is_shown_and_not_announced_again() -> None:
    standing = Standing(CONFIG)
    away = ActiveAlert(name="broker_away", source="trader", detail="x")
    for second in (0, 30, 60):
        assert look(standing, second, away) == []
    assert shown(standing) == ["broker_away"]
    assert look(standing, 200) == []


def test_figures_that_swing_around_their_limit_are_one_alert() -> None:
    standing = Standing(CONFIG)
    raised = [
        phase
        for second in range(0, 3600, 5)
        for phase in look(standing, second, *([HOLDING] if second < 900 or second % 240 < 60 else []))
    ]
    assert raised == [("hold_only", "began")]


def test_while_redis_is_away_nothing_else_begins_or_ends() -> None:
    standing = Standing(CONFIG)
    assert look(standing, 0, DEAD, MISSING) == [("dead_letters", "began")]
    assert look(standing, 5, AWAY, DEAD, HOLDING) == [("redis_away", "began")]
    assert shown(standing) == ["redis_away"]
    assert look(standing, 1_000, AWAY) == []
    # Every heartbeat ran out meanwhile: the services have their time to come back.
    assert look(standing, 1_005, DEAD, MISSING) == []
    assert look(standing, 1_034, DEAD, MISSING) == []
    assert look(standing, 1_035, DEAD, MISSING) == [("service_missing", "began")]
    assert look(standing, 1_065, DEAD, MISSING) == [("redis_away", "ended")]


def test_a_disk_that_fills_up_while_redis_is_away_is_announced() -> None:
    standing = Standing(CONFIG)
    low = ActiveAlert(name="disk_low", source="disk", detail="9 MB")
    assert look(standing, 0, AWAY, low) == [("redis_away", "began"), ("disk_low", "began")]
    assert look(standing, 100, AWAY) == [("disk_low", "ended")]


def test_what_an_earlier_gateway_announced_has_the_same_time_to_come_back() -> None:
    standing = Standing(CONFIG)
    standing.resume({Condition("redis", "redis_away"): "x", Condition("streams", "dead_letters"): "2"}, 9_000)
    assert look(standing, 9_000) == []
    assert look(standing, 9_059) == []
    assert sorted(look(standing, 9_060)) == [("dead_letters", "ended"), ("redis_away", "ended")]


def test_what_an_earlier_gateway_announced_is_not_announced_again_but_its_end_is() -> None:
    standing = Standing(CONFIG)
    standing.resume({Condition("streams", "dead_letters"): "2", Condition("trainer", "hold_only"): "x"}, 0.0)
    assert look(standing, 0, DEAD) == []
    assert shown(standing) == ["dead_letters"]
    assert look(standing, 100, DEAD) == []
    assert look(standing, 300, DEAD) == [("hold_only", "ended")]
