"""How the validator works: lanes, limits, time limit."""

from dataclasses import dataclass

from shared.errors import SettingsError


@dataclass(frozen=True)
class ValidationConfig:
    """The `[validation]` group."""

    lanes: int = 64  # sessions played in lockstep
    max_sessions: int = 0  # sessions walked, evenly spread over the split; 0 walks all
    time_limit_seconds: float = 1800.0  # limit for the validation of one version
    annual_min_days: int = 60  # with fewer days, Sharpe and Sortino ratios are undefined
    page: bool = True  # write the HTML page and its picture beside the JSON report

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            SettingsError: names the field, its value and what is right.
        """
        if self.lanes < 1:
            raise SettingsError(f"validation.lanes is {self.lanes}, expected 1 or more")
        if self.max_sessions < 0:
            raise SettingsError(f"validation.max_sessions is {self.max_sessions}, expected 0 (all) or more")
        if self.annual_min_days < 2:
            raise SettingsError(
                f"validation.annual_min_days is {self.annual_min_days}, expected 2 or more days"
            )
        if not self.time_limit_seconds > 0:
            raise SettingsError(
                f"validation.time_limit_seconds is {self.time_limit_seconds}, expected a positive number"
            )
