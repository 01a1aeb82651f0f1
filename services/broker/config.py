"""Settings of the paper broker: the market that it replays, the account, and the faults that it injects."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from shared.errors import SettingsError
from shared.market.session import Split
from shared.setting import Natural, Port, Range, Share, check_group, setting


class Pacing(StrEnum):
    """What paces the replay."""

    #: Simulated time runs `speed` times as fast as the wall clock, and waits for a client that acknowledges.
    SPEED = "speed"
    ACKNOWLEDGED = "acknowledged"  # as soon as the client has acknowledged the bar before


@dataclass(frozen=True)
class BrokerConfig:
    """The `[broker]` group: the market and the account.

    Raises:
        SettingsError: a value is out of range.
    """

    host: str = setting("127.0.0.1", "interface that the port listens on")
    port: Port = setting(8002, "port of the broker's API")
    allowed_hosts: str = setting("", "host names answered besides localhost and addresses, as a,b,c")
    account: str = setting("101-001-0000001-001", "account id: four numbers joined by -")
    balance: Annotated[int, Range(low=1)] = setting(1_000_000, "balance in the instrument's quote currency")
    margin_rate: Annotated[float, Range(above=0.0, high=1.0)] = setting(0.05, "margin per unit of exposure")
    spread_pips: Annotated[float, Range(low=0.0, high=1_000.0)] = setting(4.0, "spread of every quote")
    spread_from_data: bool = setting(False, "use each bar's own spread where the data set has one")
    split: str = setting("test", "split of the bars that is replayed, or all; earlier bars are history")
    pacing: Pacing = setting(Pacing.SPEED, "what paces the replay")
    speed: Annotated[float, Range(low=0.1, high=100_000.0)] = setting(
        300.0, "seconds of the market in a second of the wall clock"
    )
    patience_seconds: Annotated[float, Range(above=0.0, high=3_600.0)] = setting(
        30.0, "wall clock that the replay waits for a client that acknowledges bars"
    )
    jump_gap_minutes: Natural = setting(30, "longest stretch without bars that is not skipped; 0 skips none")
    heartbeat_seconds: Annotated[float, Range(above=0.0, high=60.0)] = setting(
        5.0, "wall clock between two heartbeats of a stream"
    )

    def __post_init__(self) -> None:
        """Check every range, the account and the split."""
        check_group("broker", self)
        parts = self.account.split("-")
        if len(parts) != 4 or not all(part.isascii() and part.isdigit() for part in parts):
            raise SettingsError(f"broker.account is {self.account!r}, expected four numbers joined by -")
        splits = (*Split, "all")
        if self.split not in splits:
            raise SettingsError(f"broker.split is {self.split!r}, expected one of {', '.join(splits)}")


@dataclass(frozen=True)
class FaultConfig:
    """The `[faults]` group: what goes wrong on purpose; one seeded generator draws everything.

    Raises:
        SettingsError: a value is out of range.
    """

    seed: Natural = setting(0, "seed of all draws")
    latency_ms: Annotated[float, Range(low=0.0, high=60_000.0)] = setting(
        0.0, "time from an order's arrival to its execution, at the price then in force"
    )
    reject_probability: Share = setting(0.0, "an order is refused with 400")
    partial_fill_probability: Share = setting(
        0.0, "half of the units find liquidity: IOC fills them, FOK is cancelled"
    )
    drop_answer_probability: Share = setting(0.0, "a write is executed, then the connection is cut")
    gateway_timeout_probability: Share = setting(0.0, "a write is executed, then answered with 504")
    read_error_probability: Share = setting(0.0, "a read is answered with 503")
    rate_limit_probability: Share = setting(0.0, "a read is answered with 429")
    disconnect_probability: Share = setting(0.0, "a stream line is cut in half, and its connection with it")
    stall_probability: Share = setting(0.0, "at a stream line the stream falls silent, its connection open")
    stall_seconds: Annotated[float, Range(low=0.0, high=3_600.0)] = setting(30.0, "duration of a stall")

    def __post_init__(self) -> None:
        """Check every range."""
        check_group("faults", self)
