from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shared.adapters.oanda.download import PAGE_CANDLES, discard_pages, download_bars
from shared.adapters.oanda.records import Candle, Quote
from shared.errors import BrokerError, DataError
from shared.market.bar import BarSeries, Instrument
from shared.market.synthetic import Market, synthesize

GBP_JPY = Instrument.named("GBP_JPY")


class Exchange:
    """Candles of a synthetic market; the last one is not complete."""

    def __init__(self, bars: BarSeries) -> None:
        self.bars = bars
        self.asked: list[int] = []
        self.fail_after = 10**9

    async def candles(self, instrument: str, *, price: str, count: int, start_s: int) -> Sequence[Candle]:
        assert (instrument, price) == ("GBP_JPY", "MBA")
        assert count <= 5_000
        if len(self.asked) >= self.fail_after:
            raise BrokerError("504 Timeout waiting for response.")
        self.asked.append(start_s)
        first = int(np.searchsorted(self.bars.time_s, start_s))
        return tuple(self.candle(row) for row in range(first, min(first + count, len(self.bars))))

    def candle(self, row: int) -> Candle:
        bars = self.bars
        mid = Quote(*(float(column[row]) for column in (bars.open, bars.high, bars.low, bars.close)))
        bid, ask = (
            Quote(*(price + side for price in (mid.open, mid.high, mid.low, mid.close)))
            for side in (-0.01, 0.01)
        )
        return Candle(int(bars.time_s[row]), int(bars.volume[row]), row < len(bars) - 1, mid, bid, ask)


@pytest.fixture(scope="module")
def bars() -> BarSeries:
    complete = synthesize(Market.OU, 12_500, seed=1)
    return complete[np.random.default_rng(0).random(len(complete)) > 0.02]


@pytest.fixture
def exchange(bars: BarSeries) -> Exchange:
    return Exchange(bars)


def span(bars: BarSeries) -> tuple[int, int]:
    return int(bars.time_s[0]), int(bars.time_s[-1]) + 600


async def test_all_complete_bars_are_downloaded_with_their_spread(
    tmp_path: Path, exchange: Exchange, bars: BarSeries
) -> None:
    found = await download_bars(exchange, GBP_JPY, *span(bars), tmp_path / "pages")
    complete = bars[:-1]
    expected = replace(complete, spread_pips=np.full(len(complete), 2.0))
    assert found.fingerprint == expected.fingerprint
    assert len(exchange.asked) == 4  # three pages and an empty one
    discard_pages(tmp_path / "pages")
    assert not (tmp_path / "pages").exists()


async def test_only_the_requested_period_is_downloaded(
    tmp_path: Path, exchange: Exchange, bars: BarSeries
) -> None:
    first, end = int(bars.time_s[100]) + 30, int(bars.time_s[300])
    found = await download_bars(exchange, GBP_JPY, first, end, tmp_path / "pages")
    assert found.time_s.tolist() == bars.time_s[101:300].tolist()
    assert len(exchange.asked) == 1


async def test_a_second_attempt_resumes_where_the_first_stopped(
    tmp_path: Path, exchange: Exchange, bars: BarSeries
) -> None:
    exchange.fail_after = 2
    with pytest.raises(BrokerError, match="504"):
        await download_bars(exchange, GBP_JPY, *span(bars), tmp_path / "pages")
    exchange.fail_after = 10**9
    exchange.asked.clear()
    reported: list[int] = []
    found = await download_bars(exchange, GBP_JPY, *span(bars), tmp_path / "pages", reported.append)
    assert len(exchange.asked) == 2
    assert exchange.asked[0] > bars.time_s[2 * PAGE_CANDLES - 1]
    assert len(found) == len(bars) - 1
    assert reported == sorted(reported)
    assert reported[-1] == span(bars)[1]


async def test_pages_of_another_request_are_refused(
    tmp_path: Path, exchange: Exchange, bars: BarSeries
) -> None:
    exchange.fail_after = 1
    with pytest.raises(BrokerError):
        await download_bars(exchange, GBP_JPY, *span(bars), tmp_path / "pages")
    with pytest.raises(DataError, match="unfinished download of GBP_JPY"):
        await download_bars(exchange, GBP_JPY, span(bars)[0] + 60, span(bars)[1], tmp_path / "pages")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    with pytest.raises(DataError, match="contains other files"):
        await download_bars(exchange, GBP_JPY, *span(bars), tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.jpg").exists()


async def test_the_error_names_a_damaged_page(tmp_path: Path, exchange: Exchange, bars: BarSeries) -> None:
    await download_bars(exchange, GBP_JPY, *span(bars), tmp_path / "pages")
    page = next((tmp_path / "pages").glob("*.npy"))
    page.write_bytes(page.read_bytes()[:100])
    with pytest.raises(DataError, match=page.name):
        await download_bars(exchange, GBP_JPY, *span(bars), tmp_path / "pages")


async def test_candles_that_break_a_rule_are_refused(tmp_path: Path, bars: BarSeries) -> None:
    high = bars.high.copy()
    high[7] = 1.0
    with pytest.raises(DataError, match=r"GBP_JPY candle of 2020-01-05 22:0\d UTC: high 1\.0 is below low"):
        await download_bars(Exchange(replace(bars, high=high)), GBP_JPY, *span(bars), tmp_path / "pages")

    class MidOnly(Exchange):
        def candle(self, row: int) -> Candle:
            return replace(super().candle(row), bid=None)

    with pytest.raises(DataError, match="lacks mid, bid or ask"):
        await download_bars(MidOnly(bars), GBP_JPY, *span(bars), tmp_path / "b")


async def test_a_period_without_candles_is_refused(
    tmp_path: Path, exchange: Exchange, bars: BarSeries
) -> None:
    with pytest.raises(DataError, match="no GBP_JPY candles from 2020-12"):
        await download_bars(
            exchange, GBP_JPY, span(bars)[0] + 86_400 * 340, span(bars)[1] + 86_400 * 341, tmp_path / "p"
        )
