"""One alert when a condition begins, and one when it ends."""

from hypothesis import given
from hypothesis import strategies as st

from shared.messages.conditions import Condition, ConditionTracker

STALE = Condition("trader", "stale_price")
SPREAD = Condition("trader", "spread")


def alerts(
    tracker: ConditionTracker, checks: list[tuple[float, dict[Condition, str]]]
) -> list[tuple[float, str, str, int]]:
    return [
        (now_s, alert.name, alert.phase, alert.occurrences)
        for now_s, holding in checks
        for alert in tracker.update(holding, now_s)
    ]


def test_a_condition_is_announced_when_it_begins_and_when_it_ends() -> None:
    tracker = ConditionTracker()
    assert alerts(
        tracker,
        [(0, {}), (1, {STALE: "a"}), (2, {STALE: "b", SPREAD: "wide"}), (3, {SPREAD: "wide"}), (4, {})],
    ) == [
        (1, "stale_price", "began", 1),
        (2, "spread", "began", 1),
        (3, "stale_price", "ended", 1),
        (4, "spread", "ended", 1),
    ]


def test_an_alert_has_the_detail_of_the_last_check() -> None:
    tracker = ConditionTracker()
    (began,) = tracker.update({STALE: "no tick for 10 s"}, 0)
    tracker.update({STALE: "no tick for 12 s"}, 2)
    (ended,) = tracker.update({}, 3)
    assert (began.source, began.detail) == ("trader", "no tick for 10 s")
    assert ended.detail == "no tick for 12 s"
    assert began.alert_id != ended.alert_id


def test_a_flapping_condition_makes_one_alert_that_counts_its_appearances() -> None:
    tracker = ConditionTracker(end_seconds=60)
    flapping = [(float(second), {STALE: "x"} if second % 10 == 0 else {}) for second in range(100)]
    assert alerts(tracker, flapping) == [(0, "stale_price", "began", 1)]
    # It was last seen at second 90.
    assert alerts(tracker, [(149, {}), (150, {}), (151, {})]) == [(150, "stale_price", "ended", 10)]


def test_a_condition_shorter_than_begin_seconds_is_not_announced() -> None:
    tracker = ConditionTracker(begin_seconds=5)
    checks: list[tuple[float, dict[Condition, str]]] = [
        (0, {STALE: "x"}),
        (4, {STALE: "x"}),
        (5, {}),
        (6, {STALE: "x"}),
        (10, {STALE: "x"}),
        (11, {STALE: "x"}),
        (12, {}),
    ]
    assert alerts(tracker, checks) == [(11, "stale_price", "began", 1), (12, "stale_price", "ended", 1)]


@given(st.lists(st.booleans(), max_size=60), st.integers(0, 4), st.integers(0, 4))
def test_begin_and_end_alternate_and_respect_the_two_delays(
    present: list[bool], begin_seconds: int, end_seconds: int
) -> None:
    tracker = ConditionTracker(begin_seconds=begin_seconds, end_seconds=end_seconds)
    found = alerts(
        tracker, [(float(second), {STALE: "x"} if held else {}) for second, held in enumerate(present)]
    )
    phases = [phase for _, _, phase, _ in found]
    assert phases == ["began", "ended"] * (len(phases) // 2) + ["began"] * (len(phases) % 2)
    for at, _, phase, _ in found:
        second = int(at)
        if phase == "began":
            assert all(present[second - begin_seconds : second + 1])
        else:
            assert not any(present[second - end_seconds + 1 : second + 1])
            assert not present[second]


def test_a_resumed_condition_is_not_announced_again() -> None:
    for still_holds in (True, False):
        tracker = ConditionTracker(end_seconds=60)
        tracker.resume(STALE, "no tick for 10 s", 0)
        assert tracker.begun() == []
        assert tracker.update({STALE: "no tick for 90 s"} if still_holds else {}, 1) == []
        assert tracker.begun() == ([STALE] if still_holds else [])
        assert tracker.update({}, 59) == []
        (ended,) = tracker.update({}, 70)
        assert (ended.phase, ended.occurrences) == ("ended", 1)
        assert ended.detail == ("no tick for 90 s" if still_holds else "no tick for 10 s")
