"""Where the gateway listens, who may change the system through it, and when it raises alerts."""

import math
from dataclasses import dataclass

from pydantic import SecretStr

from shared.errors import SettingsError

_UNSET = SecretStr("")

#: Shorter API keys could be guessed.
MIN_KEY_LENGTH = 16

#: Services that belong to a complete system, in the order in which they are shown.
EXPECTED_SERVICES = ("trainer", "selfplay", "validator", "inference", "trader", "broker", "api")


@dataclass(frozen=True)
class GatewayConfig:
    """The `[gateway]` group."""

    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: str = ""  # host names answered besides localhost and IP addresses; a,b,c
    api_key: SecretStr = _UNSET  # required for every POST, 16 characters or more; empty switches POSTs off
    redis_timeout_seconds: float = 2.0  # longest wait of a request for Redis
    max_event_clients: int = 64  # open /events streams; further ones are refused with 429
    max_event_clients_per_peer: int = 32  # open /events streams of one client address

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be.

        Raises:
            SettingsError: names the field, its value and what is right.
        """
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"gateway.port is {self.port}, expected 0 to 65535")
        if not 0.0 < self.redis_timeout_seconds <= 60.0:
            raise SettingsError(
                f"gateway.redis_timeout_seconds is {self.redis_timeout_seconds}, expected above 0, at most 60"
            )
        for name in ("max_event_clients", "max_event_clients_per_peer"):
            if getattr(self, name) < 1:
                raise SettingsError(f"gateway.{name} is {getattr(self, name)}, expected 1 or more")
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
    """The `[alerts]` group: thresholds of the alerts."""

    expectancy_floor_pips: float = -10.0  # below: training is diverging
    win_rate_floor: float = 0.05  # below: the policy collapsed
    #: Below: the policy only holds. The reference warned below 0.5, but counted illegal actions. With these
    #: masked, a policy that holds each trade for an hour decides to trade on 3 % of the bars.
    trade_ratio_floor: float = 0.02
    trade_ratio_after_episodes: int = 500  # earlier, a policy that only holds raises no alert
    checkpoint_silence_minutes: float = 30.0  # longest time without a new version while the trainer runs
    low_free_mb: int = 5_000  # least free disk space for the home, in MB
    redis_memory_share: float = 0.8  # largest share of maxmemory; workers wait when Redis is full
    #: Above: workers do not pause. Paused workers leave the high-water mark and one batch each.
    backlog_trajectories: int = 1_000
    pending_seconds: float = 120.0  # above: the trainer received trajectories but does not journal them
    #: Services whose absence is an alert. The broker of a trader that is not in paper mode is exempt.
    expected_services: tuple[str, ...] = EXPECTED_SERVICES
    start_seconds: float = 180.0  # from the gateway's start until a service never seen counts as missing
    missing_seconds: float = 30.0  # delay of alerts that a restart or reconnect ends
    restarts: int = 3  # least number of restarts of one service within `restart_minutes`
    restart_minutes: float = 10.0
    training_seconds: float = 300.0  # delay before alerts on training metrics begin or end
    end_seconds: float = 60.0  # a condition ends after this absence; a shorter gap is part of it
    check_seconds: float = 5.0
    webhook_url: SecretStr = _UNSET  # every new alert is posted there as JSON; empty: nowhere
    repeat_seconds: float = 300.0  # events of one kind within this time are combined into one post

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be.

        Raises:
            SettingsError: names the field, its value and what is right.
        """
        for name in ("win_rate_floor", "trade_ratio_floor", "redis_memory_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SettingsError(f"alerts.{name} is {getattr(self, name)}, expected a share from 0 to 1")
        for name in ("checkpoint_silence_minutes", "pending_seconds", "restart_minutes", "check_seconds"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise SettingsError(f"alerts.{name} is {getattr(self, name)}, expected a positive number")
        for name in (
            "start_seconds",
            "missing_seconds",
            "training_seconds",
            "end_seconds",
            "repeat_seconds",
            "trade_ratio_after_episodes",
            "low_free_mb",
        ):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise SettingsError(f"alerts.{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("backlog_trajectories", "restarts"):
            if getattr(self, name) < 1:
                raise SettingsError(f"alerts.{name} is {getattr(self, name)}, expected 1 or more")
        if unknown := set(self.expected_services) - set(EXPECTED_SERVICES):
            raise SettingsError(
                f"alerts.expected_services has {', '.join(sorted(unknown))}, expected some of "
                f"{', '.join(EXPECTED_SERVICES)}"
            )
        if not math.isfinite(self.expectancy_floor_pips):
            raise SettingsError(
                f"alerts.expectancy_floor_pips is {self.expectancy_floor_pips}, expected a finite number"
            )
        url = self.webhook_url.get_secret_value()
        if url and not url.startswith(("http://", "https://")):
            raise SettingsError("alerts.webhook_url is no http:// or https:// address")
