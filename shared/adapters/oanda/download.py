"""Resumable download of OANDA's candles as bars, page by page.

Each page of at most 5,000 candles is written beside the data set as soon as it arrives; the pages are joined
after the last one. The request includes bid and ask, because mid prices alone do not show the spread.
"""

import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from shared.adapters.files import write_atomically
from shared.adapters.oanda.records import Candle
from shared.errors import DataError
from shared.market.bar import BarSeries, Instrument
from shared.market.clock import utc_text
from shared.market.rows import RawRows, first_fault
from shared.numeric import Float64

PAGE_CANDLES = 5_000

#: Columns of a page, `[T, 7]` float64, which represents every time and volume exactly.
_TIME, _OPEN, _HIGH, _LOW, _CLOSE, _VOLUME, _SPREAD = range(7)

#: Called with the time (seconds since 1970 UTC) up to which candles have arrived.
Progress = Callable[[int], None]


class CandleSource(Protocol):
    """OANDA or the paper broker."""

    async def candles(self, instrument: str, *, price: str, count: int, start_s: int) -> Sequence[Candle]:
        """Complete one-minute candles from `start_s` on, at most `count`, in time order."""


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
        source: receives one request at a time, far below OANDA's limit of 120 per second.
        instrument: the instrument to download.
        from_s: start in seconds since 1970 UTC.
        to_s: end in seconds since 1970 UTC; it may be in the future.
        pages: folder for the pages; pages of an earlier attempt are not requested again. Call
            `discard_pages` when the bars are stored.
        progress: called after each page.
    Raises:
        BrokerError: the source refuses, or cannot be reached; the pages are kept.
        DataError: there are no candles, candles break a rule, or the folder has pages of another request.
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
            "request an earlier or longer period"
        )
    return _bars(rows, instrument)


def discard_pages(pages: Path) -> None:
    """Remove the pages of a finished download."""
    shutil.rmtree(pages)


def _kept_pages(pages: Path, request: str) -> list[Float64]:
    """Pages of an earlier attempt at the same request; creates the folder if needed."""
    pages.mkdir(parents=True, exist_ok=True)
    note = pages / "request.txt"
    if not note.exists():
        if any(pages.iterdir()):
            raise DataError(
                f"{pages} contains other files than pages of a download: remove it, or download elsewhere"
            )
        note.write_text(request)
    elif note.read_text() != request:
        raise DataError(
            f"{pages} has an unfinished download of {note.read_text()} s, the request is {request} s: "
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
    write_atomically(path, contents.getvalue())


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
