"""What every benchmark tells: a figure, the yardstick measured beside it in the same run, and the goal.

A figure alone says more about the machine than about the code; its ratio to a named yardstick says what
the code makes of the machine. Both are measured in turns, so that a busy machine disturbs both alike, and
the quickest repetition counts, the one that was disturbed least.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter


@dataclass(frozen=True)
class Measurement:
    """One row of a benchmark."""

    name: str  # what was measured, sizes included
    value: float
    unit: str  # of both figures
    yardstick: str  # what it is compared with
    yardstick_value: float
    smaller_is_better: bool = True  # seconds; not so rates
    goal_value: float | None = None  # docs/benchmarks.md: at most, or at least, by what is better
    goal_ratio: float | None = None  # at least

    @property
    def ratio(self) -> float:
        """How many times as good as the yardstick; above 1 is better than it."""
        value, yardstick = self.value, self.yardstick_value
        return yardstick / value if self.smaller_is_better else value / yardstick

    @property
    def goal(self) -> str | None:
        """The goal in words; None where there is none."""
        bound = "≤" if self.smaller_is_better else "≥"
        parts = []
        if self.goal_value is not None:
            parts.append(f"{bound} {self.goal_value:.4g} {self.unit}")
        if self.goal_ratio is not None:
            parts.append(f"ratio ≥ {self.goal_ratio:.4g}")
        return ", ".join(parts) or None

    @property
    def met(self) -> bool | None:
        """Whether every part of the goal is reached; None where there is none."""
        if self.goal is None:
            return None
        enough = self.goal_ratio is None or self.ratio >= self.goal_ratio
        if self.goal_value is None:
            return enough
        if self.smaller_is_better:
            return enough and self.value <= self.goal_value
        return enough and self.value >= self.goal_value

    def document(self) -> dict[str, object]:
        """Everything by name, for JSON."""
        return {**asdict(self), "ratio": self.ratio, "goal": self.goal, "met": self.met}


def quickest(
    functions: Sequence[Callable[[], object]], *, repeats: int = 1, seconds: float = 0.0
) -> list[float]:
    """Least seconds that each function took, all of them called in turns.

    Args:
        functions: called once before anything is measured, which compiles them and fills the caches.
        repeats: rounds of measurement, at least.
        seconds: to go on for, at least.
    """
    for function in functions:
        function()
    least = [float("inf")] * len(functions)
    end = perf_counter() + seconds
    while repeats > 0 or perf_counter() < end:
        for index, function in enumerate(functions):
            begin = perf_counter()
            function()
            least[index] = min(least[index], perf_counter() - begin)
        repeats -= 1
    return least
