"""OANDA's candles → bars, page by page, going on where an earlier attempt stopped.

Each page of at most 5,000 candles is written beside the data set as soon as it is there; pages are
joined when the last one has come. Bid and ask come along with mid, since the spread cannot be had from
mid alone.
"""

import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from shared.adapters.files import write_whole
from shared.adapters.oanda.records import Candle
from shared.errors import DataError
from shared.market.bar import BarSeries, Instrument
from shared.market.clock import utc_text
from shared.market.rows import RawRows, first_fault
from shared.numeric import Float64

PAGE_CANDLES = 5_000

#: Columns of a page, `[T, 7]` float64; every time and volume is a whole number that float64 holds.
_TIME, _OPEN, _HIGH, _LOW, _CLOSE, _VOLUME, _SPREAD = range(7)

#: Told up to which second candles are there.
Progress = Callable[[int], None]


class CandleSource(Protocol):
    """Where candles come from: OANDA, or the paper broker."""

    async def candles(self, instrument: str, *, price: str, count: int, start_s: int) -> Sequence[Candle]:
        """Complete one-minute candles from `start_s` on, `count` at most, in time order."""


async def download_bars(
    source: CandleSource,
    instrument: Instrument,
    from_s: int,
    to_s: int,
    pages: Path,
    progress: Progress | None = None,
) -> BarSeries:
    """All complete bars with `from_s <= time_s < to_s`.

    Args:
        source: asked one page at a time, which stays far below OANDA's 120 requests a second.
        instrument: what to ask for.
        from_s: seconds since 1970 UTC.
        to_s: seconds since 1970 UTC; the future is no error, there are just no candles of it yet.
        pages: folder that keeps what has come; pages of an earlier attempt are read, not asked for again.
            `discard_pages` removes it when the bars are safe.
        progress: told after each page.
    Raises:
        BrokerError: the source refuses, or cannot be reached; the pages are kept.
        DataError: no candles came, candles break a rule, or the folder holds pages of another request.
    """
    parts = _kept_pages(pages, f"{instrument.name} from {from_s}")
    start_s = int(parts[-1][-1, _TIME]) + 60 if parts else from_s
    while start_s < to_s:
        if progress:
            progress(start_s)
        candles = await source.candles(instrument.name, price="MBA", count=PAGE_CANDLES, start_s=start_s)
        page = _page(
            [candle for candle in candles if candle.complete and candle.time_s >= start_s], instrument
        )
        if len(page) == 0:
            break
        _save(pages / f"{start_s:012d}.npy", page)
        parts.append(page)
        start_s = int(page[-1, _TIME]) + 60
    if progress:
        progress(to_s)
    rows = np.concatenate(parts) if parts else np.zeros((0, 7))
    rows = rows[rows[:, _TIME] < to_s]
    if len(rows) == 0:
        raise DataError(
            f"no {instrument.name} candles from {utc_text(from_s)} to {utc_text(to_s)}: "
            "ask for an earlier or longer time"
        )
    return _bars(rows, instrument)


def discard_pages(pages: Path) -> None:
    """Remove what a finished download kept."""
    shutil.rmtree(pages)


def _kept_pages(pages: Path, request: str) -> list[Float64]:
    """What an earlier attempt at the same request got; the folder is made if there was none."""
    pages.mkdir(parents=True, exist_ok=True)
    note = pages / "request.txt"
    if not note.exists():
        if any(pages.iterdir()):
            raise DataError(f"{pages} holds something else than a download: remove it, or download elsewhere")
        note.write_text(request)
    elif note.read_text() != request:
        raise DataError(
            f"{pages} holds an unfinished download of {note.read_text()} s, asked for is {request} s: "
            "finish that one, or remove the folder"
        )
    return [_load(page) for page in sorted(pages.glob("*.npy"))]


def _page(candles: Sequence[Candle], instrument: Instrument) -> Float64:
    page = np.empty((len(candles), 7))
    for row, candle in enumerate(candles):
        if candle.mid is None or candle.bid is None or candle.ask is None:
            raise DataError(f"the candle of {utc_text(candle.time_s)} lacks mid, bid or ask")
        spread_pips = round((candle.ask.close - candle.bid.close) / instrument.pip, 6)
        mid = candle.mid
        page[row] = candle.time_s, mid.open, mid.high, mid.low, mid.close, candle.volume, spread_pips
    if (np.diff(page[:, _TIME]) <= 0).any():
        row = int(np.argmax(np.diff(page[:, _TIME]) <= 0)) + 1
        raise DataError(f"the candle of {utc_text(int(page[row, _TIME]))} is not later than the one before")
    return page


def _save(path: Path, page: Float64) -> None:
    contents = io.BytesIO()
    np.save(contents, page, allow_pickle=False)
    write_whole(path, contents.getvalue())


def _load(path: Path) -> Float64:
    try:
        page: Float64 = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: damaged page of a download: remove it to fetch it again") from error
    return page


def _bars(rows: Float64, instrument: Instrument) -> BarSeries:
    time_s, volume = rows[:, _TIME].astype(np.int64), rows[:, _VOLUME].astype(np.int64)
    opens, highs, lows, closes, spreads = (
        np.ascontiguousarray(rows[:, column]) for column in (_OPEN, _HIGH, _LOW, _CLOSE, _SPREAD)
    )
    candidates = RawRows(
        time_s, opens, highs, lows, closes, volume.astype(np.float64), spreads, np.arange(len(rows))
    )
    fault = first_fault(candidates)
    if fault is not None:
        raise DataError(f"{instrument.name} candle of {utc_text(int(time_s[fault.line]))}: {fault.reason}")
    return BarSeries(instrument, time_s, opens, highs, lows, closes, volume, spreads)
