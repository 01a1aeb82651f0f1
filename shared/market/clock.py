"""The wall clocks of bar files, and their conversion to UTC.

A clock is a time zone shifted by a whole number of seconds. The shift is for brokers whose
servers run at New York + 7 h, daylight saving included, so that their day ends when the FX day does.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import cache
from typing import Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from shared.errors import DataError
from shared.numeric import Int64

HOUR_S = 3600
DAY_S = 24 * HOUR_S

#: Times outside these years are errors: no minute bars are older, and none can be newer.
FIRST_TIME_S = 0
LAST_TIME_S = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp())

_EPOCH = datetime(1970, 1, 1)  # naive, because a wall clock has no zone
_SHIFTED_NEW_YORK = re.compile(r"(?:NY|New York) ?\+ ?(\d{1,2})", re.IGNORECASE)
_FIXED_OFFSET = re.compile(r"(?:UTC|GMT)? ?([+-])(\d{1,2})(?::?([0-5]\d))?")


@cache
def new_york() -> ZoneInfo:
    """The time zone of the FX week.

    Raises:
        DataError: this machine has no time zone database.
    """
    return _iana("America/New_York")


@dataclass(frozen=True)
class Clock:
    """A wall clock: the zone's local time plus `shift_s` seconds."""

    name: str
    zone: tzinfo
    shift_s: int = 0

    @classmethod
    def named(cls, name: str) -> Self:
        """The clock of an IANA name (Europe/London), a fixed offset (+03:00, UTC-5) or NY+7.

        Raises:
            DataError: the name is not known.
        """
        if match := _SHIFTED_NEW_YORK.fullmatch(name.strip()):
            hours = int(match[1])
            return cls(f"New York + {hours} h", new_york(), hours * HOUR_S)
        if match := _FIXED_OFFSET.fullmatch(name.strip()):
            seconds = int(match[2]) * HOUR_S + int(match[3] or 0) * 60
            if seconds <= 14 * HOUR_S:
                sign = -1 if match[1] == "-" else 1
                label = f"UTC{match[1]}{int(match[2])}" + (f":{match[3]}" if int(match[3] or 0) else "")
                return cls(label, timezone(timedelta(seconds=sign * seconds)))
        return cls(name, UTC) if name == "UTC" else cls(name, _iana(name))

    def to_utc(self, wall_s: Int64) -> Int64:
        """Convert wall-clock seconds, counted as if the clock were UTC, to UTC seconds, `[T]`.

        A time that occurs twice because clocks go back is read as the first of the two. A time that does not
        exist because clocks go forward is read as if they had not gone forward yet.
        """
        local = np.asarray(wall_s, np.int64) - self.shift_s
        if self.zone is UTC:
            return local
        hours, inverse = np.unique(local // HOUR_S, return_inverse=True)  # offsets change on the hour
        offsets = np.array([self._offset_s(int(hour)) for hour in hours], dtype=np.int64)
        return local - offsets[inverse.reshape(local.shape)]

    def _offset_s(self, hour: int) -> int:
        offset = (_EPOCH + timedelta(hours=hour)).replace(tzinfo=self.zone).utcoffset()
        return int(offset.total_seconds()) if offset is not None else 0


def _iana(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise DataError(
            f"time zone {name!r} is not known: expected an IANA name such as Europe/London, "
            "a fixed offset such as +03:00, or NY+7"
        ) from error


def utc_text(time_s: int) -> str:
    """A time as text, such as 2023-04-02 21:00 UTC."""
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M} UTC"
