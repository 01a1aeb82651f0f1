"""Free disk space in the home of `up`: a check before the start, and a watch while it runs."""

from collections.abc import Iterator
from pathlib import Path

from cli.output import say
from cli.settings import UpSettings
from shared.errors import SettingsError
from shared.messages.conditions import Condition, ConditionTracker
from shared.runtime.disk import free_megabytes, low_disk

#: Redis exits when it cannot append to its file, so it is not started with less free disk space.
REDIS_ROOM_MB = 64

_LOW = Condition("disk", "disk_low")

#: A disk that runs low again within this time continues the same condition.
_END_SECONDS = 60.0


def warn_of_low_disk(home: Path, settings: UpSettings) -> None:
    """Warn if free disk space is low.

    Raises:
        SettingsError: there is too little to start.
    """
    free = free_megabytes(home)
    if free < settings.min_free_mb:
        raise SettingsError(
            f"{free:,} MB are free in {home}, and `up` needs {settings.min_free_mb:,} MB (MM_MIN_FREE_MB): "
            "make room, or name a folder on another disk with MM_HOME"
        )
    if low := low_disk(free, settings.alerts.low_free_mb, home):
        say(f"warning: {low}")


class DiskWatch:
    """Reports low disk space once when it begins and once when it ends."""

    def __init__(self, home: Path, *, low_mb: int) -> None:
        self._home, self._low_mb = home, low_mb
        self._tracker = ConditionTracker(end_seconds=_END_SECONDS)

    def check(self, now_s: float) -> Iterator[str]:
        """Check once; yields events as text."""
        try:
            free = free_megabytes(self._home)
        except OSError as failure:
            low, ended = f"the free disk space of {self._home} is not known: {failure}", ""
        else:
            low = low_disk(free, self._low_mb, self._home)
            ended = f"{free:,} MB are free in {self._home} again"
        for alert in self._tracker.update({_LOW: low} if low else {}, now_s):
            yield alert.detail if alert.phase == "began" else ended
