"""Sessions: the valid 360-bar episodes, and the split of each.

A session that starts at bar i has decisions at the closes of bars i to i + 359; bar i + 360 supplies the
last execution price. All its 361 bars lie in one split. The 150 warm-up bars before it serve only its
features. At the start of a split they reach back into the embargo. With the default settings they never
reach across it: 150 bars that lack at most 60 open minutes span less than one embargo day of 1,440 minutes.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import numpy as np

from shared.errors import SettingsError
from shared.market.bar import BarSeries
from shared.market.calendar import (
    OPEN_MINUTES_PER_DAY,
    OPEN_MINUTES_PER_WEEK,
    WEEK_OPEN_S,
    open_minute,
    week_open_s,
    week_opens,
)
from shared.numeric import Bool, Float64, Int8, Int64, kernel
from shared.setting import (
    Count,
    Natural,
    Range,
    Share,
    check_group,
    setting,
)

SESSION_BARS = 360
WARMUP_BARS = 150

#: Ranges are summed as integers, in millionths of a pip, so that a session's mean depends on its own
#: bars only and not on earlier rounding errors. The range of a bar is capped at a million pips.
_MICROPIPS = 1_000_000
_MAX_RANGE_PIPS = 1_000_000.0


class Split(StrEnum):
    """The permitted use of a session."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"

    @property
    def code(self) -> int:
        """The split's number in time order, as in `SessionIndex.split`."""
        return list(Split).index(self)


#: In `SessionIndex.split`: the session touches an embargo or crosses into the next split.
NO_SPLIT = -1


@dataclass(frozen=True)
class SessionConfig:
    """The `[sessions]` group: the conditions for a session.

    Raises:
        SettingsError: a value is out of range.
    """

    min_mean_range_pips: Annotated[float, Range(low=0.0, high=1_000.0)] = setting(
        1.0, "mean range of the session's bars"
    )
    max_step_minutes: Count = setting(10, "longest gap between two bars of a session")
    max_warmup_missing_minutes: Natural = setting(60, "open minutes without a bar before a session")

    def __post_init__(self) -> None:
        """Check every range."""
        check_group("sessions", self)


@dataclass(frozen=True)
class SplitConfig:
    """The `[splits]` group: how the bars are divided over time; the rest is the test split.

    Raises:
        SettingsError: a value is out of range.
    """

    train: Share = setting(0.70, "share of the bars in the train split")
    validation: Share = setting(0.15, "share of the bars in the validation split")
    embargo_days: Natural = setting(1, "trading days left out before the validation and the test split")

    def __post_init__(self) -> None:
        """Check every range, and that the shares add up to at most 1."""
        check_group("splits", self)
        if self.train + self.validation > 1 + 1e-9:
            raise SettingsError(
                f"splits.train + splits.validation is {self.train + self.validation}, expected at most 1; "
                "the rest is the test split"
            )


@dataclass(frozen=True)
class SessionIndex:
    """Every valid session of a data set, in time order."""

    starts: Int64  # [M] bar index of the first decision
    split: Int8  # [M] `Split.code`, or NO_SPLIT
    walk: Bool  # [M] whether it is one of the non-overlapping sessions of its split

    @classmethod
    def of(cls, starts: Int64, split: Int8) -> "SessionIndex":
        """Index sessions; the non-overlapping ones are chosen greedily from the first of each split on."""
        return cls(starts, split, _non_overlapping(starts, split))

    def every(self, split: Split) -> Int64:
        """All valid starts of a split, `[N]`; training samples from these."""
        starts: Int64 = self.starts[self.split == split.code]
        return starts

    def non_overlapping(self, split: Split) -> Int64:
        """Starts at least 360 bars apart, `[N]`; evaluation uses these."""
        starts: Int64 = self.starts[self.walk & (self.split == split.code)]
        return starts


