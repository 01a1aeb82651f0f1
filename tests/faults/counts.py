"""How often a fault is injected: a few times in the default suite, many times under the marker `soak`.

A soak test may take as long as it needs, but each of its steps has at most `STEP_SECONDS`. A test that
exceeds this limit fails, and the next test begins.
"""

import contextlib
import signal
import time
from collections.abc import Iterator

import pytest

#: Time limit of a step of a soak test, or of the complete test if it has no steps.
STEP_SECONDS = 1_200.0

#: Interval between progress reports of a soak test.
REPORT_SECONDS = 30.0


def rounds(few: int, many: int) -> pytest.MarkDecorator:
    """Parametrize a test by `count`: `few` in the default suite, `many` in `./run soak`."""
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.soak)])


def soaked(many: int) -> pytest.MarkDecorator:
    """Run a test only in soaks: it starts slowly, and another test covers its parts in the default suite."""
    return pytest.mark.parametrize("count", [pytest.param(many, marks=pytest.mark.soak)])


def steps(*bounds: int) -> Iterator[int]:
    """Like `range`; reports the progress of the test and limits the time of each step."""
    numbers = range(*bounds)
    started = reported = time.monotonic()
    for done, number in enumerate(numbers, 1):
        if signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.setitimer(signal.ITIMER_REAL, STEP_SECONDS)
        yield number
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            print(f"\n{done:,} of {len(numbers):,} after {reported - started:.0f} s", end="", flush=True)


@contextlib.contextmanager
def failing_hangs() -> Iterator[None]:
    """Fail a test whose current step exceeds the time limit."""

    def fail(*_: object) -> None:
        pytest.fail(f"no progress for {STEP_SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, STEP_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def print_figures(fault: str, **figures: object) -> None:
    """Print one line of figures, which `./run soak` shows."""
    print(f"\n{fault}: " + ", ".join(f"{name} {value}" for name, value in figures.items()), flush=True)
