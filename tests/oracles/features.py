"""Temporal features and outcomes, slow and simple: every value from its own slice of the history."""

import math
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np

from shared.numeric import Float64, Int8, Int64

_NEW_YORK = ZoneInfo("America/New_York")


def scaled(values: list[float]) -> float:
    """The last value between the extrema of all."""
    lowest, highest = min(values), max(values)
    return 0.5 if highest == lowest else (values[-1] - lowest) / (highest - lowest)


def hours_since_week_opened(time_s: int) -> float:
    """Wall-clock hours since Sunday 17:00 New York, up to the week's last minute.

    Clocks never change within a trading week.
    """
    local = datetime.fromtimestamp(time_s, UTC).astimezone(_NEW_YORK).replace(tzinfo=None)
    day = local.date()
    while day.weekday() != 6 or datetime.combine(day, time(17)) > local:
        day -= timedelta(days=1)
    return min((local - datetime.combine(day, time(17))).total_seconds() / 3600, 119 + 59 / 60)


def features_at(time_s: Int64, close: Float64, pip: float, bar: int) -> list[float]:
    """The nine features of one bar, which is the 120th or a later one."""

    def momentum(t: int, lag: int) -> float:
        return float(close[t] - close[t - lag])

    def rolling_range(t: int) -> float:
        return float(np.ptp(close[t - 59 : t + 1]))

    last_60 = range(bar - 59, bar + 1)
    hours = hours_since_week_opened(int(time_s[bar]))
    day_angle, hour_angle = 2 * math.pi * (hours // 24) / 5, 2 * math.pi * hours / 120
    return [
        scaled(close[bar - 59 : bar + 1].tolist()),
        scaled([momentum(t, 60) for t in last_60]),
        scaled([rolling_range(t) for t in last_60]),
        scaled([momentum(t, 5) for t in last_60]),
        math.tanh((close[bar] - close[bar - 1]) / pip / 10),
        math.cos(day_angle),
        math.sin(day_angle),
        math.cos(hour_angle),
        math.sin(hour_angle),
    ]


def outcomes(close: Float64) -> Int8:
    """UP 0, NEUTRAL 1, DOWN 2 by numpy's own standard deviation; -1 where undefined."""
    labels = np.full(len(close), -1, np.int8)
    for t in range(19, len(close) - 1):
        move, threshold = close[t + 1] - close[t], 0.33 * np.std(close[t - 19 : t + 1])
        labels[t] = 0 if move > threshold else 2 if move < -threshold else 1
    return labels
