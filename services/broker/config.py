"""Settings of the paper broker: the replayed market, the account, and the injected faults."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from shared.errors import SettingsError
from shared.market.session import Split
from shared.setting import Natural, Port, Range, Share, check_group, setting


class Pacing(StrEnum):
    """How the replay is paced."""

    #: Simulated time runs `speed` times as fast as the clock, and waits for clients that acknowledge bars.
    SPEED = "speed"
    ACKNOWLEDGED = "acknowledged"  # each bar waits until the client has acknowledged the previous one


@dataclass(frozen=True)
class BrokerConfig:
    """The `[broker]` group: the market and the account.

    Raises:
        SettingsError: a value is out of range.
    """

    host: str = setting("127.0.0.1", "interface that the port listens on")
    port: Port = setting(8002, "port of the broker's API")
    allowed_hosts: str = setting("", "more host names accepted besides localhost and IP addresses, as a,b,c")
    account: str = setting("101-001-0000001-001", "account id: four numbers joined by -")
    balance: Annotated[int, Range(low=1)] = setting(1_000_000, "balance in the instrument's quote currency")
    margin_rate: Annotated[float, Range(above=0.0, high=1.0)] = setting(0.05, "margin per unit of exposure")
    spread_pips: Annotated[float, Range(low=0.0, high=1_000.0)] = setting(4.0, "spread of every quote")
    spread_from_data: bool = setting(False, "use each bar's own spread where the data set has one")
    split: str = setting("test", "split to replay, or all; earlier bars are served as history")
    pacing: Pacing = setting(Pacing.SPEED, "how the replay is paced")
    speed: Annotated[float, Range(low=0.1, high=100_000.0)] = setting(
        300.0, "market seconds per second of wall-clock time"
    )
    patience_seconds: Annotated[float, Range(above=0.0, high=3_600.0)] = setting(
        30.0, "longest wait for a client to acknowledge a bar, in wall-clock time"
    )
    jump_gap_minutes: Natural = setting(30, "gaps between bars longer than this are skipped; 0 skips none")
    heartbeat_seconds: Annotated[float, Range(above=0.0, high=60.0)] = setting(
        5.0, "wall-clock time between two heartbeats of a stream"
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
    """The `[faults]` group: faults to inject. One seeded generator draws them all.

    Raises:
        SettingsError: a value is out of range.
    """

    seed: Natural = setting(0, "seed of all draws")
    latency_ms: Annotated[float, Range(low=0.0, high=60_000.0)] = setting(
        0.0, "delay between an order's arrival and its execution, at the price after the delay"
    )
    reject_probability: Share = setting(0.0, "an order is refused with 400")
    partial_fill_probability: Share = setting(
        0.0, "only half of the units can be filled: IOC fills that half, FOK is cancelled"
    )
    drop_answer_probability: Share = setting(0.0, "a write is executed, then the connection is cut")
    gateway_timeout_probability: Share = setting(0.0, "a write is executed, then answered with 504")
    read_error_probability: Share = setting(0.0, "a read is answered with 503")
    rate_limit_probability: Share = setting(0.0, "a read is answered with 429")
    disconnect_probability: Share = setting(0.0, "a connection is cut in the middle of a stream line")
    stall_probability: Share = setting(0.0, "a stream sends nothing for a while, but stays open")
    stall_seconds: Annotated[float, Range(low=0.0, high=3_600.0)] = setting(30.0, "duration of a stall")

    def __post_init__(self) -> None:
        """Check every range."""
        check_group("faults", self)
