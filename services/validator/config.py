"""Settings of the validator."""

from dataclasses import dataclass
from typing import Annotated

from shared.setting import Count, Natural, Positive, Range, check_group, setting


@dataclass(frozen=True)
class ValidationConfig:
    """The `[validation]` group.

    Raises:
        SettingsError: a value is out of range.
    """

    lanes: Count = setting(64, "sessions played in lockstep")
    max_sessions: Natural = setting(0, "sessions judged, spread evenly over the split; 0 judges all")
    time_limit_seconds: Positive = setting(1800.0, "time limit for one version")
    annual_min_days: Annotated[int, Range(low=2)] = setting(
        60, "minimum number of days for annualised Sharpe and Sortino ratios"
    )
    page: bool = setting(True, "write an HTML page and its picture beside the JSON report")

    def __post_init__(self) -> None:
        """Check every range."""
        check_group("validation", self)
