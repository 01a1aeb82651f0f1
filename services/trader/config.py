"""Settings of the trader: broker, orders and limits of the guards."""

from dataclasses import dataclass, fields
from enum import StrEnum
from urllib.parse import urlsplit

from shared.errors import SettingsError
from shared.market.bar import normal_name


class Mode(StrEnum):
    """The broker to trade at."""

    PAPER = "paper"  # the paper broker; simulated time
    PRACTICE = "practice"  # OANDA, with play money
    LIVE = "live"  # OANDA, with real money


@dataclass(frozen=True)
class TraderConfig:
    """The `[trader]` group.

    Raises:
        SettingsError: a value is out of range; names the field, its value and the range.
    """

    broker_url: str = "http://127.0.0.1:8002"  # paper mode only; practice and live use OANDA's URLs
    inference_url: str = "http://127.0.0.1:8001"
    instrument: str = ""  # empty: the only one that the account can trade, as at the paper broker
    units: int = 1
    live_confirmation: str = ""  # live mode only: the account id once more, as a confirmation
    history_bars: int = 600  # bars read at the start of a session to fill the features' window
    inference_deadline_ms: float = 100.0
    candle_wait_seconds: float = 60.0  # longest wait for a closed bar's candle, wall clock; then HOLD
    candle_poll_seconds: float = 0.25
    decision_age_seconds: float = 60.0  # largest age of a bar to act on, market time since its end
    look_up_seconds: float = 30.0  # an order without answer and transaction for this long was not executed
    look_up_poll_seconds: float = 1.0  # at least OANDA's replication lag
    flatten_retry_seconds: float = 1.0  # pause after a failed close; doubles with each failure
    flatten_retry_max_seconds: float = 30.0
    sync_seconds: float = 5.0  # between two reads of the account's transactions while no bar closes
    reconnect_max_seconds: float = 30.0
    lease_seconds: float = 15.0
    stop_loss_pips: float = 150.0  # stop sent with the entry order; 0 sends none, which live refuses
    live_without_stop: bool = False  # live mode only: trade although stop_loss_pips is 0
    take_profit_pips: float = 0.0  # target sent with the entry order; 0 sends none
    max_slippage_pips: float = 10.0  # price bound of an entry, from the quote; 0 sends none
    trade_unproven: bool = False  # paper mode only: enter on a version that passed no gate
    outbox_rows: int = 200_000  # undelivered audit messages from which on no entry is sent

    def __post_init__(self) -> None:
        """Check every range."""
        if self.instrument:
            normal_name(self.instrument)
        for name in ("broker_url", "inference_url"):
            url = urlsplit(getattr(self, name))
            if url.scheme not in ("http", "https") or not url.hostname:
                raise SettingsError(
                    f"trader.{name} is {getattr(self, name)!r}, expected a URL such as http://127.0.0.1:8002"
                )
        for name in ("units", "outbox_rows"):
            if getattr(self, name) < 1:
                raise SettingsError(f"trader.{name} is {getattr(self, name)}, expected 1 or more")
        if not 151 <= self.history_bars <= 5_000:
            raise SettingsError(
                f"trader.history_bars is {self.history_bars}, expected 151 (the first window's bars) to 5000"
            )
        if self.flatten_retry_max_seconds < self.flatten_retry_seconds:
            raise SettingsError(
                f"trader.flatten_retry_max_seconds is {self.flatten_retry_max_seconds}, expected at least "
                f"trader.flatten_retry_seconds, which is {self.flatten_retry_seconds}"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_pips"):
                _require_at_least("trader", field.name, value, 0.0)
            elif field.name.endswith(("_seconds", "_ms")):
                _require_positive("trader", field.name, value)


@dataclass(frozen=True)
class GuardConfig:
    """The `[guards]` group: limits of trading; `inf` disables a limit.

    Raises:
        SettingsError: a limit is out of range.
    """

    stale_seconds: float = 10.0  # wall clock without tick or heartbeat
    quiet_seconds: float = 120.0  # wall clock without a tick while the market is open
    max_jump_percent: float = 5.0  # from the last good price; beyond it a candle must confirm the new level
    max_spread_pips: float = 8.0  # of an entry
    close_margin_minutes: float = 5.0  # before Friday's close: no entries, and positions are closed
    max_clock_skew_seconds: float = 5.0  # wall clock against the broker's; not checked in a replay
    daily_loss_pips: float = 200.0  # per trading day, from 17:00 to 17:00 New York
    weekly_loss_pips: float = 500.0
    max_drawdown_pips: float = 1_000.0  # from the highest equity; trading stops until an operator resumes it
    max_orders_per_hour: float = 40.0  # market time; beyond it no entry is sent
    max_rejects: int = 3  # in a row; then no entry until a fill, or until an operator resumes trading
    max_bars_held: int = 360  # then the position is closed: in training, no session is longer
    max_missing_minutes: float = 60.0  # open minutes without a bar among the last 150

    def __post_init__(self) -> None:
        """Check every range."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "close_margin_minutes" or field.name == "max_missing_minutes":
                _require_at_least("guards", field.name, value, 0.0)
            elif field.name in ("max_rejects", "max_bars_held"):
                _require_at_least("guards", field.name, value, 1)
            elif not value > 0.0:
                raise SettingsError(f"guards.{field.name} is {value}, expected a number above 0")


def _require_at_least(group: str, name: str, value: float, least: float) -> None:
    if not value >= least:
        raise SettingsError(f"{group}.{name} is {value}, expected {least} or more")


def _require_positive(group: str, name: str, value: float) -> None:
    if not 0.0 < value < float("inf"):
        raise SettingsError(f"{group}.{name} is {value}, expected a positive number")
