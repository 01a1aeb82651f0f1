"""The result of a benchmark: a value, a yardstick measured in the same run, and the goal.

A value alone depends mostly on the machine. Its ratio to a yardstick shows how well the code uses the
machine. Both are measured in alternation, so that other load affects both alike. The fastest repetition
counts, because it was disturbed least.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter


@dataclass(frozen=True)
class Measurement:
    """One row of a benchmark."""

    name: str  # what was measured, with its sizes
    value: float
    unit: str  # of both values
    yardstick: str  # what the value is compared with
    yardstick_value: float
    smaller_is_better: bool = True  # true for seconds, false for rates
    goal_value: float | None = None  # from docs/benchmarks.md; a maximum if smaller is better, else a minimum
    goal_ratio: float | None = None  # minimum of `ratio`
    label: str | None = None  # short name for tables; None uses the name

    @property
    def ratio(self) -> float:
        """Factor by which the value is better than that of the yardstick."""
        value, yardstick = self.value, self.yardstick_value
        return yardstick / value if self.smaller_is_better else value / yardstick

    @property
    def goal(self) -> str | None:
        """The goal as text; None without a goal."""
        return ", ".join(self.goals(self.unit)) or None

    def goals(self, unit: str = "") -> list[str]:
        """Each part of the goal as text."""
        bound = "≤" if self.smaller_is_better else "≥"
        parts = []
        if self.goal_value is not None:
            parts.append(f"{bound} {self.goal_value:.4g} {unit}".rstrip())
        if self.goal_ratio is not None:
            parts.append(f"ratio ≥ {self.goal_ratio:.4g}")
        return parts

    @property
    def met(self) -> bool | None:
        """Whether every part of the goal is met; None without a goal."""
        if self.goal is None:
            return None
        enough = self.goal_ratio is None or self.ratio >= self.goal_ratio
        if self.goal_value is None:
            return enough
        if self.smaller_is_better:
            return enough and self.value <= self.goal_value
        return enough and self.value >= self.goal_value

    def document(self) -> dict[str, object]:
        """All fields but the label, with ratio and goal, for JSON."""
        fields = asdict(self)
        del fields["label"]
        return {**fields, "ratio": self.ratio, "goal": self.goal, "met": self.met}


def quickest(
    functions: Sequence[Callable[[], object]], *, repeats: int = 1, seconds: float = 0.0
) -> list[float]:
    """The shortest time of each function, in seconds. The functions are called in alternation.

    Args:
        functions: each is called once before the measurement, to compile it and to fill the caches.
        repeats: minimum number of rounds.
        seconds: minimum duration of the measurement.
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