def index_sessions(
    bars: BarSeries, sessions: SessionConfig | None = None, splits: SplitConfig | None = None
) -> SessionIndex:
    """Find every valid session in one pass over the bars, and assign each to its split.

    A session starts at bar i if all of these hold:

    - Bars i - 150 to i + 360 exist.
    - Bars i to i + 360 lie in one trading week, with no step above `max_step_minutes`.
    - Bars i to i + 359 have a mean range of at least `min_mean_range_pips`.
    - From bar i - 150 to bar i, at most `max_warmup_missing_minutes` open minutes have no bar.

    Oracle: tests/oracles/sessions.py.
    """
    sessions = sessions or SessionConfig()
    if len(bars) <= WARMUP_BARS + SESSION_BARS:
        return SessionIndex.of(np.zeros(0, np.int64), np.zeros(0, np.int8))
    first_week = int(np.searchsorted(week_opens(), week_open_s(bars.time_s[:1]))[0])
    valid = _valid_starts(
        bars.time_s,
        bars.high,
        bars.low,
        bars.instrument.pip,
        week_opens()[first_week:],
        sessions.max_step_minutes * 60,
        round(sessions.min_mean_range_pips * _MICROPIPS) * SESSION_BARS,
        sessions.max_warmup_missing_minutes,
    )
    starts = np.flatnonzero(valid)
    return SessionIndex.of(starts, _splits_of(starts, bars.time_s, splits or SplitConfig()))


def split_bounds(time_s: Int64, config: SplitConfig) -> dict[Split, tuple[int, int]]:
    """First bar and end (exclusive) of each split; a split too short for its embargo is empty.

    The cuts fall after the configured shares of the bars. The validation and the test split begin
    `embargo_days` x 1,440 open minutes after their cut.
    """
    num_bars = len(time_s)
    cuts = [0, round(num_bars * config.train), round(num_bars * (config.train + config.validation)), num_bars]
    embargo = config.embargo_days * OPEN_MINUTES_PER_DAY
    bounds: dict[Split, tuple[int, int]] = {}
    for split, cut, end in zip(Split, cuts[:-1], cuts[1:], strict=True):
        first = cut
        if 0 < cut < end:
            minutes = open_minute(time_s[cut:end])
            first += int(np.searchsorted(minutes, minutes[0] + embargo))
        bounds[split] = (first, end)
    return bounds


def _splits_of(starts: Int64, time_s: Int64, config: SplitConfig) -> Int8:
    split = np.full(len(starts), NO_SPLIT, np.int8)
    for name, (first, end) in split_bounds(time_s, config).items():
        split[(starts >= first) & (starts + SESSION_BARS < end)] = name.code
    return split


@kernel
def _valid_starts(
    time_s: Int64,
    high: Float64,
    low: Float64,
    pip: float,
    week_opens: Int64,
    max_step_s: int,
    min_range_sum: int,
    max_missing: int,
) -> Bool:
    """Whether a session starts at each bar, `[T]`; `week_opens` begins with the first bar's week."""
    num_bars = len(time_s)
    valid = np.zeros(num_bars, np.bool_)
    minute = np.empty(num_bars, np.int64)  # open minutes that began before each bar
    num_open = np.empty(num_bars + 1, np.int64)  # bars in open minutes before each bar
    ranges = np.empty(num_bars, np.int64)
    num_open[0] = 0
    week = 0
    run_start = 0  # first bar of the unbroken run of tradable bars that contains the current one
    range_sum = 0
    for end in range(num_bars):
        previous_week = week
        while week_opens[week + 1] <= time_s[end]:
            week += 1
        into_week = time_s[end] - week_opens[week]
        is_open = into_week < WEEK_OPEN_S
        minute[end] = week * OPEN_MINUTES_PER_WEEK + min(into_week, WEEK_OPEN_S) // 60
        num_open[end + 1] = num_open[end] + is_open
        ranges[end] = np.rint(min((high[end] - low[end]) / pip, _MAX_RANGE_PIPS) * _MICROPIPS)
        if not is_open:
            run_start = end + 1
        elif end > 0 and (week != previous_week or time_s[end] - time_s[end - 1] > max_step_s):
            run_start = end

        start = end - SESSION_BARS
        if start > 0:
            range_sum -= ranges[start - 1]
        if end > 0:
            range_sum += ranges[end - 1]
        if start < WARMUP_BARS or start < run_start or range_sum < min_range_sum:
            continue
        warmup = start - WARMUP_BARS
        missing = (minute[start] - minute[warmup]) - (num_open[start] - num_open[warmup])
        valid[start] = missing <= max_missing
    return valid


@kernel
def _non_overlapping(starts: Int64, split: Int8) -> Bool:
    walk = np.zeros(len(starts), np.bool_)
    free_from = 0
    for row in range(len(starts)):
        if row > 0 and split[row] != split[row - 1]:
            free_from = 0
        if split[row] != NO_SPLIT and starts[row] >= free_from:
            walk[row] = True
            free_from = starts[row] + SESSION_BARS
    return walk
