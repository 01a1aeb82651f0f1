"""How often a fault strikes: seldom in the default suite, often under the marker `soak`."""

import pytest


def rounds(few: int, many: int) -> pytest.MarkDecorator:
    """Parametrize a test by `count`: a few in every run of the tests, many in `./run soak`."""
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.soak)])


def soaked(many: int) -> pytest.MarkDecorator:
    """As `rounds`, for what takes long to begin and has a part that every run of the tests sees elsewhere."""
    return pytest.mark.parametrize("count", [pytest.param(many, marks=pytest.mark.soak)])


def tell(fault: str, **figures: object) -> None:
    """Print one line of figures; `./run soak` shows it."""
    print(f"\n{fault}: " + ", ".join(f"{name} {value}" for name, value in figures.items()))
