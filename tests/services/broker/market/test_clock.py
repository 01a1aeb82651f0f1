"""Simulated time."""

from services.broker.market.clock import NANOSECONDS, SimulatedClock


class Wall:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_simulated_time_runs_at_its_speed_and_can_be_set() -> None:
    wall = Wall()
    clock = SimulatedClock(5 * NANOSECONDS, 60.0, monotonic=wall)
    wall.seconds += 2
    assert clock.now_ns() == 125 * NANOSECONDS
    assert clock.seconds_until(185 * NANOSECONDS) == 1.0
    assert clock.seconds_until(0) == 0.0
    clock.set(1_000 * NANOSECONDS)
    assert clock.now_ns() == 1_000 * NANOSECONDS
