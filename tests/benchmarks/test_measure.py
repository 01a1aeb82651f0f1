"""Ratios, goals and timing."""

import pytest

from benchmarks.measure import Measurement, quickest


def of_time(value: float, *, goal_value: float | None = None, goal_ratio: float | None = None) -> Measurement:
    return Measurement("sorting", value, "s", "bubbles", 3.0, goal_value=goal_value, goal_ratio=goal_ratio)


def of_rate(value: float, *, goal_value: float | None = None, goal_ratio: float | None = None) -> Measurement:
    return Measurement(
        "sorting",
        value,
        "lists/s",
        "bubbles",
        4.0,
        smaller_is_better=False,
        goal_value=goal_value,
        goal_ratio=goal_ratio,
    )


def test_a_ratio_above_one_is_better_than_the_yardstick_for_times_and_for_rates() -> None:
    assert of_time(1.5).ratio == 2.0
    assert of_rate(8.0).ratio == 2.0


@pytest.mark.parametrize(
    ("measurement", "goal", "met"),
    [
        (of_time(1.5), None, None),
        (of_time(1.5, goal_value=1.5), "≤ 1.5 s", True),
        (of_time(1.6, goal_value=1.5), "≤ 1.5 s", False),
        (of_time(1.5, goal_value=2.0, goal_ratio=2.5), "≤ 2 s, ratio ≥ 2.5", False),
        (of_rate(8.0, goal_value=8.0, goal_ratio=2.0), "≥ 8 lists/s, ratio ≥ 2", True),
        (of_rate(7.0, goal_value=8.0), "≥ 8 lists/s", False),
        (of_rate(7.0, goal_ratio=2.0), "ratio ≥ 2", False),
    ],
)
def test_a_goal_is_met_if_every_part_is_met(measurement: Measurement, goal: str | None, met: bool) -> None:
    assert measurement.goal == goal
    assert measurement.met is met
    assert measurement.document()["met"] is met


def test_functions_alternate_after_a_first_call_that_does_not_count() -> None:
    calls = []
    least = quickest([lambda: calls.append("a"), lambda: calls.append("b")], repeats=3)
    assert calls == ["a", "b"] * 4
    assert len(least) == 2
    assert all(0.0 <= seconds < 1.0 for seconds in least)
