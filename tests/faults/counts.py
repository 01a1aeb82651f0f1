"""How often a fault strikes: seldom in the default suite, often under the marker `soak`.

A soak may take as long as the machine needs, but not without going on: between two of its steps it has
`STEP_SECONDS`, then it fails and the next begins.
"""

import contextlib
import signal
import time
from collections.abc import Iterator

import pytest

#: Longest time of a soak's step, or of all of a soak that has none.
STEP_SECONDS = 1_200.0

#: A soak tells how far it is so often.
TELL_SECONDS = 30.0


def rounds(few: int, many: int) -> pytest.MarkDecorator:
    """Parametrize a test by `count`: a few in every run of the tests, many in `./run soak`."""
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.soak)])


def soaked(many: int) -> pytest.MarkDecorator:
    """As `rounds`, for what takes long to begin and has a part that every run of the tests sees elsewhere."""
    return pytest.mark.parametrize("count", [pytest.param(many, marks=pytest.mark.soak)])


def steps(*bounds: int) -> Iterator[int]:
    """As `range`; tells now and then how far the test is, and gives each step its time."""
    numbers = range(*bounds)
    begun = told = time.monotonic()
    for done, number in enumerate(numbers, 1):
        if signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.setitimer(signal.ITIMER_REAL, STEP_SECONDS)
        yield number
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            print(f"\n{done:,} of {len(numbers):,} after {told - begun:.0f} s", end="", flush=True)


@contextlib.contextmanager
def ending_hangs() -> Iterator[None]:
    """Fail a test that makes no step for too long, wherever it waits."""

    def give_up(*_: object) -> None:
        pytest.fail(f"nothing went on for {STEP_SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, STEP_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def tell(fault: str, **figures: object) -> None:
    """Print one line of figures; `./run soak` shows it."""
    print(f"\n{fault}: " + ", ".join(f"{name} {value}" for name, value in figures.items()), flush=True)
