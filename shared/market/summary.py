"""What a series of bars holds and what it lacks, in numbers."""

from dataclasses import dataclass

import numpy as np

from shared.market.bar import BAR_SECONDS, BarSeries
from shared.market.calendar import is_open, open_minute


@dataclass(frozen=True)
class Gap:
    """Open minutes in a row that have no bar."""

    from_s: int  # when the last bar before it ends
    to_s: int  # when the next bar opens
    missing_minutes: int


@dataclass(frozen=True)
class Summary:
    """A series of bars in numbers."""

    num_bars: int
    first_s: int  # opening of the first bar
    last_s: int  # opening of the last
    coverage: float  # share of the open minutes of this span that have a bar
    missing_minutes: int
    num_outside: int  # bars outside the trading week
    mean_range_pips: float
    p99_range_pips: float
    mean_spread_pips: float  # NaN where the source has none
    num_gaps: int
    longest_gaps: tuple[Gap, ...]  # longest first


def summarize(bars: BarSeries, *, num_gaps: int = 5) -> Summary:
    """Describe at least one bar, with its `num_gaps` longest gaps; weekends are no gaps."""
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
        num_gaps=int(np.count_nonzero(missing)),
        longest_gaps=gaps,
    )
