"""Settings of the gateway: its port, its key, and the thresholds of its alerts."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import SecretStr

from shared.errors import SettingsError
from shared.setting import (
    Count,
    Finite,
    Natural,
    NonNegative,
    Port,
    Positive,
    Range,
    Share,
    check_group,
    setting,
)

_UNSET = SecretStr("")

#: A shorter API key could be guessed.
MIN_KEY_LENGTH = 16

#: Services that belong to a complete system, in the order in which they are shown.
EXPECTED_SERVICES = ("trainer", "selfplay", "validator", "inference", "trader", "broker", "api")


@dataclass(frozen=True)
class GatewayConfig:
    """The `[gateway]` group.

    Raises:
        SettingsError: a value is out of range, or the key is too short.
    """

    host: str = setting("127.0.0.1", "interface that the port listens on")
    port: Port = setting(8000, "port of the API and the dashboard")
    allowed_hosts: str = setting("", "more host names accepted besides localhost and IP addresses, as a,b,c")
    api_key: SecretStr = setting(
        _UNSET, f"key of every POST, {MIN_KEY_LENGTH} characters or more; empty refuses every POST"
    )
    redis_timeout_seconds: Annotated[float, Range(above=0.0, high=60.0)] = setting(
        2.0, "longest wait of a request for Redis"
    )
    max_event_clients: Count = setting(64, "maximum number of open /events streams; more get 429")
    max_event_clients_per_peer: Count = setting(
        32, "maximum number of open /events streams per client address"
    )

    def __post_init__(self) -> None:
        """Check every range and the key."""
        check_group("gateway", self)
        key_length = len(self.api_key.get_secret_value())
        if 0 < key_length < MIN_KEY_LENGTH:
            raise SettingsError(
                f"gateway.api_key has {key_length} characters, expected {MIN_KEY_LENGTH} or more: "
                "`openssl rand -hex 16` makes one"
            )
        if not self.api_key.get_secret_value().isascii():
            raise SettingsError("gateway.api_key has a character that an HTTP header cannot carry; use ASCII")


@dataclass(frozen=True)
class AlertConfig:
    """The `[alerts]` group: thresholds of the alerts that the gateway raises (docs/alerts.md).

    Raises:
        SettingsError: a value is out of range, a service is unknown, or the webhook is not a URL.
    """

    expectancy_floor_pips: Finite = setting(-10.0, "expectancy in self-play below which training diverges")
    win_rate_floor: Share = setting(0.05, "win rate in self-play below which the policy has collapsed")
    #: The reference warned below 0.5, but it counted illegal actions. With those masked, a policy that
    #: holds each trade for an hour still decides to trade on 3 % of the bars.
    trade_ratio_floor: Share = setting(0.02, "share of decisions to trade below which the policy only holds")
    trade_ratio_after_episodes: Natural = setting(500, "episodes before the trade ratio is judged")
    checkpoint_silence_minutes: Positive = setting(30.0, "time without a new version while the trainer runs")
    low_free_mb: Natural = setting(5_000, "MB of free disk below which the disk counts as low")
    redis_memory_share: Share = setting(0.8, "share of maxmemory above which Redis counts as almost full")
    backlog_trajectories: Count = setting(
        1_000, "waiting trajectories that raise the backlog alert; workers should pause earlier"
    )
    pending_seconds: Positive = setting(120.0, "time that a delivered trajectory may stay unacknowledged")
    expected_services: tuple[str, ...] = setting(
        EXPECTED_SERVICES, "services whose absence raises an alert; the broker only in paper mode"
    )
    start_seconds: NonNegative = setting(
        180.0, "time from the gateway's start until an absent service raises an alert"
    )
    missing_seconds: NonNegative = setting(30.0, "time that a service or the broker may be unavailable")
    restarts: Count = setting(3, "restarts of one service within restart_minutes that count as a crash loop")
    restart_minutes: Positive = setting(10.0, "window in which restarts are counted")
    training_seconds: NonNegative = setting(
        300.0, "time for which a training condition must hold or be absent for its alert to begin or end"
    )
    end_seconds: NonNegative = setting(
        60.0, "time for which a condition must be absent before its alert ends"
    )
    check_seconds: Positive = setting(5.0, "interval between two checks")
    webhook_url: SecretStr = setting(_UNSET, "URL that each new alert is posted to as JSON; empty for none")
    repeat_seconds: NonNegative = setting(300.0, "time within which events of one kind become one post")

    def __post_init__(self) -> None:
        """Check every range, the names of services and the webhook."""
        check_group("alerts", self)
        if unknown := set(self.expected_services) - set(EXPECTED_SERVICES):
            raise SettingsError(
                f"alerts.expected_services has {', '.join(sorted(unknown))}, expected some of "
                f"{', '.join(EXPECTED_SERVICES)}"
            )
        url = self.webhook_url.get_secret_value()
        if url and not url.startswith(("http://", "https://")):
            raise SettingsError("alerts.webhook_url is not an http:// or https:// URL")
