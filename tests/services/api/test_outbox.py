"""Which alert is posted next, and which alerts are combined."""

from typing import Literal

from services.api.outbox import MAX_WAITING, Outbox
from shared.messages.schemas import AlertRaised

Phase = Literal["event", "began", "ended"]


def alert(name: str, source: str = "validator", phase: Phase = "event") -> AlertRaised:
    return AlertRaised(source=source, name=name, phase=phase)


def taken(outbox: Outbox, now_s: float = 0.0) -> list[tuple[str, int]]:
    names = []
    while (following := outbox.take(now_s)) is not None:
        names.append((following.name, following.occurrences))
    return names


def test_an_urgent_alert_is_posted_before_the_others() -> None:
    outbox = Outbox(300)
    for n in range(40):
        outbox.put(alert(f"other-{n}"), 0)
    outbox.put(alert("trader_halted", "trader", "began"), 0)
    first = outbox.take(0)
    assert first is not None
    assert first.name == "trader_halted"
    outbox.put_back(first)
    assert [name for name, _ in taken(outbox)] == ["trader_halted", *(f"other-{n}" for n in range(40))]


def test_the_end_of_a_condition_is_posted_after_its_beginning() -> None:
    outbox = Outbox(300)
    outbox.put(alert("x", "trader", "began"), 0)
    outbox.put(alert("x", "trader", "ended"), 0)
    assert [(a.phase) for a in (outbox.take(0), outbox.take(0)) if a] == ["began", "ended"]


def test_the_phases_of_one_condition_keep_their_order() -> None:
    outbox = Outbox(300)
    phases: tuple[Phase, ...] = ("began", "ended", "began")
    for phase in phases:
        outbox.put(alert("x", "trader", phase), 0)
    assert tuple(a.phase for _ in phases if (a := outbox.take(0))) == phases


def test_events_of_one_kind_are_combined() -> None:
    outbox = Outbox(300)
    for second in range(100):
        outbox.put(alert("old_bar", "trader"), second)
        outbox.put(alert("spread", "trader"), second) if second == 50 else None
    assert taken(outbox, 100) == [("old_bar", 1), ("spread", 1)]
    assert outbox.seconds_to_release(100) == 200
    assert taken(outbox, 299) == []
    assert taken(outbox, 300) == [("old_bar", 99)]
    assert outbox.seconds_to_release(300) is None
    outbox.put(alert("old_bar", "trader"), 599)
    assert taken(outbox, 599) == []
    assert taken(outbox, 600) == [("old_bar", 1)]
    outbox.put(alert("old_bar", "trader"), 901)
    assert taken(outbox, 901) == [("old_bar", 1)]


def test_beginnings_and_ends_are_never_withheld() -> None:
    outbox = Outbox(300)
    phases: tuple[Phase, ...] = ("began", "ended", "began", "ended")
    for phase in phases:
        outbox.put(alert("x", phase=phase), 0)
    assert len(taken(outbox)) == 4


def test_an_alert_that_arrives_twice_is_posted_once() -> None:
    outbox, twice = Outbox(0), alert("redis_unavailable", "redis", "began")
    outbox.put(twice, 0)
    assert taken(outbox) == [("redis_unavailable", 1)]
    outbox.put(twice, 1)
    assert taken(outbox) == []


def test_the_oldest_alerts_beyond_the_limit_are_dropped_and_counted() -> None:
    outbox = Outbox(0)
    for n in range(MAX_WAITING + 3):
        outbox.put(alert(f"n{n}", phase="began"), 0)
    assert outbox.num_dropped == 3
    assert taken(outbox)[0] == ("n3", 1)
