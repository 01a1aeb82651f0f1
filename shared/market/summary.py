"""Statistics of a series of bars: coverage, gaps, ranges and spreads."""

from dataclasses import dataclass

import numpy as np

from shared.market.bar import BAR_SECONDS, BarSeries, Instrument
from shared.market.calendar import is_open, open_minute
from shared.market.rows import flat_runs

#: Shortest run of bars at one price without volume that counts as filler.
FLAT_RUN_BARS = 30

#: Plausible mean spreads and ranges, in pips; outside them, the unit of the prices or the pip is doubtful.
_SPREADS_PIPS = (0.05, 100.0)
_RANGES_PIPS = (0.1, 200.0)

_LEAST_COVERAGE = 0.9


@dataclass(frozen=True)
class Gap:
    """Successive open minutes that have no bar."""

    from_s: int  # close of the last bar before it
    to_s: int  # opening of the next bar
    missing_minutes: int


@dataclass(frozen=True)
class Summary:
    """Statistics of a series of bars."""

    num_bars: int
    first_s: int  # opening of the first bar
    last_s: int  # opening of the last bar
    coverage: float  # share of the open minutes from first to last bar that have one
    missing_minutes: int
    num_outside: int  # bars outside the trading week
    mean_range_pips: float
    p99_range_pips: float
    mean_spread_pips: float  # NaN if the source gives none
    num_flat: int  # bars in long runs at one price without volume, like the filler of holidays
    num_gaps: int
    longest_gaps: tuple[Gap, ...]  # longest first


def summarize(bars: BarSeries, *, num_gaps: int = 5) -> Summary:
    """Summarise a non-empty series, with its `num_gaps` longest gaps; weekends are not gaps."""
    times = bars.time_s
    tradable = is_open(times)
    minute = open_minute(times)
    num_minutes = int(open_minute(times[-1:] + BAR_SECONDS)[0] - minute[0])
    num_open = int(tradable.sum())
    missing = np.maximum(np.diff(minute) - tradable[:-1], 0)
    longest = np.argsort(-missing, kind="stable")[:num_gaps]
    gaps = tuple(
        Gap(int(times[row]) + BAR_SECONDS, int(times[row + 1]), int(missing[row]))
        for row in longest
        if missing[row]
    )
    spreads = bars.spread_pips[~np.isnan(bars.spread_pips)]
    ranges = bars.range_pips
    return Summary(
        num_bars=len(bars),
        first_s=int(times[0]),
        last_s=int(times[-1]),
        coverage=num_open / num_minutes if num_minutes else float("nan"),
        missing_minutes=num_minutes - num_open,
        num_outside=len(bars) - num_open,
        mean_range_pips=float(ranges.mean()),
        p99_range_pips=float(np.quantile(ranges, 0.99)),
        mean_spread_pips=float(spreads.mean()) if len(spreads) else float("nan"),
        num_flat=int(flat_runs(bars, FLAT_RUN_BARS).sum()),
        num_gaps=int(np.count_nonzero(missing)),
        longest_gaps=gaps,
    )


def plausibility_warnings(summary: Summary, instrument: Instrument) -> list[str]:
    """Warnings about properties that bars of a real market rarely have; empty if there are none."""
    found = []
    low, high = _RANGES_PIPS
    if not low <= summary.mean_range_pips <= high:
        found.append(
            f"the mean range of a bar is {summary.mean_range_pips:.4g} pips of {instrument.pip:g}, "
            f"expected {low:g} to {high:g}: check instrument and pip"
        )
    low, high = _SPREADS_PIPS
    if summary.mean_spread_pips < low or summary.mean_spread_pips > high:
        found.append(
            f"the mean spread is {summary.mean_spread_pips:.4g} pips, expected {low:g} to {high:g}: "
            "check the unit of the spread before paper trading with it"
        )
    if summary.num_outside:
        found.append(f"{summary.num_outside:,} bars lie outside the trading week")
    if summary.num_flat:
        found.append(
            f"{summary.num_flat:,} bars are in runs of {FLAT_RUN_BARS} or more at one price without volume, "
            "like the filler of holidays and outages"
        )
    if summary.coverage < _LEAST_COVERAGE:
        found.append(f"only {summary.coverage:.0%} of the open minutes have a bar: see `data describe`")
    return found
