"""Bars that the environment tests share."""

from pathlib import Path

import pytest

from shared.market.bar import BarSeries
from tests.shared.features.series import read_real_bars


@pytest.fixture(scope="session")
def real_bars(real_data: Path) -> BarSeries:
    """Six weeks of GBP/JPY."""
    return read_real_bars(real_data)
