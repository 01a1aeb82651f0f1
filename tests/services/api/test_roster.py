"""Absences and restarts of services, derived from heartbeats."""

from datetime import UTC, datetime, timedelta

from services.api.roster import Roster
from shared.messages.schemas import Heartbeat

BEGIN = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


def beat(instance: str, started: float, beaten: float, service: str = "trainer") -> Heartbeat:
    return Heartbeat.model_validate(
        {
            "service": service,
            "instance": instance,
            "state": "running",
            "pid": 1,
            "started_at": at(started),
            "created_at": at(beaten),
        }
    )


def new_roster() -> Roster:
    return Roster(timedelta(minutes=10))


def test_a_service_never_seen_is_absent_since_the_first_update() -> None:
    roster = new_roster()
    for second in (0, 5, 10):
        roster.update(["trainer"], [], at(second))
    absent = roster.of("trainer")
    assert (absent.absent_since, absent.seen_at) == (at(0), None)


def test_withdrawn_and_expired_heartbeats_are_distinguished() -> None:
    for kept_seconds, ran_out in ((2, False), (15, True)):
        roster = new_roster()
        for second in range(0, 60, 2):
            there = [beat("1", 0, min(second, 20))] if second <= 20 + kept_seconds else []
            roster.update(["trainer"], there, at(second))
        absent = roster.of("trainer")
        assert absent.ran_out is ran_out
        assert absent.absent_since == at(20 + kept_seconds + 2 - (20 + kept_seconds) % 2)
    roster.update(["trainer"], [beat("1", 61, 61)], at(62))
    assert roster.of("trainer").absent_since is None


def test_restarts_faster_than_the_expiry_of_a_heartbeat_are_counted() -> None:
    """With one instance name, and with a new name each time while old heartbeats have not yet expired."""
    for names in (["same"] * 4, ["a", "b", "c", "d"]):
        roster = new_roster()
        for n, name in enumerate(names):
            old = beat(names[n - 1], 4 * n - 4, 4 * n - 2) if n and names[n - 1] != name else None
            roster.update(["trainer"], [beat(name, 4 * n, 4 * n), *([old] if old else [])], at(4 * n))
        roster.update(["trainer"], [beat(names[-1], 12, 20)], at(20))
        assert roster.of("trainer").restarts == 3
        roster.update(["trainer"], [beat(names[-1], 12, 700)], at(700))
        assert roster.of("trainer").restarts == 0


def test_added_or_removed_replicas_and_returning_heartbeats_are_not_restarts() -> None:
    roster = new_roster()
    one, five = [beat("1", 0, 0)], [beat(str(n), 0, 0) for n in range(5)]
    for n, there in enumerate([one, five, five, one, [], [], one]):
        roster.update(["trainer"], there, at(30 * n))
    assert roster.of("trainer").restarts == 0


def test_the_last_heartbeat_kept_is_the_one_that_names_a_position() -> None:
    roster = new_roster()
    trading = beat("1", 0, 0, "trader").model_copy(update={"detail": {"side": 1}})
    standby = beat("2", 0, 3, "trader").model_copy(update={"detail": {"state": "standby"}})
    roster.update(["trader"], [trading, standby], at(3))
    roster.update(["trader"], [], at(20))
    last = roster.of("trader").last
    assert last is not None
    assert last.detail == {"side": 1}
