"""Settings of the paper broker: the replayed market, the account and the injected faults."""

from dataclasses import dataclass, fields
from enum import StrEnum

from shared.errors import SettingsError
from shared.market.session import Split


class Pacing(StrEnum):
    """When the replay goes on to the next bar."""

    #: Simulated time runs `speed` times as fast as the wall clock, but waits for a client that acknowledges.
    SPEED = "speed"
    ACKNOWLEDGED = "acknowledged"  # as soon as the client has acknowledged the bar before


@dataclass(frozen=True)
class BrokerConfig:
    """Group [broker]: the market and the account.

    Raises:
        SettingsError: a value is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8002
    allowed_hosts: str = ""  # accepted Host names besides localhost and IP addresses, as a,b,c
    account: str = "101-001-0000001-001"
    balance: int = 1_000_000  # in the instrument's quote currency
    margin_rate: float = 0.05
    spread_pips: float = 4.0
    spread_from_data: bool = False  # use each bar's own spread where the data set has one
    split: str = "test"  # split to replay, or `all`; the bars before it are history
    pacing: Pacing = Pacing.SPEED
    speed: float = 300.0
    patience_seconds: float = 30.0  # wall clock; longest wait for a client that acknowledges bars
    jump_gap_minutes: int = 30  # longer gaps between bars are jumped over; 0 jumps over none
    heartbeat_seconds: float = 5.0  # wall clock, on every stream

    def __post_init__(self) -> None:
        """Check the ranges of all fields."""
        _require(0 <= self.port <= 65_535, "port", self.port, "0 to 65535")
        parts = self.account.split("-")
        digits = all(part.isascii() and part.isdigit() for part in parts)
        _require(len(parts) == 4 and digits, "account", self.account, "four numbers joined by -")
        _require(self.balance > 0, "balance", self.balance, "an amount above 0")
        _require(0 < self.margin_rate <= 1, "margin_rate", self.margin_rate, "above 0, at most 1")
        _require(0 <= self.spread_pips <= 1_000, "spread_pips", self.spread_pips, "0 to 1000")
        splits = (*Split, "all")
        _require(self.split in splits, "split", self.split, ", ".join(splits))
        _require(0.1 <= self.speed <= 100_000, "speed", self.speed, "0.1 to 100000")
        _require(
            0 < self.patience_seconds <= 3_600,
            "patience_seconds",
            self.patience_seconds,
            "above 0, at most 3600",
        )
        _require(self.jump_gap_minutes >= 0, "jump_gap_minutes", self.jump_gap_minutes, "at least 0")
        _require(
            0 < self.heartbeat_seconds <= 60,
            "heartbeat_seconds",
            self.heartbeat_seconds,
            "above 0, at most 60",
        )


@dataclass(frozen=True)
class FaultConfig:
    """Group [faults]: injected faults, all drawn from one seeded generator.

    Raises:
        SettingsError: a value is out of range.
    """

    seed: int = 0
    latency_ms: float = 0.0  # from an order's arrival to its execution, at the price after it
    reject_probability: float = 0.0  # an order is rejected with 400
    partial_fill_probability: float = (
        0.0  # half of the units find liquidity: IOC fills them, FOK is cancelled
    )
    drop_answer_probability: float = 0.0  # a write is executed, then the connection breaks without an answer
    gateway_timeout_probability: float = 0.0  # a write is executed, then answered with 504
    read_error_probability: float = 0.0  # a read is answered with 503
    rate_limit_probability: float = 0.0  # a read is answered with 429
    disconnect_probability: float = 0.0  # per stream line: half of it is sent, then the connection breaks
    stall_probability: float = 0.0  # per stream line: nothing is sent, the connection stays open
    stall_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Check the ranges of all fields."""
        for item in fields(self):
            if item.name.endswith("_probability"):
                value = getattr(self, item.name)
                _require(0 <= value <= 1, item.name, value, "a probability from 0 to 1")
        _require(self.seed >= 0, "seed", self.seed, "at least 0")
        _require(0 <= self.latency_ms <= 60_000, "latency_ms", self.latency_ms, "0 to 60000")
        _require(0 <= self.stall_seconds <= 3_600, "stall_seconds", self.stall_seconds, "0 to 3600")


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise SettingsError(f"{name} is {value!r}: expected {wanted}")
