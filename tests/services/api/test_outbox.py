"""Which alert is posted next, and which are put together."""

from typing import Literal

from services.api.outbox import MOST_WAITING, Outbox
from shared.messages.schemas import AlertRaised

Phase = Literal["event", "began", "ended"]


def alert(name: str, source: str = "validator", phase: Phase = "event") -> AlertRaised:
    return AlertRaised(source=source, name=name, phase=phase)


def taken(post: Outbox, now_s: float = 0.0) -> list[tuple[str, int]]:
    names = []
    while (following := post.take(now_s)) is not None:
        names.append((following.name, following.occurrences))
    return names


def test_an_urgent_alert_does_not_wait_behind_the_others() -> None:
    post = Outbox(300)
    for n in range(40):
        post.put(alert(f"other-{n}"), 0)
    post.put(alert("trader_halted", "trader", "began"), 0)
    first = post.take(0)
    assert first is not None
    assert first.name == "trader_halted"
    post.put_back(first)
    assert [name for name, _ in taken(post)] == ["trader_halted", *(f"other-{n}" for n in range(40))]


def test_the_end_of_a_condition_never_goes_before_its_beginning() -> None:
    post = Outbox(300)
    post.put(alert("x", "trader", "began"), 0)
    post.put(alert("x", "trader", "ended"), 0)
    assert [(a.phase) for a in (post.take(0), post.take(0)) if a] == ["began", "ended"]


def test_a_condition_that_began_again_is_not_ended_by_its_last_post() -> None:
    post = Outbox(300)
    phases: tuple[Phase, ...] = ("began", "ended", "began")
    for phase in phases:
        post.put(alert("x", "trader", phase), 0)
    assert tuple(a.phase for _ in phases if (a := post.take(0))) == phases


def test_events_of_one_kind_are_put_together() -> None:
    post = Outbox(300)
    for second in range(100):
        post.put(alert("old_bar", "trader"), second)
        post.put(alert("spread", "trader"), second) if second == 50 else None
    assert taken(post, 100) == [("old_bar", 1), ("spread", 1)]
    assert post.seconds_to_release(100) == 200
    assert taken(post, 299) == []
    assert taken(post, 300) == [("old_bar", 99)]
    assert post.seconds_to_release(300) is None
    post.put(alert("old_bar", "trader"), 599)
    assert taken(post, 599) == []
    assert taken(post, 600) == [("old_bar", 1)]
    post.put(alert("old_bar", "trader"), 901)
    assert taken(post, 901) == [("old_bar", 1)]


def test_beginnings_and_ends_are_never_withheld() -> None:
    post = Outbox(300)
    phases: tuple[Phase, ...] = ("began", "ended", "began", "ended")
    for phase in phases:
        post.put(alert("x", phase=phase), 0)
    assert len(taken(post)) == 4


def test_an_alert_that_comes_by_two_ways_is_posted_once() -> None:
    post, twice = Outbox(0), alert("redis_away", "redis", "began")
    post.put(twice, 0)
    assert taken(post) == [("redis_away", 1)]
    post.put(twice, 1)
    assert taken(post) == []


def test_what_finds_no_room_is_counted_and_the_newest_stay() -> None:
    post = Outbox(0)
    for n in range(MOST_WAITING + 3):
        post.put(alert(f"n{n}", phase="began"), 0)
    assert post.given_up == 3
    assert taken(post)[0] == ("n3", 1)
