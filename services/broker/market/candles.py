"""Builds mid, bid and ask candles of one minute to one hour from the tape."""

from dataclasses import dataclass

import numpy as np

from services.broker.market.tape import CLOSE, HIGH, LOW, OPEN, SECOND_NS, Tape
from services.broker.wire import Json
from shared.adapters.oanda.records import format_time
from shared.numeric import Int64

MAX_CANDLES = 5_000
DEFAULT_CANDLES = 500

#: Candle lengths in seconds that can be built from one-minute bars without a daily alignment.
GRANULARITIES = {"M1": 60, "M2": 120, "M4": 240, "M5": 300, "M10": 600, "M15": 900, "M30": 1_800, "H1": 3_600}

_COMPONENTS = {"M": ("mid", 0), "B": ("bid", -1), "A": ("ask", 1)}


@dataclass(frozen=True)
class CandleQuery:
    """Parameters of a candle request; a time that was not given is None."""

    granularity: str
    price: str  # any of M, B, A
    count: int | None = None
    from_ns: int | None = None
    to_ns: int | None = None
    include_first: bool = True


@dataclass(frozen=True)
class _Bars:
    """One-minute bars up to now; the last may be unfinished."""

    time_s: Int64
    points: Int64  # [T, 4]
    half_spread: Int64
    volume: Int64


def candles(tape: Tape, query: CandleQuery, *, complete: int, ticks: int, now_ns: int) -> list[Json]:
    """The candles of a query in time order.

    Args:
        tape: all bars.
        query: parameters of the request.
        complete: index of the newest complete one-minute bar.
        ticks: number of ticks sent of the bar after `complete`; 0 if that bar has not begun.
        now_ns: simulated time.
    """
    length = GRANULARITIES[query.granularity]
    last = complete + 1 if ticks else complete
    first_s, stop_s, limit = _span(query, length, now_ns)
    start = int(np.searchsorted(tape.time_s, first_s))
    stop = min(int(np.searchsorted(tape.time_s, stop_s)), last + 1)
    takes_newest = query.from_ns is None
    max_bars = limit * length // 60 + length // 60  # largest number of one-minute bars in `limit` candles
    if takes_newest:
        start = max(start, stop - max_bars)
    else:
        stop = min(stop, start + max_bars)
    bars = _take(tape, start, stop, unfinished=last if ticks else None, ticks=ticks)
    found = _grouped(tape, bars, query, length, now_ns)
    return found[-limit:] if takes_newest else found[:limit]


def _span(query: CandleQuery, length: int, now_ns: int) -> tuple[int, int, int]:
    """First second, second after the last, and largest number of candles."""
    limit = query.count if query.count is not None else DEFAULT_CANDLES
    stop_s = (now_ns if query.to_ns is None else query.to_ns - 1) // SECOND_NS + 1
    if query.from_ns is None:
        return 0, stop_s, limit
    if query.count is None and query.to_ns is not None:
        limit = MAX_CANDLES
    covering = query.from_ns // SECOND_NS // length * length
    return (covering if query.include_first else covering + length), stop_s, limit


def _take(tape: Tape, start: int, stop: int, *, unfinished: int | None, ticks: int) -> _Bars:
    points, volume = tape.points[start:stop].copy(), tape.volume[start:stop].copy()
    if unfinished is not None and start <= unfinished < stop:
        points[-1] = tape.bar_so_far(unfinished, ticks)
        volume[-1] = min(ticks, int(volume[-1]))
    return _Bars(tape.time_s[start:stop], points, tape.half_spread[start:stop], volume)


def _grouped(tape: Tape, bars: _Bars, query: CandleQuery, length: int, now_ns: int) -> list[Json]:
    if not len(bars.time_s):
        return []
    opens_s = bars.time_s // length * length
    starts = np.flatnonzero(np.diff(opens_s, prepend=-1))
    ends = np.append(starts[1:], len(opens_s)) - 1
    volume = np.add.reduceat(bars.volume, starts)
    quotes = {}
    for letter in query.price:
        name, side = _COMPONENTS[letter]
        points = bars.points + side * bars.half_spread[:, None]
        quotes[name] = np.stack(
            [
                points[starts, OPEN],
                np.maximum.reduceat(points[:, HIGH], starts),
                np.minimum.reduceat(points[:, LOW], starts),
                points[ends, CLOSE],
            ],
            axis=1,
        )
    return [
        {
            "complete": (int(opens_s[row]) + length) * SECOND_NS <= now_ns,
            "volume": max(1, int(volume[index])),
            "time": format_time(int(opens_s[row]) * SECOND_NS),
            **{
                name: dict(
                    zip("ohlc", (f"{tape.price(int(value)):f}" for value in quote[index]), strict=True)
                )
                for name, quote in quotes.items()
            },
        }
        for index, row in enumerate(starts)
    ]
