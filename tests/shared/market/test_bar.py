"""Names and pips of instruments."""

import pytest

from shared.errors import DataError
from shared.market.bar import Instrument, pip_location_of


@pytest.mark.parametrize("name", ["GBP_JPY", "gbp_jpy", "GBPJPY", "GBP/JPY", "gbp-jpy", " GBP_JPY "])
def test_a_pair_may_be_written_in_several_ways(name: str) -> None:
    assert Instrument.named(name) == Instrument("GBP_JPY", -2)


# As in OANDA's /instruments.
@pytest.mark.parametrize(
    ("name", "pip"), [("EUR_USD", 0.0001), ("USD_JPY", 0.01), ("TRY_JPY", 0.01), ("USD_CNH", 0.0001)]
)
def test_common_pairs_have_the_conventional_pip(name: str, pip: float) -> None:
    assert Instrument.named(name).pip == pip


@pytest.mark.parametrize(
    "name", ["XAU_USD", "HKD_JPY", "USD_HUF", "BTC_USD", "USD_THB", "EUR_EUR", "SPX500_USD"]
)
def test_the_pip_of_other_instruments_must_be_given(name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: the size of its pip is not known.*--pip"):
        Instrument.named(name)
    assert Instrument.named(name, -2) == Instrument(name, -2)


@pytest.mark.parametrize("name", ["", "gold", "GBP_", "GBP_JPYX", "GBP JPY", "GBP_JPY_USD", "ÄUR_USD"])
def test_names_that_are_not_pairs_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="expected a name such as GBP_JPY"):
        Instrument.named(name, -2)


def test_a_pip_must_be_a_power_of_ten() -> None:
    assert [pip_location_of(pip) for pip in (0.0001, 0.01, 1.0)] == [-4, -2, 0]
    for pip in (0.02, 0.0, -0.01, float("nan"), float("inf"), 1e9):
        with pytest.raises(DataError, match="expected a power of ten"):
            pip_location_of(pip)
