"""Settings of the trader: where it trades, how it sends orders, and what its guards allow."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated
from urllib.parse import urlsplit

from shared.errors import SettingsError
from shared.market.bar import normalized_name
from shared.setting import Count, NonNegative, Positive, Range, check_group, setting


class Mode(StrEnum):
    """The broker that the trader uses."""

    PAPER = "paper"  # the paper broker; simulated time
    PRACTICE = "practice"  # OANDA, with play money
    LIVE = "live"  # OANDA, with real money


#: `inf` switches a limit off.
Limit = Annotated[float, Range(above=0.0, or_infinite=True)]
Minutes = Annotated[float, Range(low=0.0, or_infinite=True)]


@dataclass(frozen=True)
class TraderConfig:
    """The `[trader]` group.

    Raises:
        SettingsError: a value is out of range, or is not a URL.
        DataError: the instrument is not the name of a pair.
    """

    broker_url: str = setting(
        "http://127.0.0.1:8002", "URL of the paper broker; practice and live use OANDA's own"
    )
    inference_url: str = setting("http://127.0.0.1:8001", "URL of the inference service")
    instrument: str = setting("", "pair to trade; empty takes the only one that the account can trade")
    units: Count = setting(1, "units of every entry")
    live_confirmation: str = setting("", "live mode only: repeat the account id to confirm")
    history_bars: Annotated[int, Range(low=151, high=5_000)] = setting(
        600, "bars read at the start to compute features; the first window needs 151"
    )
    inference_deadline_ms: Positive = setting(100.0, "time for a decision, after which the trader holds")
    candle_wait_seconds: Positive = setting(
        60.0, "time for a closed bar's candle, after which the trader holds"
    )
    candle_poll_seconds: Positive = setting(0.25, "interval between two requests for a candle")
    decision_age_seconds: Positive = setting(
        60.0, "market time since a bar's end beyond which its decision is ignored"
    )
    look_up_seconds: Positive = setting(
        30.0, "time without a transaction after which an unanswered order counts as not executed"
    )
    look_up_poll_seconds: Positive = setting(
        1.0, "interval between two look-ups; at least OANDA's replication lag"
    )
    flatten_retry_seconds: Positive = setting(1.0, "delay after a failed close; doubles with each failure")
    flatten_retry_max_seconds: Positive = setting(30.0, "largest delay between two attempts to close")
    sync_seconds: Positive = setting(5.0, "interval of account updates while no bar closes")
    reconnect_max_seconds: Positive = setting(30.0, "largest delay between two attempts to connect")
    lease_seconds: Positive = setting(15.0, "lifetime of the lease that allows one trader per account")
    stop_loss_pips: NonNegative = setting(
        150.0, "stop loss sent with every entry; 0 sends none, which live mode refuses"
    )
    live_without_stop: bool = setting(False, "live mode only: trade although stop_loss_pips is 0")
    take_profit_pips: NonNegative = setting(0.0, "take profit sent with every entry; 0 sends none")
    max_slippage_pips: NonNegative = setting(
        10.0, "distance from the quote to an entry's price bound; 0 sends no bound"
    )
    trade_unproven: bool = setting(False, "paper mode only: enter on a version that passed no gate")
    outbox_rows: Count = setting(200_000, "number of undelivered audit messages at which entries stop")

    def __post_init__(self) -> None:
        """Check every range, the URLs and the instrument."""
        if self.instrument:
            normalized_name(self.instrument)
        for name in ("broker_url", "inference_url"):
            url = urlsplit(getattr(self, name))
            if url.scheme not in ("http", "https") or not url.hostname:
                raise SettingsError(
                    f"trader.{name} is {getattr(self, name)!r}, expected a URL such as http://127.0.0.1:8002"
                )
        check_group("trader", self)
        if self.flatten_retry_max_seconds < self.flatten_retry_seconds:
            raise SettingsError(
                f"trader.flatten_retry_max_seconds is {self.flatten_retry_max_seconds}, expected at least "
                f"trader.flatten_retry_seconds, which is {self.flatten_retry_seconds}"
            )


@dataclass(frozen=True)
class GuardConfig:
    """The `[guards]` group: limits of what may be traded.

    Raises:
        SettingsError: a limit is out of range.
    """

    stale_seconds: Limit = setting(10.0, "wall-clock time without a tick or a heartbeat")
    quiet_seconds: Limit = setting(120.0, "wall-clock time without a tick while the market is open")
    max_jump_percent: Limit = setting(
        5.0, "distance from the last good price beyond which a candle must confirm the new level"
    )
    max_spread_pips: Limit = setting(8.0, "largest spread at which an entry is sent")
    close_margin_minutes: Minutes = setting(
        5.0, "time before Friday's close when positions are closed and no entry is sent"
    )
    max_clock_skew_seconds: Limit = setting(
        5.0, "offset of this machine's clock from the broker's; not checked in a replay"
    )
    daily_loss_pips: Limit = setting(200.0, "loss of a trading day, which begins at 17:00 New York")
    weekly_loss_pips: Limit = setting(500.0, "loss of a trading week")
    max_drawdown_pips: Limit = setting(
        1_000.0, "drawdown from the highest equity; trading stops until an operator resumes it"
    )
    max_orders_per_hour: Limit = setting(40.0, "entries and closes per hour of market time")
    max_rejects: Count = setting(3, "rejects in a row; no entry until a fill or until an operator resumes")
    max_bars_held: Count = setting(360, "bars after which a position is closed: the length of a session")
    max_missing_minutes: Minutes = setting(60.0, "open minutes without a bar among the last 150")

    def __post_init__(self) -> None:
        """Check every range."""
        check_group("guards", self)
